"""From a bundle or a GGUF file to a session, planned again for the machine that is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from plm_edge.bundle import MODEL_FILE, read_bundle
from plm_edge.cache_layout import CacheType
from plm_edge.devices import detect
from plm_edge.errors import FileFormatError, UnsupportedError
from plm_edge.onnx_names import IN_PLACE
from plm_edge.plan import Overrides, Plan, plan_of_file, replan_for_load
from plm_edge.runtime.any_session import AnySession
from plm_edge.runtime.model import Model
from plm_edge.runtime.session import Session

BACKENDS = ("auto", "native", "onnx")


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
) -> AnySession:
    """A session on a bundle folder or a .gguf file (layout `latent` or `plm`).

    backend: "native" reads the bundle's GGUF file, "onnx" or "onnx:PROVIDER" its ONNX files in
    onnxruntime, "auto" what is there, native first.

    What is not given comes from the bundle's plan (for a bare file: from its own formats), or from
    this machine where they differ: each difference is a line on stderr. force allows an `n_ctx`
    above the trained context, if it fits. head="screened" reads the exact rows of the likeliest
    tokens only, where the file was exported for it; activations="int8" rounds them coarser, for
    speed where the kernel set has products of bytes. Raises FileFormatError, DoesNotFit,
    UsageError, UnsupportedError.
    """
    kind, _, provider = backend.partition(":")
    if kind not in BACKENDS or (provider and kind != "onnx"):
        raise UnsupportedError(f"expected a backend of {', '.join(BACKENDS)}, found {backend!r}")
    path = Path(path)
    only_onnx = (path / IN_PLACE).exists() and not (path / MODEL_FILE).exists()
    if kind == "native" or (kind == "auto" and not only_onnx):
        return load_native(path, threads, n_ctx, cache_type, isa, force, head, activations)
    from plm_edge.runtime.load_onnx import load_onnx

    for name, value, only in (
        ("--isa", isa, None),
        ("--head", head, "full"),
        ("--activations", activations, "int16"),
    ):
        if value != only:
            raise UnsupportedError(
                f"backend onnx: expected no {name}, found {value}; it is for the native backend"
            )
    return load_onnx(path, provider or None, threads, n_ctx, cache_type, force)


def load_native(
    path: Path,
    threads: int | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    isa: str | None = None,
    force: bool = False,
    head: str = "full",
    activations: str = "int16",
) -> Session:
    """A session of our own kernels; arguments and errors as in `load`."""
    profile = detect()  # before the model: what is taken from here on is in the budget
    exported = _exported_plan(path) if path.is_dir() else None
    model = Model(path / MODEL_FILE if path.is_dir() else path)
    try:
        formats = {name: weight.format for name, weight in model.weights.items()}
        plan, differences = replan_for_load(
            model.spec,
            exported
            or plan_of_file(model.spec, profile, model.layout.name, formats, model.weight_bytes),
            profile,
            Overrides(n_ctx, cache_type, threads, isa, beyond_trained=force),
        )
        for line in differences:
            print(f"plm-edge: {line}", file=sys.stderr)
        cache = cast(CacheType, plan.cache_type)
        return model.session(plan.n_ctx, cache, plan.threads, isa, head, activations)
    except BaseException:
        model.close()
        raise


def _exported_plan(path: Path) -> Plan:
    manifest = read_bundle(path)
    if not any(file.name == MODEL_FILE for file in manifest.files):
        raise FileFormatError(f"{path}: expected {MODEL_FILE}, found none; export the model again")
    return Plan.from_dict(manifest.plan)
