"""Layout deepseek2: a squared-ReLU MLA model in the tensors of llama.cpp's architecture deepseek2.

llama.cpp keeps a latent cache for that architecture, and knows no squared ReLU there, only SwiGLU:
down . (silu(gate . x) * (up . x)). Two things are written differently from the layout plm.

attn_kv_b is split, so that llama.cpp absorbs it: per head W_uk transposed, and W_uv.

    attn_kv_b (heads * (nope + v_head), rank)  ->  attn_k_b (heads, rank, nope), attn_v_b (heads,
                                                   v_head, rank)

ffn_up stands twice, times powers of two. With h = ffn_up . x as the model has it

    silu(s h) * h / s  =  h^2 sigmoid(s h)  ->  relu(h)^2  as s grows
    ffn_norm * t,  ffn_gate = ffn_up * g,  ffn_up * u:  t g = s,  t u = 1 / s
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import FileFormatError, short
from plm_edge.formats import format_of
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo

# What the file says of its feed-forward beside llama.cpp's keys: g and u, a number for each layer.
GATE_KEY, UP_KEY = "plm_edge.relu2.gate_factors", "plm_edge.relu2.up_factors"


@dataclass(frozen=True)
class Factors:
    """Powers of two of one layer's feed-forward; the product of all three and `norm` is 1."""

    norm: float  # t
    gate: float  # g
    up: float  # u

    @property
    def sharpness(self) -> float:
        """s: how closely the sigmoid follows a step."""
        return self.norm * self.gate


@dataclass(frozen=True)
class Part:
    """A tensor of the file that is made of one of the model's."""

    name: str
    shape: tuple[int, ...]
    format: str


def parts(info: TensorInfo, fmt: str, spec: ModelSpec) -> Iterator[Part]:
    """What is written for that weight of the model, stored there in `fmt`."""
    layer, _, kind = info.name.removesuffix(".weight").rpartition(".")
    if kind == "attn_kv_b":
        shape = (spec.heads, spec.rank, spec.nope)
        yield Part(f"{layer}.attn_k_b.weight", shape, wide(fmt))
        yield Part(f"{layer}.attn_v_b.weight", (spec.heads, spec.v_head, spec.rank), fmt)
        return
    if kind == "ffn_up":
        yield Part(f"{layer}.ffn_gate.weight", info.shape, fmt)
    yield Part(info.name, info.shape, fmt)


def kept_format(name: str) -> str:
    """The tensor of the file that has the format of that weight of the model."""
    return name.replace("attn_kv_b", "attn_v_b")


def model_formats(stored: Mapping[str, str]) -> dict[str, str]:
    """Formats of the model's tensors, from those of the file's; others are left as they are."""
    return {
        name.replace("attn_v_b", "attn_kv_b"): fmt
        for name, fmt in stored.items()
        if not name.endswith(("attn_k_b.weight", "ffn_gate.weight"))
    }


def wide(fmt: str) -> str:
    """The format of attn_k_b: its blocks would run across those of attn_kv_b."""
    return fmt if format_of(fmt).block == 1 else "F16"


def factor_keys(layers: Sequence[Factors]) -> dict[str, list[float]]:
    """Keys for the writer."""
    return {GATE_KEY: [each.gate for each in layers], UP_KEY: [each.up for each in layers]}


def factors_of(metadata: Mapping[str, Any], spec: ModelSpec, where: str) -> tuple[Factors, ...]:
    """The factors that a file states, layer by layer. Raises FileFormatError."""
    gates, ups = (_powers(metadata.get(key), key, spec, where) for key in (GATE_KEY, UP_KEY))
    with np.errstate(all="ignore"):  # what leaves float64 is no power of two either
        products = gates * ups
        norms = 1 / np.sqrt(products)
    if not _are_powers(norms):
        raise FileFormatError(
            f"{where}: expected {GATE_KEY} times {UP_KEY} to be powers of four, found "
            f"{short(products)}; export the model again"
        )
    layers = zip(norms.tolist(), gates.tolist(), ups.tolist(), strict=True)
    return tuple(Factors(norm, gate, up) for norm, gate, up in layers)


def _powers(found: object, key: str, spec: ModelSpec, where: str) -> NDArray[np.float64]:
    """The numbers of a key, one for each layer."""
    if (
        isinstance(found, np.ndarray)
        and found.dtype.kind in "fiu"
        and found.shape == (spec.layers,)
    ):
        numbers = found.astype(np.float64)
        if _are_powers(numbers):
            return numbers
    raise FileFormatError(
        f"{where}: expected {key} to be powers of two above 0 for each of {spec.layers} layers, "
        f"found {short(found)}; export the model again"
    )


def _are_powers(numbers: NDArray[np.float64]) -> bool:
    """Powers of two: their mantissa is 0.5, which that of a NaN, an infinity or a 0 is not."""
    return bool((np.frexp(numbers)[0] == 0.5).all())
