"""What a decode step reads of the weights: every byte once, but of idle units only the scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from plm_edge import head_screen
from plm_edge.arrangements import TILE, arranged_bytes
from plm_edge.formats import format_of
from plm_edge.runtime.recorder import MappedWeight
from plm_edge.spec import ModelSpec
from plm_edge.tensors import head_name

_SCALE_BYTES = {"Q8_0": 2, "Q4_0": 2, "Q4_K": 16, "Q6_K": 18}  # of a block


def step_bytes(
    weights: Mapping[str, MappedWeight],
    spec: ModelSpec,
    unit_rows: NDArray[Any],
    screen_tiles: int | None = None,
) -> int:
    """Bytes of one step. `unit_rows` (slices,): rows of `ffn_down` that its kernels read.

    The scales of a group of 32 units count as read: a group without any active unit is rare.
    `screen_tiles`: tiles of the head that a screened one reads; None for the full head.
    """
    embedding = weights["token_embd.weight"]
    total = embedding.data.nbytes // embedding.rows  # one row, whether or not it is the head too
    for name, weight in weights.items():
        if name == "token_embd.weight" and not spec.tied:
            continue
        if name in head_screen.FORMATS and screen_tiles is None:
            continue
        total += weight.data.nbytes
        if weight.arrangement == "group32":
            idle = 1 - float(unit_rows.sum()) / (spec.layers * spec.d_ffn)
            total -= round(idle * (weight.data.nbytes - _scales(weight)))
    if screen_tiles is not None:
        head = weights[head_name(spec)]
        tile = arranged_bytes(head.arrangement, head.format, TILE, head.cols)
        total -= head.data.nbytes - screen_tiles * tile
    return total


def _scales(weight: MappedWeight) -> int:
    form = format_of(weight.format)
    return weight.data.nbytes // form.block_bytes * _SCALE_BYTES.get(form.name, 0)
