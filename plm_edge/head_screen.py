"""The screened head: two tensors and a number that a file of layout `latent` may carry besides.

Rotated to the axes along which the last hidden states vary most, a third of the head's columns at 4
bits say which tiles of 16 rows may hold the likeliest token; only those are read exactly.

    coarse logits = head_screen (vocab, k) . head_screen_rotation (k, d_model) . hidden state
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plm_edge.arrangements import TILE
from plm_edge.errors import FileFormatError, UnsupportedError, short
from plm_edge.formats import format_of
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo

HEADS = ("full", "screened")  # what a session may decode with
ROTATION, COARSE = "head_screen_rotation.weight", "head_screen.weight"
FORMATS = {ROTATION: "F16", COARSE: "Q4_0"}
TILES_KEY = "plm_edge.head_screen.tiles"  # how many tiles of 16 rows are read exactly

_BLOCK = format_of(FORMATS[COARSE]).block


def width(spec: ModelSpec) -> int:
    """Columns of the coarse head: a third of d_model, in whole blocks."""
    columns = -(-spec.d_model // (3 * _BLOCK)) * _BLOCK
    if columns > spec.d_model:
        raise UnsupportedError(
            f"a screened head: expected a d_model of at least {_BLOCK}, found {spec.d_model}; "
            "use the full head"
        )
    return columns


def tiles_of(spec: ModelSpec) -> int:
    """Tiles of 16 rows that the head has."""
    return -(-spec.vocab // TILE)


def table(spec: ModelSpec) -> dict[str, TensorInfo]:
    """The two tensors, in the order of the file; no checkpoint has them."""
    shapes = {ROTATION: (width(spec), spec.d_model), COARSE: (spec.vocab, width(spec))}
    return {name: TensorInfo(name, "", shape, True) for name, shape in shapes.items()}


def tiles_to_read(metadata: Mapping[str, Any], spec: ModelSpec, where: str) -> int:
    """What TILES_KEY says. Raises FileFormatError where it is missing or cannot be."""
    tiles = metadata.get(TILES_KEY)
    if type(tiles) is not int or not 1 <= tiles <= tiles_of(spec):
        raise FileFormatError(
            f"{where}: expected {TILES_KEY} of 1 to {tiles_of(spec)}, found {short(tiles)}; "
            "export the model again"
        )
    return tiles
