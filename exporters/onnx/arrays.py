"""The weights as the arrays that lie in model.onnx.data, packed as the operators read them.

    F32, F16, BF16   (rows, cols) as they are
    Q4_0, Q8_0       integers and, behind them, one float32 scale for each 32 of a row

The integers are those of the GGUF file, in another order of bits. MatMulNBits takes unsigned ones
around 8 or 128, (rows, blocks, 16 or 32 bytes), the even value of a byte in its low bits;
DequantizeLinear takes the same as int4 or int8, (rows, cols).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from plm_edge.formats import FORMATS, quantize
from plm_edge.spec import ModelSpec

Bytes = NDArray[np.uint8]

BLOCK = 32  # values that share a scale
BITS = {"Q4_0": 4, "Q8_0": 8}
FLOATS: dict[str, int] = {
    "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16,
}  # fmt: skip
PAGE, LINE = 4096, 64  # an array of at least a page starts at a page, so that it can be mapped
_VALUE_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.INT4: 4,
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """One array of the data file."""

    name: str
    dtype: int  # TensorProto's number
    shape: tuple[int, ...]
    offset: int = 0  # bytes, in the file

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _VALUE_BITS[self.dtype] // 8


def place(arrays: list[Array]) -> list[Array]:
    """The same arrays one behind the other, each at a page, or small ones at a cache line."""
    placed, at = [], 0
    for array in arrays:
        step = PAGE if array.nbytes >= PAGE else LINE
        at = -(-at // step) * step
        placed.append(replace(array, offset=at))
        at += array.nbytes
    return placed


def matrix(name: str, fmt: str, rows: int, cols: int, standard: bool) -> list[Array]:
    """The arrays of a matrix: itself, or integers and scales."""
    if fmt in FLOATS:
        return [Array(name, FLOATS[fmt], (rows, cols))]
    bits, blocks = BITS[fmt], cols // BLOCK
    if standard:
        kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
        integers = Array(f"{name}.q", kind, (rows, cols))
    else:
        integers = Array(f"{name}.q", TensorProto.UINT8, (rows, blocks, BLOCK * bits // 8))
    return [integers, Array(f"{name}.scales", TensorProto.FLOAT, (rows, blocks))]


def integers(fmt: str, packed: Bytes, standard: bool) -> tuple[Bytes, NDArray[np.float32]]:
    """Packed rows of ggml (rows, row bytes) -> integers (rows, bytes), scales (rows, blocks)."""
    rows = len(packed)
    blocks = packed.reshape(rows, -1, FORMATS[fmt].block_bytes)
    scales = blocks[..., :2].copy().view("<f2")[..., 0].astype(np.float32)
    q = blocks[..., 2:]
    if fmt == "Q8_0":
        return (q if standard else q ^ np.uint8(0x80)).reshape(rows, -1), scales
    values = np.concatenate([q & 15, q >> 4], axis=-1)  # (rows, blocks, 32), around 8
    pairs: Bytes = values[..., 0::2] | values[..., 1::2] << 4
    return (pairs ^ np.uint8(0x88) if standard else pairs).reshape(rows, -1), scales


def heads_of(spec: ModelSpec, kv_b: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """kv_b (heads * (nope + v_head), rank) -> its two products, as (heads, in, out).

    Absorbing multiplies a query (nope) with W_uk, unabsorbing latents (rank) with W_uv transposed.
    """
    heads = kv_b.reshape(spec.heads, spec.nope + spec.v_head, spec.rank)
    return heads[:, : spec.nope], heads[:, spec.nope :].transpose(0, 2, 1)


def head_arrays(name: str, fmt: str, shape: tuple[int, int, int], standard: bool) -> list[Array]:
    """The arrays of one product for each head, of shape (heads, in, out).

    Quantized: one matrix (n * out, in) for each n heads together, or of all heads, (heads * out,
    in), where the operators are the standard's.
    """
    heads, inner, outer = shape
    if fmt in FLOATS:
        return [Array(name, FLOATS[fmt], shape)]
    if standard:
        return matrix(name, fmt, heads * outer, inner, standard)
    group = heads_together(heads)
    made = [
        matrix(f"{name}.{k}", fmt, group * outer, inner, standard) for k in range(heads // group)
    ]
    return [array for group_of in made for array in group_of]


def heads_together(heads: int) -> int:
    """How many heads one MatMulNBits multiplies, each with the matrices of all of them.

    Only its own product of each is kept; with one token that is faster than a node for each head,
    with many slower, and four together are no faster (docs/decisions.md).
    """
    return math.gcd(heads, 2)


def head_pieces(
    name: str, fmt: str, products: NDArray[Any], standard: bool
) -> Iterator[tuple[str, Bytes]]:
    """The bytes of those arrays, in their order; products (heads, in, out)."""
    if fmt in FLOATS:
        flat = np.ascontiguousarray(products).reshape(1, -1)
        yield name, quantize(fmt, flat)
        return
    rows = products.transpose(0, 2, 1)  # (heads, out, in)
    count = 1 if standard else len(rows) // heads_together(len(rows))
    for k, part in enumerate(rows.reshape(count, -1, rows.shape[-1])):
        packed = quantize(fmt, np.ascontiguousarray(part))
        q, scales = integers(fmt, packed, standard)
        inner = name if standard else f"{name}.{k}"
        yield f"{inner}.q", q
        yield f"{inner}.scales", scales.view(np.uint8)
