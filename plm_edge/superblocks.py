"""Q4_K and Q6_K in tiles and groups: superblocks of 256 values with scales for every 32 or 16.

tile16x4: 256 columns of 16 rows stand together. A group is 4 consecutive bytes of each of the 16
rows, 64 bytes, as for the other formats.

    Q4_K, 2304 bytes: [row 0: d, dmin | row 1 | ... | row 15]                    group 0
                      [row 0: bytes 0..3 of its 12 of scales | ... | row 15]     3 groups
                      [row 0: bytes 0..3 of its 128 of quants | ... | row 15]    32 groups
    Q6_K, 3360 bytes: [d of row 0 | ... | d of row 15]                           16 f16
                      [row 0: scales 0..3 | ... | row 15]                        4 groups
                      [row 0: bytes 0..3 of the low bits | ... | row 15]         32 groups
                      [row 0: bytes 0..3 of the high bits | ... | row 15]        16 groups

group32: 256 units stand together, eight groups of 32. Their scales belong to the outputs, so an
idle unit is a run of bytes that is not read, as for the other formats.

    Q4_K, 144 * d_model bytes: [d of output 0 | d of output 1 | ...]             d_model f16
                               [dmin of output 0 | ...]                          d_model f16
                               [byte 0 of the 12 of output 0 | of output 1 | ..] d_model bytes
                               ...                                               12 of them
                               [unit 0: byte 16c + j = output 32c + j low,
                                                       output 32c + 16 + j high] d_model / 2
                               ...                                               256 units
    Q6_K, 210 * d_model bytes: [d of output 0 | ...]                             d_model f16
                               [scale 0 of output 0 | of output 1 | ...]         d_model int8
                               ...                                               16 of them
                               [unit 0: low 4 bits as in Q4_K,                   d_model / 2
                                byte 8c + j: high 2 bits of output 32c + 8k + j
                                             in bits 2k and 2k + 1]              d_model / 4
                               ...                                               256 units
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

UNITS = 256  # of a superblock
FORMATS = ("Q4_K", "Q6_K")

_TILE = 16
_QUANTS = {"Q4_K": slice(16, 144), "Q6_K": slice(0, 192)}  # bytes of a block
# Words of two bytes of a Q6_K block, its d and its scales before its quants.
_Q6_K_WORDS = np.array([104, *range(96, 104), *range(96)])


def tile(fmt: str, packed: Bytes) -> Bytes:
    """Whole tiles of packed rows (rows, row bytes) as tile16x4, 1-D."""
    tiles = packed.shape[0] // _TILE
    if fmt == "Q4_K":
        groups = packed.view("<u4").reshape(tiles, _TILE, -1, 36)
        return np.ascontiguousarray(groups.transpose(0, 2, 3, 1)).reshape(-1).view(np.uint8)
    words = packed.view("<u2").reshape(tiles, _TILE, -1, 105)[..., _Q6_K_WORDS]
    out = np.empty((tiles, words.shape[2], 105 * _TILE), "<u2")
    out[..., :_TILE] = words[..., 0].transpose(0, 2, 1)
    groups = words[..., 1:].reshape(tiles, _TILE, -1, 52, 2).transpose(0, 2, 3, 1, 4)
    out[..., _TILE:].reshape(groups.shape)[...] = groups
    return out.reshape(-1).view(np.uint8)


def untile(fmt: str, data: Bytes, rows: int) -> Bytes:
    """The inverse of `tile`: (rows, row bytes), rows being whole tiles."""
    tiles = rows // _TILE
    if fmt == "Q4_K":
        groups = data.view("<u4").reshape(tiles, -1, 36, _TILE).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(groups).reshape(rows, -1).view(np.uint8)
    stored = data.view("<u2").reshape(tiles, -1, 105 * _TILE)
    words = np.empty((tiles, _TILE, stored.shape[1], 105), "<u2")
    words[..., 104] = stored[..., :_TILE].transpose(0, 2, 1)
    groups = stored[..., _TILE:].reshape(tiles, -1, 52, _TILE, 2).transpose(0, 3, 1, 2, 4)
    words[..., _Q6_K_WORDS[1:]] = groups.reshape(tiles, _TILE, -1, 104)
    return words.reshape(rows, -1).view(np.uint8)


def group(fmt: str, packed: Bytes) -> Bytes:
    """Packed rows (outputs, row bytes) as group32, 1-D."""
    size = {"Q4_K": 144, "Q6_K": 210}[fmt]
    blocks = packed.reshape(packed.shape[0], -1, size)  # (outputs, superblocks, bytes)
    out = np.empty((blocks.shape[1], size * blocks.shape[0]), np.uint8)
    for i in range(len(out)):  # one at a time: what is in memory beside the tensor stays small
        block = np.ascontiguousarray(blocks[:, i])
        parts = [*_scales(fmt, block), _by_unit(fmt, block[:, _QUANTS[fmt]])]
        np.concatenate([part.reshape(-1) for part in parts], out=out[i])
    return out.reshape(-1)


def ungroup(fmt: str, data: Bytes, outputs: int) -> Bytes:
    """The inverse of `group`: (outputs, row bytes)."""
    size = {"Q4_K": 144, "Q6_K": 210}[fmt]
    stored = data.reshape(-1, size * outputs)
    blocks = np.empty((outputs, len(stored), size), np.uint8)
    for i, super_ in enumerate(stored):
        at = (16 if fmt == "Q4_K" else 18) * outputs
        halves = 4 if fmt == "Q4_K" else 2  # bytes of f16
        floats = super_[: halves * outputs].reshape(-1, outputs, 2).transpose(1, 0, 2)
        scales = super_[halves * outputs : at].reshape(-1, outputs).T
        ends = (0, 4, 16) if fmt == "Q4_K" else (208, 192, 208)
        blocks[:, i, ends[0] : ends[0] + halves] = floats.reshape(outputs, -1)
        blocks[:, i, ends[1] : ends[2]] = scales
        blocks[:, i, _QUANTS[fmt]] = _by_output(fmt, super_[at:], outputs)
    return blocks.reshape(outputs, -1)


def _scales(fmt: str, block: Bytes) -> list[Bytes]:
    """What stands before the units of one superblock: block (outputs, bytes)."""
    if fmt == "Q4_K":
        halves, scales = block[:, :4], block[:, 4:16]
    else:
        halves, scales = block[:, 208:], block[:, 192:208]
    floats = halves.reshape(len(block), -1, 2).transpose(1, 0, 2)
    return [np.ascontiguousarray(floats), np.ascontiguousarray(scales.T)]


def _by_unit(fmt: str, quants: Bytes) -> Bytes:
    """Quants (outputs, bytes) of one superblock, unit by unit: (256, bytes of a unit)."""
    outputs = len(quants)
    if fmt == "Q4_K":
        low = _apart(quants.reshape(outputs, 4, 1, 32), 4)
        return _nibbles(_turned(low.reshape(outputs, UNITS)))
    low = _apart(quants[:, :128].reshape(outputs, 2, 1, 64), 4)
    high = _apart(quants[:, 128:].reshape(outputs, 2, 1, 32), 2)
    pairs = _turned(high.reshape(outputs, UNITS)).reshape(UNITS, -1, 4, 8)
    nibbles = _nibbles(_turned(low.reshape(outputs, UNITS)))
    return np.concatenate([nibbles, _together(pairs, 2).reshape(UNITS, -1)], axis=1)


def _by_output(fmt: str, units: Bytes, outputs: int) -> Bytes:
    """The inverse of `_by_unit`: (outputs, bytes)."""
    rows = units.reshape(UNITS, -1)
    halves = _apart(rows[:, : outputs // 2].reshape(UNITS, -1, 1, 16), 4)
    low = _turned(halves.reshape(UNITS, outputs))  # (outputs, 256)
    if fmt == "Q4_K":
        return _together(low.reshape(outputs, 4, 2, 32), 4).reshape(outputs, -1)
    bits = _apart(rows[:, outputs // 2 :].reshape(UNITS, -1, 1, 8), 2)
    high = _turned(bits.reshape(UNITS, outputs)).reshape(outputs, 2, 4, 32)
    nibbles = _together(low.reshape(outputs, 2, 2, 64), 4)
    parts = [nibbles.reshape(outputs, -1), _together(high, 2).reshape(outputs, -1)]
    return np.concatenate(parts, axis=1)


def _nibbles(units: Bytes) -> Bytes:
    """(units, outputs) -> (units, outputs / 2): of each 32 outputs 16 low, 16 high."""
    return _together(units.reshape(len(units), -1, 2, 16), 4).reshape(len(units), -1)


def _apart(packed: Bytes, bits: int) -> Bytes:
    """(..., 1, n) bytes -> (..., 8 / bits, n) numbers of so many bits, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    numbers: Bytes = np.bitwise_and(packed >> shifts, np.uint8((1 << bits) - 1))
    return numbers


def _together(numbers: Bytes, bits: int) -> Bytes:
    """The inverse of `_apart`, without the axis of 1."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: Bytes = np.bitwise_or.reduce(numbers << shifts, axis=-2)
    return packed


def _turned(x: Bytes) -> Bytes:
    return np.ascontiguousarray(x.T)
