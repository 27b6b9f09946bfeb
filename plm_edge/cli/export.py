"""plm-edge export: a checkpoint or a GGUF file becomes a bundle for a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plm_edge.cli.options import (
    FileFormat,
    Layout,
    MaybeCacheType,
    MaybeQuant,
    Model,
    OnnxStandard,
    Pure,
    named,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plm_edge.bundle import Manifest
    from plm_edge.spec import ModelSpec


def command(
    ctx: typer.Context,
    model: Model,
    target: Annotated[str, typer.Option("--target", help="A device: see plm-edge devices.")],
    file_format: FileFormat = "gguf",
    onnx_standard: OnnxStandard = False,
    layout: Layout = None,
    quant: MaybeQuant = None,
    pure: Pure = False,
    n_ctx: Annotated[
        int | None, typer.Option("-c", "--ctx", help="Tokens of context; as trained, if it fits.")
    ] = None,
    cache_type: MaybeCacheType = None,
    head: Annotated[
        str, typer.Option(help="screened: one for faster decoding too; see docs/layouts.md.")
    ] = "full",
    bits: Annotated[
        float | None,
        typer.Option(help="Mix formats, so many bits a weight; by measured sensitivity."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Fit the quantization to a text; tales: those that are here."
        ),
    ] = None,
    allow_key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A key of config.json known to change nothing."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=named,
            metavar="PATH",
            help="The folder to write; named after the model.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier bundle.")] = False,
) -> None:
    """Export a model for a device."""
    from plm_edge import devices
    from plm_edge.cli.calibrate import export
    from plm_edge.cli.prepare import find
    from plm_edge.cli.progress import Progress, Steps
    from plm_edge.exporters import default_folder
    from plm_edge.plan import make_plan

    def check(spec: ModelSpec) -> None:
        make_plan(spec, devices.load(target), quant, layout, n_ctx, cache_type, pure=pure)

    with Progress("export") as progress, Steps() as steps:
        manifest = export(
            find(model, ctx.obj, check if bits is None else None),
            target,
            out,
            quant=quant,
            layout=layout,
            pure=pure,
            n_ctx=n_ctx,
            cache_type=cache_type,
            head=head,
            bits=bits,
            calibration=calibration,
            allow_keys=tuple(allow_key or ()),
            file_format=file_format,
            onnx_standard=onnx_standard,
            force=force,
            progress=progress,
            step=steps if sys.stderr.isatty() else None,
        )
    _print(default_folder(manifest.source, target) if out is None else out, manifest)


def _print(out: Path, manifest: Manifest) -> None:
    """What was written, and what it will take."""
    from plm_edge.exporters.on_device import README

    plan = manifest.plan
    print(f"{form(manifest)}, context {plan['n_ctx']} tokens")
    for file in manifest.files:
        print(f"{file.size:>14,} bytes  {file.name}")
    for line in _gains(out):
        print(line)
    print(f"{plan['budget']['cache']:>14,} bytes  cache for the whole context")
    print(f"wrote {out}; talk to it: plm-edge chat {out}{_extra(manifest)}")
    if any(file.name == README for file in manifest.files):
        print(f"how to get it there: {out / README}")


def form(manifest: Manifest) -> str:
    """Its numbers and how they lie; a layout is one of a GGUF file."""
    where = f"layout {manifest.plan['layout']}" if has_gguf(manifest) else "ONNX files"
    return f"{manifest.plan['quant']} in {where}"


def has_gguf(manifest: Manifest) -> bool:
    """Or ONNX files alone."""
    from plm_edge.bundle import MODEL_FILE

    return any(file.name == MODEL_FILE for file in manifest.files)


def _extra(manifest: Manifest) -> str:
    """What must be installed for that, where our own kernels do not run it."""
    name = "llama" if manifest.plan["backend"] == "llama" else None
    if not has_gguf(manifest):
        name = "onnx"
    return "" if name is None else f" (after pip install 'plm-edge[{name}]')"


def _gains(out: Path) -> Iterator[str]:
    """What fitting brought, a line for each kind of tensor in each format."""
    import json

    from plm_edge.exporters import REPORT

    if not (out / REPORT).exists():
        return
    report = json.loads((out / REPORT).read_text())
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, gain in report["tensors"].items():
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        kinds.setdefault(f"{kind.removesuffix('.weight'):14}{gain['format']}", []).append(gain)
    yield f"fitted to {report['tokens']:,} tokens; error of the products, rounded -> fitted:"
    for kind, gains in kinds.items():
        rounded, fitted = (sum(g[key] for g in gains) / len(gains) for key in ("rounded", "fitted"))
        yield f"{kind:20}{len(gains):>4}  {rounded:9.1e} -> {fitted:.1e}"
