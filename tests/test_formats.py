"""Formats are ggml's: the public gguf package packs and unpacks to the same bits."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from numpy.typing import NDArray

from plm_edge.errors import NumericalError, UnsupportedError, UsageError
from plm_edge.formats import FORMATS, check_finite, dequantize, format_of, quantize

NAMES = list(FORMATS)
READ_ONLY = ("Q4_K", "Q6_K")
MADE = [name for name in NAMES if name not in READ_ONLY]


def theirs(name: str, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    packed = quants.quantize(x, gguf.GGMLQuantizationType[name])
    return packed.view(np.uint8).reshape(len(x), -1)


def theirs_back(name: str, packed: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    return quants.dequantize(packed, gguf.GGMLQuantizationType[name]).reshape(-1, cols)


def random_exponents() -> NDArray[np.float32]:
    """Rows from 2^-40 to 2^15, within a row over 2^12: large, small and subnormal f16 scales."""
    rng = np.random.default_rng(1)
    row = rng.uniform(-40, 12, (400, 1))
    size = np.exp2(row + rng.uniform(-9, 3, (400, 256)))
    return (size * rng.choice([-1, 1], size.shape)).astype(np.float32)


def ties() -> NDArray[np.float32]:
    """Values half way between two quants, between two f16 and between two bf16, of both signs."""
    halves = np.arange(-128, 128, dtype=np.float32).reshape(8, 32) + np.float32(0.5)
    halves[:, 0] = 127
    eighths = halves / 8
    eighths[:, 0] = -8
    between_f16 = np.float32(1) + (2 * np.arange(256).reshape(8, 32) + 1) * np.float32(2**-11)
    between_bf16 = np.float32(1) + (2 * np.arange(256).reshape(8, 32) + 1) * np.float32(2**-8)
    small_f16 = (np.arange(256).reshape(8, 32) + np.float32(0.5)) * np.float32(2**-24)
    return np.concatenate([halves, eighths, between_f16, between_bf16, small_f16]).astype(
        np.float32
    )


def edges() -> NDArray[np.float32]:
    """Zeros of both signs, the largest value with both signs, ends of the ranges."""
    x = np.zeros((10, 32), np.float32)
    x[1] = -0.0
    x[2, 1::2] = -0.0
    x[3, 5], x[3, 20] = 2.5, -2.5
    x[4, 5], x[4, 20] = -2.5, 2.5
    x[5] = 65504
    x[6] = -65504
    x[7, 0], x[7, 1:] = 1e-30, 1e-36  # the f16 scale is 0, the quants are not
    x[8] = np.float32(6e-8) * 7  # the f16 scale is subnormal
    x[9] = np.nextafter(np.float32(65520), np.float32(0))  # the last one that f16 rounds down
    return x


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("values", [random_exponents, ties, edges])
def test_same_bits_as_gguf(name, values):
    x = values()
    packed = quantize(name, x)
    assert packed.shape == (len(x), format_of(name).row_bytes(x.shape[1]))
    np.testing.assert_array_equal(packed, theirs(name, x))
    back = dequantize(name, packed, x.shape[1])
    np.testing.assert_array_equal(
        back.view(np.uint32), theirs_back(name, packed, x.shape[1]).view(np.uint32)
    )


@pytest.mark.parametrize("name", MADE)
def test_the_comparison_would_notice_one_value(name):
    x = random_exponents()
    want = theirs(name, x).copy()
    x[7] *= np.float32(-1)
    assert not np.array_equal(quantize(name, x), want)


SCALES_AT = {"Q4_K": (0, 2), "Q6_K": (208,)}  # bytes of a block; others: 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_found_without_unpacking(name):
    form = format_of(name)
    packed = np.zeros((5, 2 * max(form.block_bytes, 64)), np.uint8)
    packed = packed[:, : packed.shape[1] // form.block_bytes * form.block_bytes].copy()
    check_finite(name, packed)
    for at in SCALES_AT.get(name, (0,)):
        bent = packed.copy()
        block = bent.reshape(5, -1, form.block_bytes)[3, -1]
        block[at + 1 : at + 2] = 0x7C
        if name in ("F32", "BF16"):
            block[-2:] = 0x80, 0x7F
        with pytest.raises(NumericalError, match=f"row 10: expected numbers of {name}"):
            check_finite(name, bent, 7)


@pytest.mark.parametrize("name", READ_ONLY)
def test_superblocks_are_read_and_not_made(name):
    with pytest.raises(UnsupportedError, match=f"{name} is read from files and not made"):
        quantize(name, np.zeros((1, 256), np.float32))


@pytest.mark.parametrize(("name", "at"), [("Q4_K", 1), ("Q4_K", 3), ("Q6_K", 209)])
def test_a_superblock_without_end_is_refused_with_its_row(name, at):
    form = format_of(name)
    packed = np.zeros((3, 2 * form.block_bytes), np.uint8)
    dequantize(name, packed, 512)
    packed[1, form.block_bytes + at] = 0x7C
    with pytest.raises(NumericalError, match="row 1"):
        dequantize(name, packed, 512)


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_pattern_is_read_as_gguf_reads_it(name):
    rng = np.random.default_rng(2)
    form = format_of(name)
    if form.block == 1:
        packed = np.arange(65536, dtype="<u2")
        kept = {"F16": 0x7C00, "BF16": 0x7F80}.get(name)
        packed = packed if kept is None else packed[packed & kept != kept]
        packed = packed[: len(packed) // 64 * 64].view(np.uint8).reshape(-1, 64)
        if name == "F32":
            packed = quantize("F32", random_exponents())
    else:
        scales = np.arange(65536, dtype="<u2")
        scales = scales[scales & 0x7C00 != 0x7C00]
        packed = rng.integers(0, 256, (len(scales), form.block_bytes), np.uint8)
        for at in SCALES_AT.get(name, (0,)):
            packed[:, at : at + 2] = rng.permutation(scales).view(np.uint8).reshape(-1, 2)
    cols = packed.shape[1] // form.block_bytes * form.block
    np.testing.assert_array_equal(
        dequantize(name, packed, cols).view(np.uint32),
        theirs_back(name, packed, cols).view(np.uint32),
    )


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused_with_its_row(name, bad):
    x = np.ones((5, 64), np.float32)
    x[3, 63] = bad
    with pytest.raises(NumericalError, match=r"row 3.*NaN or infinity"):
        quantize(name, x)


@pytest.mark.parametrize(
    ("name", "first"),
    [("F16", 65520), ("BF16", 3.3962e38), ("Q8_0", 65520 * 127), ("Q4_0", -65520 * 8)],
)
def test_what_the_format_cannot_hold_is_refused(name, first):
    x = np.ones((3, 32), np.float32)
    x[2, 9] = first
    with pytest.raises(NumericalError, match=r"row 2.*a value of size"):
        quantize(name, x)
    x[2, 9] = np.float32(first) * np.float32(0.999)
    assert np.isfinite(dequantize(name, quantize(name, x), 32)).all()


@pytest.mark.parametrize("name", MADE)
def test_stored_infinities_are_refused_with_their_row(name):
    packed = quantize(name, np.ones((4, 32), np.float32))
    packed[2, : format_of(name).block_bytes] |= {"F32": 0x7F, "BF16": 0x7F}.get(name, 0x7C)
    packed[2, :4] = 0xFF
    with pytest.raises(NumericalError, match="row 2"):
        dequantize(name, packed, 32)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_a_block_too_small_for_an_inverse_is_zero(name):
    packed = quantize(name, np.full((1, 32), 1e-40, np.float32))
    assert (dequantize(name, packed, 32) == 0).all()


def test_rows_of_half_a_block_and_unknown_names_are_refused():
    with pytest.raises(UsageError, match="multiple of 32 values for Q4_0, found 48"):
        quantize("Q4_0", np.zeros((2, 48), np.float32))
    with pytest.raises(UnsupportedError, match="found 'Q5_1'"):
        quantize("Q5_1", np.zeros((2, 32), np.float32))
    with pytest.raises(UsageError, match="expected 34 bytes"):
        dequantize("Q8_0", np.zeros((2, 18), np.uint8), 32)


def test_an_array_that_is_not_contiguous_is_packed_as_its_values_say():
    x = random_exponents()
    np.testing.assert_array_equal(quantize("Q8_0", x[::2]), quantize("Q8_0", x[::2].copy()))
    np.testing.assert_array_equal(quantize("F16", x.T), quantize("F16", x.T.copy()))


def test_type_numbers_and_sizes_are_those_of_gguf():
    for name, form in FORMATS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (form.ggml_type, form.block, form.block_bytes) == (
            kind,
            *gguf.GGML_QUANT_SIZES[kind],
        )
