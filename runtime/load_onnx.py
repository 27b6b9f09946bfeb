"""From an ONNX bundle to a session, planned again for the machine that is there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from plm_edge.bundle import read_bundle
from plm_edge.devices import detect
from plm_edge.errors import UnsupportedError
from plm_edge.plan import Overrides, Plan, replan_for_load
from plm_edge.runtime.onnx_model import CACHE_TYPE, OnnxModel, onnxruntime
from plm_edge.runtime.onnx_session import OnnxSession


def load_onnx(
    path: Path,
    provider: str = "cpu",
    threads: int | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    force: bool = False,
) -> OnnxSession:
    """A session in onnxruntime on a bundle folder; arguments and errors as in `load`."""
    onnxruntime()
    if cache_type not in (None, CACHE_TYPE):
        raise UnsupportedError(
            f"backend onnx: expected cache type {CACHE_TYPE} (that of the graph), found "
            f"{cache_type}; leave -ctk out"
        )
    manifest = read_bundle(path)
    exported = replace(Plan.from_dict(manifest.plan), cache_type=CACHE_TYPE)
    asked = Overrides(n_ctx, None, threads, exported.isa, beyond_trained=force)
    plan, differences = replan_for_load(manifest.spec, exported, detect(), asked)
    for line in differences:
        print(f"plm-edge: {line}", file=sys.stderr)
    model = OnnxModel(path, plan.threads, provider)
    try:
        return model.session(plan.n_ctx)
    except BaseException:
        model.close()
        raise
