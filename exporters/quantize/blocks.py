"""How each block format chooses its scales, and its bytes; plm_edge/formats.py draws the blocks.

A format stores `block` columns together, in parts that have a scale each. Where a block has several
parts their scales are small integers times one or two F16, which are fixed first, from all of the
block; each part then tries integers beside its best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import NumericalError
from plm_edge.exporters.quantize.feedback import Float32, Scales

Packed = NDArray[np.uint8]
Ints = NDArray[np.int64]
_NOTHING = np.zeros((1, 1), np.float32)


@dataclass(frozen=True)
class Shared:
    """What the parts of a block share: one or two factors of their integers."""

    scale: Float32  # (rows,), values of F16
    least: Float32  # (rows,)


class Blocks(Protocol):
    """One format."""

    part: int  # columns
    parts: int  # of a block
    limits: tuple[int, int]  # of a quant

    def shared(self, target: Float32, weights: Float32) -> Shared:
        """Of a block's columns (rows, part * parts)."""

    def scales(self, target: Float32, weights: Float32, shared: Shared) -> Scales:
        """Ways to store one part (rows, part)."""

    def pack(self, quants: NDArray[np.int16], codes: Ints, shared: Shared) -> Packed:
        """Bytes of a block from quants (rows, block) and codes (rows, parts, ...)."""


class Simple:
    """Q4_0 and Q8_0: one F16 scale for 32 columns."""

    part, parts = 32, 1

    def __init__(self, limits: tuple[int, int], tries: NDArray[np.float64]) -> None:
        self.limits = limits
        self._tries = (tries / limits[0]).astype(np.float32)  # of the value of largest size

    def shared(self, target: Float32, weights: Float32) -> Shared:
        """Nothing."""
        return Shared(_NOTHING[0], _NOTHING[0])

    def scales(self, target: Float32, weights: Float32, shared: Shared) -> Scales:
        """The largest value at the end of the range or a little beside, of either sign."""
        scale = to_f16(_extreme(target)[:, None] * self._tries)
        codes = scale.astype("<f2").view("<u2").astype(np.int64)
        return Scales(scale, _NOTHING, codes[:, :, None])

    def pack(self, quants: NDArray[np.int16], codes: Ints, shared: Shared) -> Packed:
        """Scale, then the quants."""
        scale = codes[:, :, 0].astype("<u2").view(np.uint8)
        if self.limits == (-8, 7):
            nibbles = (quants + 8).astype(np.uint8)
            return np.concatenate([scale, nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)
        return np.concatenate([scale, quants.astype(np.int8).view(np.uint8)], axis=1)


class Q4K:
    """Eight parts of 32 columns, each with 6 bits of scale and 6 of least."""

    part, parts, limits = 32, 8, (0, 15)
    _beside = np.array([(scale, least) for scale in (-1, 0, 1) for least in (-1, 0, 1)])

    def shared(self, target: Float32, weights: Float32) -> Shared:
        """The largest scale and least of the parts, in 63 steps."""
        found = [
            fit_line(target[:, at : at + self.part], weights[at : at + self.part])
            for at in range(0, target.shape[1], self.part)
        ]
        largest: Float32 = np.max(found, axis=0)  # (2, rows)
        scale, least = to_f16(largest / np.float32(63))
        return Shared(scale, least)

    def scales(self, target: Float32, weights: Float32, shared: Shared) -> Scales:
        """The integers nearest to the best line, and those beside them."""
        line = np.stack(fit_line(target, weights), axis=1)  # (rows, 2)
        steps = np.stack([shared.scale, shared.least], axis=1)
        nearest = np.rint(line * _inverse(steps)).astype(np.int64)
        codes = np.clip(nearest[:, None, :] + self._beside, 0, 63)  # (rows, n, 2)
        values = codes.astype(np.float32) * steps[:, None, :]
        return Scales(values[..., 0], values[..., 1], codes)

    def pack(self, quants: NDArray[np.int16], codes: Ints, shared: Shared) -> Packed:
        """The two F16, 12 bytes of codes, 128 of quants (plm_edge/native/quantize_k.h)."""
        scale, least = codes[..., 0].astype(np.uint8), codes[..., 1].astype(np.uint8)  # (rows, 8)
        twelve = [
            scale[:, :4] | scale[:, 4:] >> 4 << 6,
            least[:, :4] | least[:, 4:] >> 4 << 6,
            scale[:, 4:] & 15 | (least[:, 4:] & 15) << 4,
        ]
        halves = quants.astype(np.uint8).reshape(len(quants), 4, 2, 32)
        nibbles = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(quants), -1)
        return np.concatenate(
            [_f16_bytes(shared.scale), _f16_bytes(shared.least), *twelve, nibbles], axis=1
        )


class Q6K:
    """Sixteen parts of 16 columns, each with an int8 scale."""

    part, parts, limits = 16, 16, (-32, 31)
    _tries = np.linspace(0.85, 1.1, 6, dtype=np.float32)

    def shared(self, target: Float32, weights: Float32) -> Shared:
        """The scale of largest size becomes -128 steps."""
        each = np.stack(
            [
                _extreme(target[:, at : at + self.part])
                for at in range(0, target.shape[1], self.part)
            ],
            axis=1,
        )
        step = _extreme(each) / np.float32(self.limits[0] * -128)
        return Shared(to_f16(step), _NOTHING[0])

    def scales(self, target: Float32, weights: Float32, shared: Shared) -> Scales:
        """Integers around the one that puts the largest value at the end of the range."""
        steps = _extreme(target) / np.float32(self.limits[0]) * _inverse(shared.scale)
        codes = np.clip(np.rint(steps[:, None] * self._tries), -128, 127).astype(np.int64)
        scale = codes.astype(np.float32) * shared.scale[:, None]
        return Scales(scale, _NOTHING, codes[:, :, None])

    def pack(self, quants: NDArray[np.int16], codes: Ints, shared: Shared) -> Packed:
        """Low 4 bits, high 2 bits, scales, the F16 (plm_edge/native/quantize_k.h)."""
        rows = len(quants)
        q = (quants + 32).astype(np.uint8).reshape(rows, 2, 4, 32)
        low = (q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4).reshape(rows, -1)
        high = (q >> 4 << (2 * np.arange(4, dtype=np.uint8))[:, None]).sum(axis=2, dtype=np.uint8)
        scales = codes[..., 0].astype(np.int8).view(np.uint8)
        return np.concatenate([low, high.reshape(rows, -1), scales, _f16_bytes(shared.scale)], 1)


BLOCKS: dict[str, Blocks] = {
    # Both signs: the range of Q4_0 is lopsided, and the other end may fit a row better.
    "Q4_0": Simple(
        (-8, 7), np.concatenate([np.linspace(0.75, 1.1, 15), -np.linspace(0.95, 1.25, 9)])
    ),
    "Q8_0": Simple((-127, 127), np.array([0.98, 1.0])),
    "Q4_K": Q4K(),
    "Q6_K": Q6K(),
}

_STRETCH = np.linspace(-1.0, 1.0, 11, dtype=np.float32)  # of 15 steps, tried for each line


def fit_line(target: Float32, weights: Float32) -> tuple[Float32, Float32]:
    """(scale, least) of each row (rows, cols) of least weighted error with quants of 0 to 15.

    Several ranges are rounded, and through each the best line is laid (least squares).
    """
    low = np.minimum(target.min(axis=1), np.float32(0.0))
    span: Float32 = np.maximum(target.max(axis=1) - low, np.float32(1e-30))
    best = np.full(len(target), np.inf, np.float32)
    scale, least = span / np.float32(15), -low
    total = weights.sum()
    x = target @ weights
    for stretch in _STRETCH:
        steps = (np.float32(15) + stretch) / span
        q = np.clip(np.rint((target - low[:, None]) * steps[:, None]), 0, 15)
        first, second, product = q @ weights, np.square(q) @ weights, (q * target) @ weights
        spread = total * second - first * first
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (total * product - first * x) / spread
            offset = (first * product - second * x) / spread
            through_zero = product / second  # a least below 0 cannot be stored
            slope = np.where(offset < 0.0, through_zero, slope)
            offset = np.maximum(offset, np.float32(0.0))
            error = np.square(slope[:, None] * q - offset[:, None] - target) @ weights
        better = (error < best) & (slope > 0.0)  # NaN is not better
        best = np.where(better, error, best)
        scale, least = np.where(better, slope, scale), np.where(better, offset, least)
    return scale, least


def to_f16(x: Float32) -> Float32:
    """Rounded to F16; NumericalError where one is beyond its range."""
    with np.errstate(over="ignore"):
        rounded: Float32 = x.astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise NumericalError("expected scales of at most 65504, found a larger one")
    return rounded


def _extreme(x: Float32) -> Float32:
    """The value of largest size in each row, with its sign."""
    found: Float32 = x[np.arange(len(x)), np.abs(x).argmax(axis=1)]
    return found


def _inverse(x: Float32) -> Float32:
    with np.errstate(divide="ignore"):
        inverse = np.float32(1.0) / x
    finite: Float32 = np.where(np.isfinite(inverse), inverse, np.float32(0.0))
    return finite


def _f16_bytes(x: Float32) -> Packed:
    return x.astype("<f2")[:, None].view(np.uint8)
