"""Which format each tensor gets: the same in every layout, since a layout only permutes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from plm_edge import head_screen
from plm_edge.arrangements import GROUP
from plm_edge.formats import format_of
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo, head_name, tensor_table

FALLBACK = "F16"  # for a matrix that is not whole blocks
_SMALLER_BLOCKS = {"Q4_K": "Q8_0", "Q6_K": "Q8_0"}  # tried before
_HEADS = {"Q4_0": "Q8_0", "Q4_K": "Q6_K"}  # its rows decide the token


def choose_formats(
    spec: ModelSpec, quant: str, pure: bool = False, screened: bool = False
) -> dict[str, str]:
    """Canonical name -> format.

    The tensor that makes the logits is Q8_0 beside Q4_0 and Q6_K beside Q4_K, unless `pure`
    (llama-quantize's word) asks for one format everywhere. Norms stay F32.
    `screened`: with a screened head too.
    """
    head = quant if pure else _HEADS.get(quant, quant)
    formats = {
        name: fitting_format(info, head if name == head_name(spec) else quant)
        for name, info in tensor_table(spec).items()
    }
    return formats | (head_screen.FORMATS if screened else {})


def main_format(spec: ModelSpec, formats: Mapping[str, str]) -> str:
    """What names a mixture: the format of most weights, the narrower one of two."""
    counts: dict[str, int] = {}
    for name, info in tensor_table(spec).items():
        fmt = formats[name]
        counts[fmt] = counts.get(fmt, 0) + prod(info.shape)
    return max(counts, key=lambda fmt: (counts[fmt], -_bits(fmt)))


def _bits(fmt: str) -> float:
    return 8 * format_of(fmt).block_bytes / format_of(fmt).block


def fitting_format(info: TensorInfo, quant: str) -> str:
    """`quant`, or what a tensor is stored as whose rows are not whole blocks of it."""
    form = format_of(quant)
    if not info.quantize:
        return "F32"
    rows, cols = info.shape
    # group32 keeps 32 outputs together, so there the rows are whole blocks too
    grouped = info.name.endswith("ffn_down.weight") and form.block > 1
    if not form.fits(cols) or (grouped and rows % GROUP):
        smaller = _SMALLER_BLOCKS.get(quant)
        return FALLBACK if smaller is None else fitting_format(info, smaller)
    return quant
