"""The tensor table: for each weight its two names, its shape and whether it may be quantized."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from plm_edge.kinds import ATTENTION, FFN
from plm_edge.spec import ModelSpec
from plm_edge.tensor_row import TensorRow

__all__ = ["TENSORS_GLOBAL", "TensorInfo", "TensorRow", "head_name", "tensor_table"]

TENSORS_GLOBAL = (
    TensorRow("model.embed_tokens.weight", "token_embd.weight", "vocab, d_model", True),
    TensorRow("model.norm.weight", "output_norm.weight", "d_model", False),
)
_HEAD = TensorRow("lm_head.weight", "output.weight", "vocab, d_model", True)


@dataclass(frozen=True)
class TensorInfo:
    """One weight of one model: a TensorRow with its layer and numbers filled in."""

    name: str
    hf_name: str
    shape: tuple[int, ...]  # (rows, cols) or (n,)
    quantize: bool


def head_name(spec: ModelSpec) -> str:
    """The canonical name of the tensor that makes the logits."""
    return TENSORS_GLOBAL[0].name if spec.tied else _HEAD.name


def tensor_table(spec: ModelSpec) -> dict[str, TensorInfo]:
    """Canonical name -> TensorInfo for every weight of the model, in the order of the file."""
    sizes = asdict(spec)
    return {info.name: info for info in _rows(spec, sizes)}


def _rows(spec: ModelSpec, sizes: dict[str, Any]) -> Iterator[TensorInfo]:
    for row in TENSORS_GLOBAL:
        yield _info(row, sizes)
    if not spec.tied:
        yield _info(_HEAD, sizes)
    layer = (*ATTENTION[spec.attention].TENSORS, *FFN[spec.ffn].TENSORS)
    for i in range(spec.layers):
        for row in layer:
            yield _info(row, sizes, i)


def _info(row: TensorRow, sizes: dict[str, Any], i: int | None = None) -> TensorInfo:
    shape = tuple(
        sum(math.prod(sizes[word.strip()] for word in term.split("*")) for term in dim.split("+"))
        for dim in row.shape.split(",")
    )
    return TensorInfo(row.name.format(i=i), row.hf.format(i=i), shape, row.quantize)
