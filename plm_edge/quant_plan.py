"""Which format each tensor gets: the same in every layout, since a layout only permutes."""

from __future__ import annotations

from plm_edge import head_screen
from plm_edge.arrangements import GROUP
from plm_edge.formats import format_of
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo, head_name, tensor_table

FALLBACK = "F16"  # for a matrix that is not whole blocks


def choose_formats(
    spec: ModelSpec, quant: str, pure: bool = False, screened: bool = False
) -> dict[str, str]:
    """Canonical name -> format.

    The tensor that makes the logits is Q8_0 beside Q4_0, unless `pure` (llama-quantize's word) asks
    for one format everywhere. Norms stay F32. `screened`: with a screened head too.
    """
    head = "Q8_0" if quant == "Q4_0" and not pure else quant
    formats = {
        name: _format(info, head if name == head_name(spec) else quant)
        for name, info in tensor_table(spec).items()
    }
    return formats | (head_screen.FORMATS if screened else {})


def _format(info: TensorInfo, quant: str) -> str:
    form = format_of(quant)
    if not info.quantize:
        return "F32"
    rows, cols = info.shape
    # group32 keeps 32 outputs together, so there the rows are whole blocks too
    grouped = info.name.endswith("ffn_down.weight") and form.block > 1
    if not form.fits(cols) or (grouped and rows % GROUP):
        return FALLBACK
    return quant
