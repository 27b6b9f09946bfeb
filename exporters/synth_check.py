"""Measures which feed-forward units of a model fire, and how much the sets of two tokens share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plm_edge.kinds import ATTENTION, FFN
from plm_edge.kinds.norm import rms_norm
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

Bool = NDArray[np.bool_]


class Weights(Protocol):
    """The part of an open checkpoint that is needed here."""

    @property
    def spec(self) -> ModelSpec: ...
    def read(self, name: str) -> NDArray[np.float32]: ...
    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Activity:
    """Of one layer, over the tokens of one text."""

    zeros: float  # share of units that are exactly zero
    jaccard: float  # shared units over all units of two tokens' active sets, mean over all pairs
    chance: float  # the same for sets of this size drawn at random


def measure_activity(weights: Weights, ids: NDArray[np.int64]) -> list[Activity]:
    """One forward pass over ids (T): an Activity a layer. One layer is in memory at a time."""
    spec = weights.spec
    attention, ffn = ATTENTION[spec.attention], FFN[spec.ffn]
    layer_names = [n.split(".")[2] for n in tensor_table(spec) if n.startswith("blk.0.")]
    x = np.concatenate([weights.read_rows("token_embd.weight", i, i + 1) for i in ids.tolist()])
    activities = []
    for i in range(spec.layers):
        w = {name: weights.read(f"blk.{i}.{name}.weight") for name in layer_names}
        normed = rms_norm(x, w["attn_norm"], spec.eps).astype(np.float32)
        x = x + attention.expanded(normed, w, spec).astype(np.float32)
        normed = rms_norm(x, w["ffn_norm"], spec.eps).astype(np.float32)
        units = ffn.units(normed, w)  # (T, d_ffn)
        x = x + ffn.output(units, w).astype(np.float32)
        activities.append(_activity(units > 0.0))
    return activities


def _activity(active: Bool) -> Activity:
    """Active (T, d_ffn): which units fired for which token."""
    sets = active.astype(np.float32)
    both = sets @ sets.T  # (T, T) units that fired for both
    sizes = sets.sum(axis=1)
    pairs = np.triu_indices(len(sets), k=1)
    union = (sizes[:, None] + sizes[None, :] - both)[pairs]
    jaccard = float(np.mean(both[pairs] / np.maximum(union, 1.0)))
    share = float(active.mean())
    return Activity(1.0 - share, jaccard, share / (2.0 - share))
