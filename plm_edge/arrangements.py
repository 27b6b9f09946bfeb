"""Arrangements: orders in which the blocks of a tensor stand in a file.

An arrangement permutes what a format has packed and never computes a number anew: `restore` gives
back the bytes that `arrange` took. All numbers are little-endian.

rows: ggml's own order, row after row.

tile16x4: dense matrices. 16 rows stand together; 64 bytes hold 4 consecutive bytes of each.

    rows 0..15  | columns 0..31 | columns 32..63 | ...      then rows 16..31, and so on
                    |
    Q8_0, 544 bytes: [d of row 0 | d of row 1 | ... | d of row 15]             16 f16
                     [row 0: q0 q1 q2 q3 | row 1: q0..q3 | ... | row 15]       64 bytes, group 0
                     [row 0: q4 q5 q6 q7 | row 1: q4..q7 | ... | row 15]       64 bytes, group 1
                     ...                                                       8 groups
    Q4_0, 288 bytes: [d of row 0 | ... | d of row 15]                          16 f16
                     [row 0: byte 0..3 | row 1: byte 0..3 | ... | row 15]      64 bytes, group 0
                     ...                                                       4 groups
                     ggml's bytes as they are: byte j has value j low, value j + 16 high
    Q4_K, Q6_K:      256 columns at a time, as superblocks.py draws them
    F32, F16, BF16:  columns 0..3: [row 0: 4 values | row 1 | ... | row 15], then columns 4..7 ...

    The rows are padded with zero rows to a multiple of 16 (Q4_0: scale 0, bytes 0x88), the columns
    of F32, F16 and BF16 with zeros to a multiple of 4. Tiles stand one after the other, so a matrix
    may be arranged in blocks of any multiple of 16 rows.

group32: ffn_down, (d_model outputs, d_ffn units). What a unit contributes is one run of bytes, so
that an idle unit is not read.

    units 0..31 | units 32..63 | ...
        |
    Q8_0, 34 * d_model bytes:  [d of output 0 | d of output 1 | ... ]          d_model f16
                               [unit 0: q of output 0, 1, 2, ... ]             d_model int8
                               ...                                             32 units
    Q4_0, 18 * d_model bytes:  [d of output 0 | ... ]                          d_model f16
                               [unit 0: byte 16c + j = output 32c + j low,
                                                       output 32c + 16 + j high]   d_model / 2
                               ...                                             32 units
    Q4_K, Q6_K:                256 units at a time, eight groups behind the scales they share, as
                               superblocks.py draws them
    F32, F16, BF16:            [unit 0: d_model values], [unit 1], ...         the transpose

    d_model is a multiple of 32 and d_ffn of whole blocks for all but F32, F16 and BF16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plm_edge import superblocks
from plm_edge.errors import FileFormatError, UnsupportedError, UsageError
from plm_edge.formats import Format, format_of

Bytes = NDArray[np.uint8]

ARRANGEMENTS = ("rows", "tile16x4", "group32")
TILE = 16  # rows
COLUMNS = 4  # of a tile of floats
GROUP = 32  # units

_GROUPS_AT_ONCE = 16  # of group32 in working memory beside the tensor: 1 MB at 2,048 outputs


def padded_shape(arr: str, fmt: str, rows: int, cols: int) -> tuple[int, int]:
    """(rows, cols) of a plain tensor of exactly as many bytes; what a file declares."""
    form = format_of(fmt)
    if arr == "rows":
        padded = (rows, cols)
    elif arr == "tile16x4":
        padded = (_up(rows, TILE), _up(cols, COLUMNS) if form.block == 1 else cols)
    elif arr == "group32":
        padded = (rows, cols) if form.name in superblocks.FORMATS else (cols, rows)
        if cols % form.block:
            raise UsageError(f"expected units in groups of {form.block} for {fmt}, found {cols}")
        if form.block > 1 and rows % GROUP:
            raise UsageError(f"expected outputs in groups of {GROUP} for {fmt}, found {rows}")
    else:
        raise UnsupportedError(f"expected one of {', '.join(ARRANGEMENTS)}, found {arr!r}")
    form.row_bytes(padded[1])
    return padded


def arranged_bytes(arr: str, fmt: str, rows: int, cols: int) -> int:
    """Bytes of a (rows, cols) matrix in that arrangement, padding included."""
    padded_rows, padded_cols = padded_shape(arr, fmt, rows, cols)
    return padded_rows * format_of(fmt).row_bytes(padded_cols)


def arrange(arr: str, fmt: str, packed: Bytes, cols: int) -> Bytes:
    """Packed rows (rows, row bytes) to the arrangement's bytes, 1-D."""
    form = format_of(fmt)
    rows, row_bytes = packed.shape
    if row_bytes != form.row_bytes(cols):
        raise UsageError(f"expected {form.row_bytes(cols)} bytes a row, found {row_bytes}")
    nbytes = arranged_bytes(arr, fmt, rows, cols)
    packed = np.ascontiguousarray(packed)
    if arr == "tile16x4":
        packed = _pad(form, packed, cols)
        out = _tile(form, packed)
    elif arr == "group32":
        out = _group(form, packed)
    else:
        out = packed.reshape(-1)
    assert out.size == nbytes
    return out


def restore(arr: str, fmt: str, data: Bytes, rows: int, cols: int) -> Bytes:
    """The arrangement's bytes back to packed rows (rows, row bytes)."""
    form = format_of(fmt)
    nbytes = arranged_bytes(arr, fmt, rows, cols)
    if data.size != nbytes:
        raise FileFormatError(
            f"expected {nbytes} bytes for ({rows}, {cols}) {fmt} as {arr}, found {data.size}"
        )
    data = np.ascontiguousarray(data).reshape(-1)
    if arr == "tile16x4":
        padded_rows, padded_cols = padded_shape(arr, fmt, rows, cols)
        packed = _untile(form, data, padded_rows, padded_cols)
        return np.ascontiguousarray(packed[:rows, : form.row_bytes(cols)])
    if arr == "group32":
        return _ungroup(form, data, rows, cols)
    return data.reshape(rows, form.row_bytes(cols))


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _pad(form: Format, packed: Bytes, cols: int) -> Bytes:
    """Zero rows up to a multiple of 16, zero columns of floats up to a multiple of 4."""
    rows, row_bytes = packed.shape
    padded_rows, padded_cols = padded_shape("tile16x4", form.name, rows, cols)
    shape = (padded_rows, form.row_bytes(padded_cols))
    if shape == packed.shape:
        return packed
    padded = np.zeros(shape, np.uint8)
    padded[:rows, :row_bytes] = packed
    if form.name == "Q4_0":
        padded[rows:].reshape(padded_rows - rows, -1, form.block_bytes)[..., 2:] = 0x88
    return padded


def _quad(form: Format) -> str:
    """Four consecutive values of a float format as one number, which numpy moves in one go."""
    return {2: "<u8", 4: "<c16"}[form.block_bytes]


def _tile(form: Format, packed: Bytes) -> Bytes:
    if form.name in superblocks.FORMATS:
        return superblocks.tile(form.name, packed)
    tiles = packed.shape[0] // TILE
    if form.block == 1:
        quads = packed.view(_quad(form)).reshape(tiles, TILE, -1)
        return np.ascontiguousarray(quads.transpose(0, 2, 1)).reshape(-1).view(np.uint8)
    # A block is words of two bytes: its scale, then pairs of words, which are 4 bytes of quants.
    pairs = form.block_bytes // 4
    blocks = packed.view("<u2").reshape(tiles, TILE, -1, 1 + 2 * pairs)
    columns = blocks.shape[2]
    out = np.empty((tiles, columns, TILE * (1 + 2 * pairs)), "<u2")
    out[..., :TILE] = blocks[..., 0].transpose(0, 2, 1)
    quants = blocks[..., 1:].reshape(tiles, TILE, columns, pairs, 2).transpose(0, 2, 3, 1, 4)
    out[..., TILE:].reshape(tiles, columns, pairs, TILE, 2)[...] = quants
    return out.reshape(-1).view(np.uint8)


def _untile(form: Format, data: Bytes, rows: int, cols: int) -> Bytes:
    if form.name in superblocks.FORMATS:
        return superblocks.untile(form.name, data, rows)
    tiles = rows // TILE
    if form.block == 1:
        quads = data.view(_quad(form)).reshape(tiles, -1, TILE)
        turned = np.ascontiguousarray(quads.transpose(0, 2, 1))
        return turned.reshape(rows, -1).view(np.uint8)
    pairs, columns = form.block_bytes // 4, cols // form.block
    columns_of_tiles = data.view("<u2").reshape(tiles, columns, TILE * (1 + 2 * pairs))
    blocks = np.empty((tiles, TILE, columns, 1 + 2 * pairs), "<u2")
    blocks[..., 0] = columns_of_tiles[..., :TILE].transpose(0, 2, 1)
    quants = columns_of_tiles[..., TILE:].reshape(tiles, columns, pairs, TILE, 2)
    blocks[..., 1:] = quants.transpose(0, 3, 1, 2, 4).reshape(tiles, TILE, columns, 2 * pairs)
    return blocks.reshape(rows, -1).view(np.uint8)


def _group(form: Format, packed: Bytes) -> Bytes:
    if form.name in superblocks.FORMATS:
        return superblocks.group(form.name, packed)
    outputs = packed.shape[0]
    if form.block == 1:
        values = packed.view(f"<u{form.block_bytes}")
        return np.ascontiguousarray(values.T).reshape(-1).view(np.uint8)
    blocks = packed.reshape(outputs, -1, form.block_bytes)
    out = np.empty((blocks.shape[1], form.block_bytes * outputs), np.uint8)
    for start in range(0, len(out), _GROUPS_AT_ONCE):
        groups = slice(start, start + _GROUPS_AT_ONCE)
        scales = np.ascontiguousarray(blocks[:, groups, :2]).view("<u2")[..., 0]
        out[groups, : 2 * outputs].view("<u2")[...] = scales.T
        quants = blocks[:, groups, 2:]  # (outputs, groups, bytes)
        if form.name == "Q4_0":
            quants = np.concatenate(
                [quants & 15, quants >> 4], axis=2
            )  # (outputs, groups, 32 units)
        units = np.ascontiguousarray(quants.transpose(1, 2, 0))  # (groups, 32 units, outputs)
        if form.name == "Q4_0":
            halves = units.reshape(*units.shape[:2], -1, 2, 16)  # 16 outputs low, 16 high
            units = halves[..., 0, :] | halves[..., 1, :] << np.uint8(4)
        out[groups, 2 * outputs :] = units.reshape(len(units), -1)
    return out.reshape(-1)


def _ungroup(form: Format, data: Bytes, outputs: int, units: int) -> Bytes:
    if form.name in superblocks.FORMATS:
        return superblocks.ungroup(form.name, data, outputs)
    if form.block == 1:
        values = data.view(f"<u{form.block_bytes}").reshape(units, outputs)
        return np.ascontiguousarray(values.T).view(np.uint8)
    stored = data.reshape(units // GROUP, form.block_bytes * outputs)
    blocks = np.empty((outputs, len(stored), form.block_bytes), np.uint8)
    for start in range(0, len(stored), _GROUPS_AT_ONCE):
        groups = slice(start, start + _GROUPS_AT_ONCE)
        scales = np.ascontiguousarray(stored[groups, : 2 * outputs].view("<u2").T)
        blocks[:, groups, :2] = scales.view(np.uint8).reshape(outputs, -1, 2)
        quants = stored[groups, 2 * outputs :].reshape(
            -1, GROUP, (form.block_bytes - 2) * outputs // GROUP
        )
        if form.name == "Q4_0":
            halves = quants.reshape(*quants.shape[:2], -1, 1, 16)  # 16 bytes of 32 outputs
            quants = np.concatenate([halves & 15, halves >> 4], axis=3).reshape(-1, GROUP, outputs)
        rows = np.ascontiguousarray(quants.transpose(2, 0, 1))  # (outputs, groups, 32 units)
        if form.name == "Q4_0":
            rows = rows[..., :16] | rows[..., 16:] << np.uint8(4)
        blocks[:, groups, 2:] = rows
    return blocks.reshape(outputs, -1)
