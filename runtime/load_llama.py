"""From a bundle or a GGUF file to a session of llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plm_edge.bundle import model_file
from plm_edge.devices import detect
from plm_edge.errors import UnsupportedError
from plm_edge.llama_cpp import layers_that_fit
from plm_edge.plan import Overrides, plan_of_file
from plm_edge.runtime.llama_engine import can_offload, check_installed
from plm_edge.runtime.llama_session import LlamaModel, LlamaSession
from plm_edge.runtime.load import exported_plan, replanned


def load_llama(
    path: Path,
    threads: int | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    force: bool = False,
    gpu_layers: int | None = None,
) -> LlamaSession:
    """A session of llama.cpp; arguments and errors as in `load`."""
    check_installed("backend llama")
    profile = detect()
    exported = exported_plan(path) if path.is_dir() else None
    model = LlamaModel(model_file(path))
    planned = exported or plan_of_file(
        model.spec, profile, model.layout.name, model.formats, model.weight_bytes
    )
    planned = replace(planned, isa=profile.isa or planned.isa)  # llama.cpp chooses its own
    asked = Overrides(n_ctx, cache_type, threads, beyond_trained=force, backend="llama")
    plan = replanned(model.spec, planned, profile, asked)
    if gpu_layers is None:
        gpu_layers = layers_that_fit(planned.target, model.spec, plan) if can_offload() else 0
    elif gpu_layers and not can_offload():
        raise UnsupportedError(
            f"-ngl {gpu_layers}: expected a llama-cpp-python that was built for a GPU, found one "
            "without; build it for yours (its README says how), or leave -ngl out"
        )
    try:
        return model.session(plan.n_ctx, plan.cache_type, plan.threads, gpu_layers)
    except BaseException:
        model.close()
        raise
