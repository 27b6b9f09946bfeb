"""Exporters: from a checkpoint and a plan to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import plm_edge
from plm_edge import devices, head_screen
from plm_edge.atomic import check_space
from plm_edge.bundle import (
    MODEL_FILE,
    BundleFile,
    Manifest,
    new_bundle,
    write_file,
    write_manifest,
)
from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.hub import resolve_model
from plm_edge.errors import UnsupportedError
from plm_edge.exporters import onnx
from plm_edge.exporters.deepseek2 import as_deepseek2
from plm_edge.exporters.files import Files
from plm_edge.exporters.from_gguf import from_gguf, gguf_of
from plm_edge.exporters.gguf_writer import Progress, file_bytes, header_bytes, write_gguf
from plm_edge.exporters.on_device import write_device_files
from plm_edge.exporters.quantize.fitted import Fitted, Fitting
from plm_edge.exporters.screen import Calibration, from_states, head_rows, screened
from plm_edge.exporters.source import Source, from_checkpoint
from plm_edge.gguf_spec import spec_to_gguf
from plm_edge.layouts import file_tensors, layout_of
from plm_edge.plan import Plan, make_plan
from plm_edge.tensors import head_name
from plm_edge.tokenizer import Tokenizer

__all__ = ["Files", "default_folder", "export", "write_bundle"]

_FILE_TYPES = {  # llama.cpp's numbers
    **{"F32": 0, "F16": 1, "BF16": 32},
    **{"Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "Q6_K": 18},
}
_DRAFT = "draft.gguf"
REPORT = "quantization.json"  # of an export that was fitted to a text
_QUANTIZATION_VERSION = 2  # of ggml's blocks
GGUF = Files()


def export(
    model: str | Path,
    target: str = devices.HOST,
    out: str | Path | None = None,
    *,
    quant: str | None = None,
    layout: str | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    pure: bool = False,
    allow_keys: Collection[str] = (),
    calibration: Calibration | None = None,
    files: Files = GGUF,
    fitting: Fitting | None = None,
    bits: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle of `model` for `target`; by default into a folder named after both.

    `model` is a Hugging Face folder, a hub id, "demo", or a GGUF file or bundle, whose blocks stay
    as they are unless they are floats and `quant` is given; `allow_keys` are keys of config.json
    that are known to change nothing. Layout and cache type None: as the device wants, on a graphics
    card what llama.cpp runs in less memory. `pure`: the head in the format of the rest. With
    `calibration` it carries a screened head too. With `fitting` the blocks of a checkpoint are
    fitted to a text; `bits` then mixes formats, so many bits a weight at most. `files`: a GGUF
    file, ONNX files, or both. `force` replaces an earlier bundle.
    """
    files.check(screened=calibration is not None, layout=layout, cache_type=cache_type)
    profile, found = devices.load(target), resolve_model(model)

    def write(
        source: Source,
        formats: Mapping[str, str] | None = None,
        report: Callable[[], bytes] | None = None,
    ) -> Manifest:
        plan = make_plan(
            source.spec,
            profile,
            quant,
            layout if files.gguf else "latent",
            n_ctx,
            files.cache_type or cache_type,
            pure=pure,
            screened=calibration is not None,
            formats=formats,
        )
        folder = default_folder(source.description, target) if out is None else Path(out)
        return write_bundle(
            *(source, plan, folder, files),
            calibration=calibration,
            report=report,
            force=force,
            progress=progress,
        )

    if (file := gguf_of(found)) is not None:
        if fitting is not None:
            raise UnsupportedError(
                f"{file.name}: expected a checkpoint to fit to a text, found a GGUF file; leave "
                "--calibration and --bits out, or export from the checkpoint"
            )
        stock = from_gguf(file)
        if quant is None:
            return write(stock.source, stock.formats)
        stock.check_quant(quant)
        return write(stock.source)
    with open_checkpoint(found, frozenset(allow_keys)) as checkpoint:
        source = from_checkpoint(checkpoint)
        if fitting is None:
            return write(source)
        ids = Tokenizer.from_hf(checkpoint.tokenizer_files).encode(fitting.text)
        fitted = Fitted(checkpoint, fitting, ids)
        formats = None if bits is None else fitted.mix(bits, files.mixed)
        source = replace(source, packed_rows=fitted.packed_rows)
        return write(source, formats, fitted.report_json)


def default_folder(source: Mapping[str, Any], target: str) -> Path:
    """Where a bundle goes if nobody says: named after the model and the target."""
    name = str(source["name"]).rsplit("/", 1)[-1]
    return Path(f"{name}-{Path(target).stem}")


def write_bundle(
    source: Source,
    plan: Plan,
    out: Path,
    files: Files = GGUF,
    *,
    calibration: Calibration | None = None,
    report: Callable[[], bytes] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the model's files, those for its device, then the manifest; the folder appears last.

    With `calibration` the model is written twice: without its screened head, to see the states.
    `report` says what quantization did, once all is written.
    """
    with new_bundle(out, force) as folder:
        if calibration is not None:
            source = _calibrated(source, plan, calibration, folder / _DRAFT)
        written: list[BundleFile] = []
        if files.gguf:
            written.append(_write_gguf(source, plan, folder, progress))
        if files.onnx:
            store = onnx.store_of(source.spec, plan.formats, files.onnx_standard)
            written += onnx.write(store, source, folder, progress)
            if not files.gguf:
                plan = onnx.plan_of(plan, store)
        source.assert_unchanged()
        brought = write_device_files(folder, plan, str(source.description["name"]))
        manifest = Manifest(
            spec=source.spec,
            plan=plan.to_dict(),
            source=source.description,
            licence=source.description.get("licence"),
            producer=f"plm-edge {plm_edge.__version__}",
            files=(*written, *brought, *([write_file(folder, REPORT, report())] if report else [])),
        )
        write_manifest(folder, manifest)
    return manifest


def _write_gguf(source: Source, plan: Plan, folder: Path, progress: Progress | None) -> BundleFile:
    if plan.layout == "deepseek2":
        source = as_deepseek2(source, plan.formats)
    tensors = file_tensors(plan.layout, source.spec, plan.formats)
    header = header_bytes(plan.layout, _keys(source, plan), tensors)
    check_space(folder, file_bytes(header, plan.layout, tensors))
    file = folder / MODEL_FILE
    return write_gguf(file, header, plan.layout, tensors, source.packed_rows, progress)


def _calibrated(source: Source, plan: Plan, calibration: Calibration, draft: Path) -> Source:
    """The source with a screened head; `draft` is a file that lives until the states are known."""
    formats = {n: fmt for n, fmt in plan.formats.items() if n not in head_screen.FORMATS}
    tensors = file_tensors(plan.layout, source.spec, formats)
    header = header_bytes(plan.layout, _keys(source, plan), tensors)
    check_space(draft.parent, 2 * file_bytes(header, plan.layout, tensors))
    write_gguf(draft, header, plan.layout, tensors, source.packed_rows)
    states = calibration.states(draft, calibration.text)
    draft.unlink()
    fmt = formats[head_name(source.spec)]
    screen = from_states(head_rows(source, fmt), head_screen.width(source.spec), states)
    return screened(source, fmt, screen)


def _keys(source: Source, plan: Plan) -> dict[str, object]:
    """The file's metadata, in its order."""
    described = {
        "general.type": "model",
        "general.name": source.description.get("name"),
        "general.license": source.description.get("licence"),
        "general.file_type": _FILE_TYPES[plan.quant],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    return {
        **{key: value for key, value in described.items() if value is not None},
        **spec_to_gguf(source.spec, layout_of(plan.layout).arch),
        **source.vocabulary,
    }
