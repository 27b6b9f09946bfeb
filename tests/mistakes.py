"""Mistakes one can make in this architecture, each as a patch of the reference's functions.

    monkeypatch.setattr(*MISTAKES["half-split rope"])

A comparison that does not notice them compares nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.kinds import mla, relu2

_rope_interleaved = mla.rope_interleaved


def _half_split(x: NDArray[Any], theta: float) -> NDArray[Any]:
    """RoPE as Hugging Face's Llama has it: pair i holds values i and i + rope / 2."""
    order = np.arange(x.shape[1]).reshape(2, -1).T.ravel()
    return _rope_interleaved(x[:, order], theta)[:, np.argsort(order)]


MISTAKES: dict[str, tuple[ModuleType, str, Callable[..., Any]]] = {
    "no norm on the latent": (mla, "rms_norm", lambda x, weight, eps: x),
    "scale of the nope width": (mla, "softmax_scale", lambda spec: spec.nope**-0.5),
    "half-split rope": (mla, "rope_interleaved", _half_split),
    "rope not turned": (mla, "rope_interleaved", lambda x, theta: x),
    "relu without its square": (relu2, "units", lambda x, w: np.maximum(x @ w["ffn_up"].T, 0)),
    "all tokens seen": (mla, "causal_softmax", lambda s: np.exp(s) / np.exp(s).sum(1)[:, None]),
}
