"""Layout deepseek2: the tensors that are not the model's own, and the powers of two in them.

plm_edge/deepseek2.py says what they are. What is chosen here, for each layer:

s, the sharpness. A unit is h^2 sigmoid(s h) in place of relu(h)^2, off by h^2 sigmoid(-s |h|): at
most 0.483 / s^2, and only where |h| is a few 1/s. For h of density p at 0 the root mean square of
that is sqrt(1.2 p / s^5). With h normal of deviation sigma, relative to the units' own root mean
square of 1.22 sigma^2, that is 0.57 / (s sigma)^2.5: s is the power of two from which s sigma
reaches SHARPNESS. sigma is what the weights make of an input of norm sqrt(d_model):
sigma^2 = mean over units of sum_j (ffn_up_ij ffn_norm_j)^2.

u, how much of the 1 / s stands in ffn_up, the rest t = 1 / (s u) in ffn_norm. A block's scale is an
F16: times a power of two it stays exact down to 2^-14 and loses bits below. t makes activations
small instead, which llama.cpp rounds to blocks of 8 bits with a scale in F16 as well. So u is as
small as keeps 99 % of the scales exact, or what keeps the gate's, s^2 u, in the range of F16.
Without block scales u = 1: ffn_up then is the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from plm_edge.deepseek2 import Factors, factor_keys, wide
from plm_edge.errors import NumericalError
from plm_edge.exporters.source import Source
from plm_edge.formats import dequantize, format_of, quantize
from plm_edge.tensors import tensor_table

Packed = NDArray[np.uint8]

# s sigma at least: errors of 1.7e-5 of the units' size where activations have 16 bits or more
# (SHARPNESS of no block), 1e-4 where they have 8.
SHARPNESS, SHARPNESS_OF_BLOCKS = 64.0, 32.0
MOST = 65504.0 / 2  # of a scale or value in F16, with room to spare
EXACT = 2.0**-14  # the smallest F16 that has all its bits
_SMALL_SHARE = 0.01  # of the scales may lose bits
_ROWS = 1024  # of a matrix as floats at once
# Where the scales of a block stand, in words of 2 bytes; Q4_K has one for what it subtracts too.
_SCALES = {
    "Q8_0": slice(0, 1),
    "Q4_0": slice(0, 1),
    "Q4_K": slice(0, 2),
    "Q6_K": slice(104, 105),
}


def as_deepseek2(source: Source, formats: Mapping[str, str]) -> Source:
    """The source with the tensors of the layout, made when they are asked for.

    `formats` are those of the model's own tensors. Reads every ffn_up here, once.
    """
    spec, table = source.spec, tensor_table(source.spec)

    @lru_cache(maxsize=1)
    def whole(name: str) -> Packed:
        """A matrix as it is stored elsewhere; the file wants each twice in a row."""
        rows = table[name].shape[0]
        starts = range(0, rows, _ROWS)
        read = source.packed_rows
        return np.concatenate(
            [read(name, formats[name], at, min(at + _ROWS, rows)) for at in starts]
        )

    def norm(layer: str) -> NDArray[np.float32]:
        name = f"{layer}.ffn_norm.weight"
        values: NDArray[np.float32] = source.packed_rows(name, "F32", 0, 1).view("<f4")[0]
        return values

    def factors_of(layer: str) -> Factors:
        name = f"{layer}.ffn_up.weight"
        try:
            return choose_factors(formats[name], whole(name), norm(layer))
        except NumericalError as why:
            raise NumericalError(f"layout deepseek2, {name}: {why}") from None

    layers = [f"blk.{i}" for i in range(spec.layers)]
    factors = {layer: factors_of(layer) for layer in layers}

    def made(layer: str) -> dict[str, Callable[[int, int], Packed]]:
        """Kind of tensor -> its rows."""
        each, up, kv_b = factors[layer], f"{layer}.ffn_up.weight", f"{layer}.attn_kv_b.weight"
        heads = (spec.heads, spec.nope + spec.v_head)

        def scaled_up(factor: float) -> Callable[[int, int], Packed]:
            return lambda start, stop: scaled(formats[up], whole(up)[start:stop], factor)

        def k_b(start: int, stop: int) -> Packed:
            values = dequantize(formats[kv_b], whole(kv_b), spec.rank).reshape(*heads, -1)
            turned = values[:, : spec.nope].transpose(0, 2, 1).reshape(-1, spec.nope)
            return quantize(wide(formats[kv_b]), turned[start:stop], first_row=start)

        def v_b(start: int, stop: int) -> Packed:
            values = whole(kv_b).reshape(*heads, -1)[:, spec.nope :]
            return values.reshape(spec.heads * spec.v_head, -1)[start:stop]

        return {
            "attn_k_b": k_b,
            "attn_v_b": v_b,
            "ffn_gate": scaled_up(each.gate),
            "ffn_up": scaled_up(each.up),
            "ffn_norm": lambda start, stop: quantize("F32", norm(layer)[None] * each.norm),
        }

    def packed_rows(name: str, fmt: str, start: int, stop: int) -> Packed:
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        ours = made(layer).get(kind) if layer in factors else None
        if ours is None:
            return source.packed_rows(name, fmt, start, stop)
        return ours(start, stop)

    vocabulary = {**source.vocabulary, **factor_keys(list(factors.values()))}
    return replace(source, packed_rows=packed_rows, vocabulary=vocabulary)


def choose_factors(fmt: str, packed: Packed, norm: NDArray[np.float32]) -> Factors:
    """Of one layer: `packed` is its ffn_up, `norm` (d_model,) its ffn_norm; see the top."""
    blocks = format_of(fmt).block > 1
    sigma = _deviation(fmt, packed, norm)
    sharp = _power_of_two((SHARPNESS_OF_BLOCKS if blocks else SHARPNESS) / sigma) if sigma else 1.0
    sizes = _sizes(fmt, packed)
    up = 1.0
    if blocks and len(sizes):
        small = np.partition(sizes, k := int(_SMALL_SHARE * len(sizes)))[k]
        up = min(1.0, _power_of_two(EXACT / float(small)))
    while len(sizes) and sharp**2 * up * float(sizes.max()) > MOST:
        up /= 2
    up = max(up, 1 / sharp)
    if len(sizes) and sharp**2 * up * float(sizes.max()) > MOST:
        raise NumericalError(
            f"expected values or scales that stay in F16 times {sharp:g}, found "
            f"{float(sizes.max()):.6g}; use --layout plm"
        )
    return Factors(norm=1 / (sharp * up), gate=sharp**2 * up, up=up)


def scaled(fmt: str, packed: Packed, factor: float) -> Packed:
    """Packed rows times a power of two: in block formats the same quants under other scales."""
    form = format_of(fmt)
    if form.block == 1:
        return quantize(fmt, dequantize(fmt, packed, packed.shape[1] // form.block_bytes) * factor)
    out: Packed = packed.copy()
    scales = _scales(fmt, out)
    scales[...] = (scales.astype(np.float32) * np.float32(factor)).astype(np.float16)
    return out


def _scales(fmt: str, packed: Packed) -> NDArray[np.float16]:
    """The F16 numbers that all others of a block are times, a view: (rows, blocks, 1 or 2)."""
    words = packed.view("<f2").reshape(len(packed), -1, format_of(fmt).block_bytes // 2)
    return words[..., _SCALES[fmt]]


def _sizes(fmt: str, packed: Packed) -> NDArray[np.float32]:
    """How large the F16 numbers are that a factor meets, but for zeros; (n,), none: no limit."""
    form = format_of(fmt)
    if fmt in ("F32", "BF16"):
        return np.empty(0, np.float32)
    numbers = packed.view("<f2") if form.block == 1 else _scales(fmt, packed)
    sizes: NDArray[np.float32] = np.abs(numbers[numbers != 0].astype(np.float32))
    return sizes


def _deviation(fmt: str, packed: Packed, norm: NDArray[np.float32]) -> float:
    """Of ffn_up . x over all units, for x of independent values with the deviations `norm`."""
    total = 0.0
    for start in range(0, len(packed), _ROWS):
        rows = dequantize(fmt, packed[start : start + _ROWS], len(norm))
        total += float(np.square(rows * norm, dtype=np.float64).sum())
    return math.sqrt(total / len(packed))


def _power_of_two(x: float) -> float:
    """The smallest that is not below x."""
    return float(2.0 ** math.ceil(math.log2(x)))
