"""From an ONNX bundle to a session, planned again for the machine that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plm_edge.bundle import read_bundle
from plm_edge.devices import detect
from plm_edge.errors import UnsupportedError
from plm_edge.plan import Overrides, Plan
from plm_edge.runtime.load import replanned
from plm_edge.runtime.onnx_model import CACHE_TYPE, OnnxModel, choose_provider, onnxruntime
from plm_edge.runtime.onnx_session import OnnxSession


def load_onnx(
    path: Path,
    provider: str | None = None,
    threads: int | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    force: bool = False,
) -> OnnxSession:
    """A session in onnxruntime on a bundle folder; arguments and errors as in `load`.

    provider: "cpu", "cuda" and so on; by default the first of this machine's profile that is there.
    """
    available = onnxruntime().get_available_providers()
    if cache_type not in (None, CACHE_TYPE):
        raise UnsupportedError(
            f"backend onnx: expected cache type {CACHE_TYPE} (that of the graph), found "
            f"{cache_type}; leave -ctk out"
        )
    manifest = read_bundle(path)
    here = detect()
    exported = replace(Plan.from_dict(manifest.plan), cache_type=CACHE_TYPE)
    asked = Overrides(n_ctx, None, threads, exported.isa, beyond_trained=force)
    plan = replanned(manifest.spec, exported, here, asked)
    model = OnnxModel(path, plan.threads, choose_provider(provider, available, here.onnx_providers))
    try:
        return model.session(plan.n_ctx)
    except BaseException:
        model.close()
        raise
