"""From a bundle or a GGUF file to a session, planned again for the machine that is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from plm_edge.bundle import MODEL_FILE, model_file, read_bundle
from plm_edge.cache_layout import CacheType
from plm_edge.devices import DeviceProfile, detect
from plm_edge.errors import UnsupportedError, UsageError
from plm_edge.gguf_file import GgufFile
from plm_edge.layouts import LAYOUTS, layout_of
from plm_edge.onnx_names import IN_PLACE
from plm_edge.plan import Overrides, Plan, plan_of_file, replan_for_load
from plm_edge.runtime.any_session import AnySession
from plm_edge.runtime.llama_engine import CURE, is_installed
from plm_edge.runtime.model import Model
from plm_edge.runtime.onnx_model import PROVIDERS
from plm_edge.runtime.session import Session
from plm_edge.spec import ModelSpec

BACKENDS = ("auto", "native", "llama", "onnx")


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
    """A session on a bundle folder or a .gguf file.

    backend: "native" reads GGUF files of layout `latent` and `plm`, "llama" (llama.cpp) those of
    `plm` and `deepseek2`, with `gpu_layers` on the GPU (all; of a card that was planned for, as
    many as fit), "onnx" or "onnx:PROVIDER" a bundle's ONNX files in onnxruntime; "auto" is what the
    bundle was planned for.

    What is not given comes from the bundle's plan (for a bare file: from its own formats), or from
    this machine where they differ: each difference is a line on stderr. force allows an `n_ctx`
    above the trained context, if it fits. head="screened" reads the exact rows of the likeliest
    tokens only, where the file was exported for it; activations="int8" rounds them coarser, for
    speed where the kernel set has products of bytes. Raises FileFormatError, DoesNotFit,
    UsageError, UnsupportedError.
    """
    kind, provider = parse_backend(backend)
    path = Path(path)
    if kind == "auto":
        kind = _planned_backend(path)
    if kind == "native" and not gpu_layers:
        return load_native(path, threads, n_ctx, cache_type, isa, force, head, activations)
    for name, value, only, wanted in (
        ("-ngl", gpu_layers if kind != "llama" else None, None, "llama"),
        ("--isa", isa, None, "native"),
        ("--head", head, "full", "native"),
        ("--activations", activations, "int16", "native"),
    ):
        if value != only:
            raise UnsupportedError(
                f"backend {kind}: expected no {name}, found {value}; it is for the {wanted} backend"
            )
    if kind == "llama":
        from plm_edge.runtime.load_llama import load_llama

        return load_llama(path, threads, n_ctx, cache_type, force, gpu_layers)
    from plm_edge.runtime.load_onnx import load_onnx

    return load_onnx(path, provider, threads, n_ctx, cache_type, force)


def parse_backend(backend: str) -> tuple[str, str | None]:
    """Take "onnx:cuda" apart: backend, and provider or None. UsageError for an unknown one."""
    kind, colon, provider = backend.partition(":")
    if kind not in BACKENDS or (colon and kind != "onnx"):
        raise UsageError(f"expected a backend of {', '.join(BACKENDS)}, found {backend!r}")
    if not colon:
        return kind, None
    if provider not in PROVIDERS:
        raise UsageError(
            f"expected a provider of {', '.join(PROVIDERS)}, found {provider!r}; "
            "name one behind --backend onnx:"
        )
    return kind, provider


def _planned_backend(path: Path) -> str:
    """What a bundle was planned for; of a .gguf file, what runs its layout."""
    if path.is_dir() and not (path / MODEL_FILE).exists():
        return "onnx" if (path / IN_PLACE).exists() else "native"
    if path.is_dir():
        plan = exported_plan(path)
        either = layout_of(plan.layout).backend == "native" and not is_installed()
        if not (either and plan.backend == "llama"):
            return plan.backend
        print(
            f"plm-edge: backend native, not llama as planned for {plan.target}: llama-cpp-python "
            f"is not installed; {CURE}",
            file=sys.stderr,
        )
        return "native"
    file = GgufFile.open(path)
    try:
        arch = file.metadata.get("general.architecture")
    finally:
        file.close()
    return next((known.backend for known in LAYOUTS.values() if known.arch == arch), "native")


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
    exported = exported_plan(path) if path.is_dir() else None
    model = Model(model_file(path))
    try:
        formats = {name: weight.format for name, weight in model.weights.items()}
        planned = exported or plan_of_file(
            model.spec, profile, model.layout.name, formats, model.weight_bytes
        )
        asked = Overrides(n_ctx, cache_type, threads, isa, beyond_trained=force)
        plan = replanned(model.spec, planned, profile, asked)
        cache = cast(CacheType, plan.cache_type)
        return model.session(plan.n_ctx, cache, plan.threads, isa, head, activations)
    except BaseException:
        model.close()
        raise


def replanned(spec: ModelSpec, planned: Plan, profile: DeviceProfile, asked: Overrides) -> Plan:
    """For the machine that is there; each difference is a line on stderr."""
    plan, differences = replan_for_load(spec, planned, profile, asked)
    for line in differences:
        print(f"plm-edge: {line}", file=sys.stderr)
    return plan


def exported_plan(path: Path) -> Plan:
    """The plan of a bundle with a GGUF file."""
    manifest = read_bundle(path)
    model_file(path)
    return Plan.from_dict(manifest.plan)
