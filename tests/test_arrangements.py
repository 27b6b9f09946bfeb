"""Arrangements are permutations: exact inverses, and the bytes that the drawings promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from plm_edge.arrangements import ARRANGEMENTS, arrange, arranged_bytes, padded_shape, restore
from plm_edge.errors import FileFormatError, UnsupportedError, UsageError
from plm_edge.formats import FORMATS, dequantize, format_of

NAMES = list(FORMATS)


def packed_matrix(fmt: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Random bytes: an arrangement may not care what the numbers are."""
    rng = np.random.default_rng(rows * cols)
    return rng.integers(0, 256, (rows, format_of(fmt).row_bytes(cols)), np.uint8)


@pytest.mark.parametrize("fmt", NAMES)
@pytest.mark.parametrize("arr", ARRANGEMENTS)
@pytest.mark.parametrize(("rows", "cols"), [(32, 1), (64, 3), (96, 33), (160, 2)])
def test_restore_gives_back_the_bytes(arr, fmt, rows, cols):
    cols *= max(32, format_of(fmt).block)
    packed = packed_matrix(fmt, rows, cols)
    data = arrange(arr, fmt, packed, cols)
    assert data.shape == (arranged_bytes(arr, fmt, rows, cols),)
    np.testing.assert_array_equal(restore(arr, fmt, data, rows, cols), packed)
    data = data.copy()  # rows are a view
    data[len(data) // 2] ^= 1
    assert not np.array_equal(restore(arr, fmt, data, rows, cols), packed)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 3), (17, 30), (33, 6)])
@pytest.mark.parametrize("arr", ARRANGEMENTS)
@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16"])
def test_floats_of_any_shape(arr, fmt, rows, cols):
    packed = packed_matrix(fmt, rows, cols)
    data = arrange(arr, fmt, packed, cols)
    np.testing.assert_array_equal(restore(arr, fmt, data, rows, cols), packed)


@pytest.mark.parametrize("fmt", ["Q8_0", "Q4_0"])
def test_tiles_of_blocks_byte_by_byte(fmt):
    rows, cols, size = 21, 96, format_of(fmt).block_bytes
    packed = packed_matrix(fmt, rows, cols)
    data = arrange("tile16x4", fmt, packed, cols)
    seen = 0
    for tile in range(2):
        for column in range(3):
            base = (tile * 3 + column) * 16 * size
            for r in range(16):
                row = 16 * tile + r
                pad = [0, 0] + [0x88 if fmt == "Q4_0" else 0] * (size - 2)
                block = packed[row, column * size :][:size] if row < rows else pad
                for k in range(2):
                    assert data[base + 2 * r + k] == block[k]
                for k in range(size - 2):
                    assert data[base + 32 + k // 4 * 64 + 4 * r + k % 4] == block[2 + k]
                seen += size
    assert seen == len(data)


@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16"])
def test_tiles_of_floats_value_by_value(fmt):
    rows, cols, size = 18, 6, format_of(fmt).block_bytes
    packed = packed_matrix(fmt, rows, cols).view(f"<u{size}")
    data = arrange("tile16x4", fmt, packed.view(np.uint8), cols).view(f"<u{size}")
    assert len(data) == 32 * 8
    for row in range(32):
        for col in range(8):
            want = packed[row, col] if row < rows and col < cols else 0
            assert data[row // 16 * 16 * 8 + col // 4 * 64 + row % 16 * 4 + col % 4] == want


def test_groups_of_q8_0_byte_by_byte():
    outputs, units = 64, 96
    packed = packed_matrix("Q8_0", outputs, units)
    data = arrange("group32", "Q8_0", packed, units)
    for group in range(3):
        base = group * 34 * outputs
        for output in range(outputs):
            block = packed[output, group * 34 :][:34]
            assert (data[base + 2 * output :][:2] == block[:2]).all()
            for n in range(32):
                assert data[base + 2 * outputs + n * outputs + output] == block[2 + n]


def test_groups_of_q4_0_nibble_by_nibble():
    outputs, units = 64, 96
    packed = packed_matrix("Q4_0", outputs, units)
    data = arrange("group32", "Q4_0", packed, units)
    for group in range(3):
        base = group * 18 * outputs
        for output in range(outputs):
            block = packed[output, group * 18 :][:18]
            assert (data[base + 2 * output :][:2] == block[:2]).all()
            for n in range(32):
                value = block[2 + n % 16] >> 4 * (n // 16) & 15
                byte = base + 2 * outputs + n * outputs // 2 + output // 32 * 16 + output % 16
                assert data[byte] >> 4 * (output % 32 // 16) & 15 == value


def quant_of(fmt: str, block: NDArray[np.uint8], n: int) -> int:
    """Value n of a superblock, as ggml-quants.c takes it apart."""
    if fmt == "Q4_K":
        return int(block[16 + n // 64 * 32 + n % 32]) >> 4 * (n // 32 % 2) & 15
    half, k, i = n // 128, n // 32 % 4, n % 32
    low = int(block[64 * half + 32 * (k % 2) + i]) >> 4 * (k // 2) & 15
    return low | (int(block[128 + 32 * half + i]) >> 2 * k & 3) << 4


SUPERS = {
    "Q4_K": (144, 16, (0, 1, 2, 3), range(4, 16)),
    "Q6_K": (210, 18, (208, 209), range(192, 208)),
}


@pytest.mark.parametrize("fmt", SUPERS)
def test_tiles_of_superblocks_byte_by_byte(fmt):
    rows, cols, (size, _, halves, scales) = 21, 512, SUPERS[fmt]
    packed = packed_matrix(fmt, rows, cols)
    data = arrange("tile16x4", fmt, packed, cols)
    quants = range(16, 144) if fmt == "Q4_K" else range(192)
    grouped = [*halves, *scales, *quants] if fmt == "Q4_K" else [*scales, *quants]
    for row in range(rows):
        for column in range(2):
            base = (row // 16 * 2 + column) * 16 * size
            block = packed[row, column * size :][:size]
            if fmt == "Q6_K":
                assert (data[base + 2 * (row % 16) :][:2] == block[208:]).all()
                base += 32
            for k, byte in enumerate(grouped):
                assert data[base + k // 4 * 64 + 4 * (row % 16) + k % 4] == block[byte]
    assert len(data) == 32 * 2 * size


@pytest.mark.parametrize("fmt", SUPERS)
def test_groups_of_superblocks_quant_by_quant(fmt):
    outputs, units, (size, before, halves, scales) = 64, 512, SUPERS[fmt]
    packed = packed_matrix(fmt, outputs, units)
    data = arrange("group32", fmt, packed, units)
    unit_bytes = outputs // 2 if fmt == "Q4_K" else outputs // 4 * 3
    for column in range(2):
        base = column * size * outputs
        for output in range(outputs):
            block = packed[output, column * size :][:size]
            for k, byte in enumerate(halves):
                assert data[base + (k // 2 * outputs + output) * 2 + k % 2] == block[byte]
            for k, byte in enumerate(scales):
                assert data[base + (len(halves) + k) * outputs + output] == block[byte]
            for n in range(256):
                row = data[base + before * outputs + n * unit_bytes :][:unit_bytes]
                got = int(row[output // 32 * 16 + output % 16]) >> 4 * (output // 16 % 2) & 15
                if fmt == "Q6_K":
                    high = row[outputs // 2 + output // 32 * 8 + output % 8]
                    got |= (int(high) >> 2 * (output // 8 % 4) & 3) << 4
                assert got == quant_of(fmt, block, n)
    assert len(data) == 2 * size * outputs


def test_groups_of_floats_are_the_transpose():
    packed = packed_matrix("F16", 5, 7)
    data = arrange("group32", "F16", packed, 7)
    np.testing.assert_array_equal(data.view("<u2").reshape(7, 5), packed.view("<u2").T)


@pytest.mark.parametrize("fmt", NAMES)
def test_tiles_may_be_arranged_in_blocks_of_rows(fmt):
    packed = packed_matrix(fmt, 100, 512)
    parts = [arrange("tile16x4", fmt, packed[start : start + 48], 512) for start in (0, 48, 96)]
    np.testing.assert_array_equal(np.concatenate(parts), arrange("tile16x4", fmt, packed, 512))


@pytest.mark.parametrize("fmt", NAMES)
def test_padding_rows_are_zeros_of_the_format(fmt):
    packed = packed_matrix(fmt, 3, 256)
    data = arrange("tile16x4", fmt, packed, 256)
    pads = restore("tile16x4", fmt, data, 16, 256)[3:]
    np.testing.assert_array_equal(dequantize(fmt, pads, 256), np.zeros((13, 256)))
    if fmt == "Q4_0":
        assert (pads.reshape(13, 8, 18)[..., 2:] == 0x88).all()


@pytest.mark.parametrize("fmt", NAMES)
@pytest.mark.parametrize("arr", ARRANGEMENTS)
def test_the_declared_shape_has_the_same_bytes(arr, fmt):
    padded_rows, padded_cols = padded_shape(arr, fmt, 96, 512)
    plain = padded_rows * format_of(fmt).row_bytes(padded_cols)
    assert plain == arranged_bytes(arr, fmt, 96, 512)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="outputs in groups of 32 for Q4_0, found 40"):
        arranged_bytes("group32", "Q4_0", 40, 64)
    with pytest.raises(UsageError, match="outputs in groups of 32 for Q6_K, found 40"):
        arranged_bytes("group32", "Q6_K", 40, 256)
    with pytest.raises(UsageError, match="units in groups of 256 for Q4_K, found 128"):
        arranged_bytes("group32", "Q4_K", 64, 128)
    with pytest.raises(UsageError, match="found 40"):
        arranged_bytes("group32", "Q8_0", 64, 40)
    with pytest.raises(UnsupportedError, match="found 'tile8'"):
        arranged_bytes("tile8", "Q4_0", 64, 64)
    with pytest.raises(FileFormatError, match="expected 4352 bytes"):
        restore("tile16x4", "Q8_0", np.zeros(4351, np.uint8), 64, 64)
    with pytest.raises(UsageError, match="expected 68 bytes a row"):
        arrange("rows", "Q8_0", np.zeros((4, 34), np.uint8), 64)
