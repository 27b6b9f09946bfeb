"""Squared-ReLU feed-forward without a gate: down . relu(up . x)^2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.kinds.recorder import Recorder, Weight
from plm_edge.tensor_row import TensorRow

Array = NDArray[Any]
Float64 = NDArray[np.float64]

TENSORS = (
    TensorRow(
        "model.layers.{i}.post_attention_layernorm.weight",
        "blk.{i}.ffn_norm.weight",
        "d_model",
        False,
    ),
    TensorRow(
        "model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", "d_ffn, d_model", True
    ),
    TensorRow(
        "model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", "d_model, d_ffn", True
    ),
)


# ---------------------------------------------------------------- reference: float64 numpy

# y = W_down max(0, W_up x)^2, no gate, no bias (squared ReLU: Primer, arXiv 2109.08668). x is
# (T, d_model); `w` maps "ffn_up" and "ffn_down" to the weights of one layer.


def units(x: Array, w: Mapping[str, Array]) -> Float64:
    """The hidden units of x (T, d_ffn): max(0, W_up x)^2, most of them exactly zero."""
    active: Float64 = np.square(np.maximum(x @ w["ffn_up"].T, 0.0))
    return active


def output(units: Float64, w: Mapping[str, Array]) -> Float64:
    """Hidden units (T, d_ffn) -> (T, d_model)."""
    summed: Float64 = units @ w["ffn_down"].T
    return summed


# ---------------------------------------------------------------- kernel order


def record(k: Recorder, w: Mapping[str, Weight]) -> None:
    """One layer's feed-forward as a list of kernels: x += W_down . max(0, W_up . norm(x))^2.

    Names in quotes are buffers of the workspace. With `ffn_down` laid out unit by unit an idle unit
    is a row that is not read; for few tokens both matrices pass in one kernel.
    """
    k.norm("x", w["ffn_norm"], "h")
    by_unit = w["ffn_down"].arrangement == "group32"
    if by_unit and k.few:
        k.fire(w["ffn_up"], w["ffn_down"], "h", "x")
    elif by_unit:
        k.up(w["ffn_up"], w["ffn_down"], "h")
        k.down(w["ffn_down"], "x")
    else:
        k.product(w["ffn_up"], "h", "units")
        k.pack("units", square=True)
        k.product(w["ffn_down"], "units", "x", add=True)
