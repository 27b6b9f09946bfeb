"""Bytes of weights that one decode step reads: all of them once, of idle units only the scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from plm_edge import head_screen
from plm_edge.arrangements import TILE, arranged_bytes
from plm_edge.formats import format_of
from plm_edge.spec import ModelSpec
from plm_edge.tensors import head_name

_SCALE_BYTES = {"Q8_0": 2, "Q4_0": 2, "Q4_K": 16, "Q6_K": 18}  # of a block


class Stored(Protocol):
    """A weight as it lies in a file or in memory."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def arrangement(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


def token_bytes(
    weights: Mapping[str, Stored], spec: ModelSpec, idle: float, screen_tiles: int | None = None
) -> int:
    """Bytes of one step. `idle`: share of the feed-forward units that are idle.

    The scales of a group of 32 units count as read: a group without any active unit is rare.
    `screen_tiles`: tiles of the head that a screened one reads; None for the full head.
    """
    embedding = weights["token_embd.weight"]
    total = embedding.nbytes // embedding.rows  # one row, whether or not it is the head too
    for name, weight in weights.items():
        if name == "token_embd.weight" and not spec.tied:
            continue
        if name in head_screen.FORMATS and screen_tiles is None:
            continue
        total += weight.nbytes
        if weight.arrangement == "group32":
            total -= round(idle * (weight.nbytes - _scales(weight)))
    if screen_tiles is not None:
        head = weights[head_name(spec)]
        tile = arranged_bytes(head.arrangement, head.format, TILE, head.cols)
        total -= head.nbytes - screen_tiles * tile
    return total


def attention_macs(spec: ModelSpec) -> int:
    """Multiplications with one cached token in all layers: scores and sums of every head."""
    return spec.layers * spec.heads * (2 * spec.rank + spec.rope)


def _scales(weight: Stored) -> int:
    form = format_of(weight.format)
    return weight.nbytes // form.block_bytes * _SCALE_BYTES.get(form.name, 0)
