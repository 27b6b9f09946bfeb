"""From what a user calls a model to something that can be loaded: exported first, if it must be.

Exports for this machine are kept in the cache folder, one for each source, choice and version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plm_edge
from plm_edge.bundle import MANIFEST, MODEL_FILE, model_file
from plm_edge.errors import OutputError

if TYPE_CHECKING:
    from plm_edge.runtime import AnySession
    from plm_edge.spec import ModelSpec

Progress = Callable[[int, int], None]  # bytes done, bytes of all


def load(
    path: str | Path,
    backend: str = "auto",
    threads: int | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    isa: str | None = None,
    force: bool = False,
    head: str = "full",
    activations: str = "int16",
    gpu_layers: int | None = None,
) -> AnySession:
    """A session on a model: a bundle, a .gguf file, a Hugging Face folder or hub id, or `demo`.

    What is no bundle and no .gguf file is exported for this machine first, into the cache folder; a
    .gguf file is read where it lies.
    force allows an `n_ctx` above the trained context. head="screened" needs an export with one.
    activations="int8" rounds coarser, for speed where the kernel set has products of bytes.
    backend="llama" runs it in llama.cpp, with `gpu_layers` on the GPU (all; of a card that was
    planned for, as many as fit).
    """
    from plm_edge import runtime

    path = for_backend(prepare(path, file_format=format_for(backend)), backend, n_ctx)
    asked = threads, n_ctx, cache_type, isa, force, head, activations, gpu_layers
    return runtime.load(path, backend, *asked)


def format_for(backend: str) -> str:
    """What a backend reads; UsageError, before anything is exported, where there is no such."""
    from plm_edge.runtime.load import parse_backend

    return "onnx" if parse_backend(backend)[0] == "onnx" else "gguf"


def check_kernels(isa: str | None) -> None:
    """Before anything is exported: this CPU has that kernel set, if one was asked for."""
    if isa is None:
        return
    from plm_edge.native.kernels import find_isa, isa_table
    from plm_edge.plan import check_isa

    check_isa(isa, isa_table())
    find_isa(isa)


def prepare(
    model: str | Path,
    progress: Progress | None = None,
    offline: bool = False,
    in_full: bool = False,
    file_format: str = "gguf",
) -> Path:
    """The bundle or .gguf file to load for `model`; `in_full`: a checkpoint without rounding.

    An .onnx file belongs to its bundle. `file_format`: what a checkpoint is exported to.
    """
    from plm_edge.bundle import read_bundle

    found = find(model, offline, _fits_here)
    if found.suffix == ".onnx" and found.is_file():
        found = found.parent
        read_bundle(found)  # says what is missing
    if found.is_file() or (found / MANIFEST).exists():
        return found
    quant = _format_of(found) if in_full else None
    folder = cache_folder() / (cache_key(found, quant) + ("-onnx" if file_format == "onnx" else ""))
    if not (folder / MANIFEST).exists():
        from plm_edge.devices import HOST
        from plm_edge.exporters import Files, export

        _make_cache_folder()
        # force: another process may put the same bundle there meanwhile.
        files = Files(file_format)
        export(found, HOST, folder, quant=quant, files=files, force=True, progress=progress)
    _note_use(folder)
    return folder


def _fits_here(spec: ModelSpec) -> None:
    """Raises DoesNotFit where no export for this machine would."""
    from plm_edge import devices
    from plm_edge.plan import make_plan

    make_plan(spec, devices.detect())


def _format_of(checkpoint: Path) -> str:
    """The narrowest format that holds all of its numbers."""
    from plm_edge.checkpoint import open_checkpoint

    with open_checkpoint(checkpoint) as opened:
        return opened.number_format


def for_backend(
    path: Path, backend: str, n_ctx: int | None = None, progress: Progress | None = None
) -> Path:
    """The bundle or .gguf file, for llama.cpp in the layout that it runs best here.

    What is in none of its layouts is laid out again, in the cache folder.
    """
    if backend != "llama":
        return path
    from plm_edge import devices
    from plm_edge.llama_cpp import LAYOUTS, layout_on_cpu, smaller_layout
    from plm_edge.runtime.llama_engine import can_offload, check_installed

    check_installed("backend llama")

    file = model_file(path)
    found, spec, formats = described(file)
    if found in LAYOUTS:
        return path
    n_ctx = n_ctx or spec.n_ctx_train
    if can_offload():
        layout = smaller_layout(spec, formats, n_ctx)
    else:
        layout = layout_on_cpu(spec, formats, n_ctx, devices.detect().usable_bytes)
    return in_layout(path, layout, progress)


def in_layout(path: Path, layout: str, progress: Progress | None = None) -> Path:
    """The GGUF file of a bundle or .gguf file in that layout, made in the cache folder if need be.

    The blocks are the same, only rearranged.
    """
    file = model_file(path)
    if described(file)[0] == layout:
        return file
    status = file.stat()
    identity = [str(file.resolve()), status.st_size, status.st_mtime_ns, plm_edge.__version__]
    folder = cache_folder() / f"{_digest(identity)}-{layout}"
    if not (folder / MANIFEST).exists():
        from plm_edge.exporters.relayout import relayout

        _make_cache_folder()
        relayout(file, layout, folder, force=True, progress=progress)
    _note_use(folder)
    return folder / MODEL_FILE


def laid_out(path: Path, backend: str, progress: Progress | None = None) -> Path:
    """A .gguf file of plain rows, which run at half the speed, as its copy in layout `latent`.

    The copy is made in the cache folder, once. Where it cannot be written, one line says why, and
    the file is taken as it is. A bundle was exported into the layout that was asked for.
    """
    from plm_edge import devices

    if backend not in ("auto", "native") or not path.is_file() or described(path)[0] != "plm":
        return path
    if path.stat().st_size > devices.detect().usable_bytes:
        return path  # loading says that it does not fit
    try:
        return in_layout(path, "latent", progress)
    except (OutputError, OSError) as why:
        print(f"plm-edge: {path.name} as it is, more slowly: {why}", file=sys.stderr)
        return path


def described(file: Path) -> tuple[str, ModelSpec, dict[str, str]]:
    """Layout, spec and formats (by canonical name) of a GGUF file."""
    from plm_edge.gguf_file import GgufFile
    from plm_edge.gguf_spec import spec_from_gguf
    from plm_edge.gguf_tensors import formats_of, tensors_of

    opened = GgufFile.open(file)
    try:
        spec = spec_from_gguf(opened)
        layout, tensors = tensors_of(opened, spec)
    finally:
        opened.close()
    return layout.name, spec, formats_of(tensors)


def find(
    model: str | Path, offline: bool = False, check: Callable[[ModelSpec], object] | None = None
) -> Path:
    """The folder or file that `model` means; a hub id is downloaded, unless offline.

    `check` sees the spec of a hub id before its weights are downloaded, and may raise.
    """
    from plm_edge.checkpoint.hub import is_hub_id, resolve_model

    if check is not None and is_hub_id(str(model)):
        check(spec_of(resolve_model(model, offline, config_only=True)))
    return resolve_model(model, offline)


def to_plan(model: str, offline: bool = False) -> tuple[ModelSpec, dict[str, str] | None]:
    """The spec of what a user names, weights or not, and the formats of a GGUF file or bundle.

    Of a hub id only the config is downloaded. Besides models, the name of a shape that `synth`
    knows.
    """
    from plm_edge import head_screen
    from plm_edge.checkpoint.hub import resolve_model
    from plm_edge.exporters.synth import SHAPES

    if model in SHAPES and not Path(model).exists():
        return SHAPES[model].spec, None
    found = resolve_model(model, offline, config_only=True)
    file = found / MODEL_FILE if found.is_dir() else found
    if not file.is_file() or file.suffix != ".gguf":
        return spec_of(found), None
    _, spec, formats = described(file)
    return spec, {name: fmt for name, fmt in formats.items() if name not in head_screen.FORMATS}


def spec_of(found: Path) -> ModelSpec:
    """The spec of a bundle, a .gguf file or a Hugging Face folder, whose config alone is read."""
    if (found / MANIFEST).exists():
        from plm_edge.bundle import read_bundle

        return read_bundle(found).spec
    if found.is_file():
        from plm_edge.gguf_file import GgufFile
        from plm_edge.gguf_spec import spec_from_gguf

        file = GgufFile.open(found)
        try:
            return spec_from_gguf(file)
        finally:
            file.close()
    from plm_edge.checkpoint import read_spec

    return read_spec(found)


def cache_folder() -> Path:
    """Where exports for this machine are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "plm-edge"


def _make_cache_folder() -> None:
    folder = cache_folder()
    cure = "set XDG_CACHE_HOME to a folder you may write to"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise OutputError(f"no cache folder {folder}: {why.strerror}; {cure}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the cache folder {folder} cannot be written to; {cure}")


def _note_use(folder: Path) -> None:
    """The folder's time is that of its last use: `plm-edge cache` shows it."""
    with contextlib.suppress(OSError):  # a cache that can be read alone serves too
        os.utime(folder)


def cache_key(source: Path, quant: str | None = None) -> str:
    """Names an export: its files, their sizes and times, what they become, who made it."""
    from plm_edge import devices
    from plm_edge.plan import make_plan

    plan = make_plan(spec_of(source), devices.detect(), quant)
    home = source.resolve()
    files = [
        (path.name, status.st_size, status.st_mtime_ns)
        for path in sorted(home.iterdir())
        if path.is_file() and (status := path.stat())
    ]
    identity = [str(home), files, plan.layout, plan.quant, dict(plan.formats), plm_edge.__version__]
    return _digest(identity)


def _digest(identity: list[Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
