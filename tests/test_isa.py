"""Every instruction set against the scalar one, and the scalar one against float64.

Integer formats, and whatever works value by value, must give the same bits in every set; sums of
floats may be taken in another order.
"""

from __future__ import annotations

import numpy as np
import pytest
from primitives import Activations, Primitives

from plm_edge.arrangements import arrange
from plm_edge.errors import UnsupportedError
from plm_edge.formats import dequantize, quantize
from plm_edge.native.kernels import find_isa, isa_table

INTEGERS, FLOATS = ("Q8_0", "Q4_0"), ("F32", "F16", "BF16")
FORMATS = (*FLOATS, *INTEGERS)
SETS = list(isa_table())
OTHERS = [name for name in SETS if name != "scalar"]
WHOLE_BLOCKS = (32, 64, 96, 160, 544)
ANY_SIZE = (1, 3, 4, 7, 8, 13, 31, 32, 33, 64, 256, 513)

# float32 sums of some hundred terms, relative to the sum of their sizes
ROUNDING = 3e-6


def sizes_of(fmt):
    return WHOLE_BLOCKS if fmt in INTEGERS else ANY_SIZE


CASES = [(fmt, cols) for fmt in FORMATS for cols in sizes_of(fmt)]


def random_rows(fmt, rows, cols, seed=0):
    """Packed rows (rows, row bytes) with every pattern of quants, and their values in float64."""
    rng = np.random.default_rng((seed, rows, cols))
    packed = quantize(fmt, rng.normal(size=(rows, cols)).astype(np.float32))
    if fmt in INTEGERS:
        blocks = packed.reshape(rows, cols // 32, -1)
        blocks[..., 2:] = rng.integers(0, 256, blocks[..., 2:].shape)  # -128 too
        scales = rng.normal(size=blocks.shape[:2]).astype(np.float16)
        scales[0, 0] = 3e-7  # subnormal
        blocks[..., :2] = scales[..., None].view(np.uint8)
    return packed, dequantize(fmt, packed, cols).astype(np.float64)


def random_x(cols, seed=1):
    """Blocks of very different sizes."""
    rng = np.random.default_rng((seed, cols))
    size = np.exp2(rng.uniform(-12, 12, -(-cols // 32)).repeat(32)[:cols])
    return (size * rng.normal(size=cols)).astype(np.float32)


def units_of(fmt, width, count, fire, seed=2):
    """A group: bytes, weights (width, count) in float64, activations of which `fire` fire."""
    rng = np.random.default_rng((seed, width, count, fire))
    packed, w = random_rows(fmt, width, count, seed)
    a = np.zeros(count, np.float32)
    a[rng.permutation(count)[:fire]] = rng.uniform(0.1, 30, fire) * rng.choice([-1, 1], fire)
    return arrange("group32", fmt, packed, count), w, a


def rounding_of(fmt, w, x):
    """The most that the 16-bit activations and the float sums can be off: (rows)."""
    error = ROUNDING * (np.abs(w) @ np.abs(x.astype(np.float64)))
    if fmt in INTEGERS:
        half_steps = np.abs(x).reshape(-1, 32).max(axis=1) / 32767 / 2
        error += 1.0001 * np.abs(w) @ half_steps.repeat(32)
    return error


def same_bits(got, want):
    """Equal but for the sign and the payload of a NaN."""
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(want[want == 0]))


def within(got, want, error):
    assert np.all(np.abs(got - want) <= error), f"off by {np.abs(got - want).max()}, {error=}"


def test_sets_are_found_by_name_and_the_last_is_the_default():
    assert SETS[0] == "scalar"
    assert find_isa() == find_isa(SETS[-1])
    with pytest.raises(UnsupportedError, match=r"expected an instruction set .*found 'avx9'"):
        find_isa("avx9")


# ---- the scalar set against float64 on the dequantized weights ----


@pytest.mark.parametrize(("fmt", "cols"), CASES)
def test_scalar_products_equal_float64(fmt, cols):
    packed, w = random_rows(fmt, 16, cols)
    x, scalar = random_x(cols), Primitives("scalar")
    error = rounding_of(fmt, w, x)
    got = scalar.tile(fmt, arrange("tile16x4", fmt, packed, cols), x)
    within(got, w @ x, error)
    rows = np.concatenate([scalar.row(fmt, row, x) for row in packed])
    within(rows, w @ x, error)
    bent = x.copy()
    bent[np.abs(x).argmax()] *= 1.5
    with pytest.raises(AssertionError):
        within(scalar.tile(fmt, arrange("tile16x4", fmt, packed, cols), bent), w @ x, error)


@pytest.mark.parametrize(("fmt", "width"), CASES)
@pytest.mark.parametrize("fire", [0, 1, 7, 32])
def test_scalar_units_equal_float64(fmt, width, fire):
    data, w, a = units_of(fmt, width, 32, fire)
    y = random_x(width, seed=3)
    error = rounding_of(fmt, w, a) + 1e-6 * np.abs(y)
    scalar = Primitives("scalar")
    within(scalar.units(fmt, data, a, y), y + w @ a, error)
    if fire:
        with pytest.raises(AssertionError):
            within(scalar.units(fmt, data, a * np.float32(1.1), y), y + w @ a, error)


@pytest.mark.parametrize(("fmt", "cols"), CASES)
def test_scalar_add_row_equals_float64(fmt, cols):
    (packed,), (w,) = random_rows(fmt, 1, cols)
    y = random_x(cols)
    got = Primitives("scalar").add_rows(fmt, packed, [0.7], y)
    within(got, y + np.float32(0.7) * w, 3e-7 * (np.abs(y) + np.abs(w)))


def test_pack_rounds_to_16_bits_of_the_largest():
    x = random_x(320)
    q, scale, total = Primitives("scalar").pack(x)
    blocks = x.reshape(-1, 32)
    np.testing.assert_allclose(scale, np.abs(blocks).max(axis=1) / 32767, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(q.reshape(-1, 32)).max(axis=1), 32767)
    np.testing.assert_array_equal(total, q.reshape(-1, 32).sum(axis=1))
    within(q.reshape(-1, 32) * scale[:, None], blocks, 0.5001 * scale[:, None])


# ---- every other set against the scalar one ----


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("fmt", "cols"), CASES)
def test_products_agree(name, fmt, cols):
    packed, w = random_rows(fmt, 16, cols)
    tile, x = arrange("tile16x4", fmt, packed, cols), random_x(cols)
    fast, scalar = Primitives(name), Primitives("scalar")
    pairs = [(fast.tile(fmt, tile, x), scalar.tile(fmt, tile, x), rounding_of(fmt, w, x))]
    for row, error in zip(packed, pairs[0][2], strict=True):
        pairs.append((fast.row(fmt, row, x), scalar.row(fmt, row, x), error))
    for got, want, error in pairs:
        if fmt in INTEGERS:
            same_bits(got, want)
        else:
            within(got, want, error)
    if fmt in INTEGERS:
        bent = tile.copy()
        bent[-1] ^= 0x70  # a quant of the last row
        with pytest.raises(AssertionError):
            same_bits(fast.tile(fmt, bent, x), scalar.tile(fmt, tile, x))
    else:
        bent = x.copy()
        bent[np.abs(x).argmax()] *= 1.1
        with pytest.raises(AssertionError):
            within(fast.tile(fmt, tile, bent), scalar.tile(fmt, tile, x), pairs[0][2])


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("fmt", "cols"), CASES)
@pytest.mark.parametrize("count", [1, 7, 8, 17])
def test_rows_are_added_with_the_same_bits(name, fmt, cols, count):
    packed, _ = random_rows(fmt, count, cols)
    a, y = np.linspace(-1, 2, count), random_x(cols)
    want = Primitives("scalar").add_rows(fmt, packed, a, y)
    same_bits(Primitives(name).add_rows(fmt, packed, a, y), want)
    with pytest.raises(AssertionError):
        same_bits(Primitives(name).add_rows(fmt, packed, a * 1.01, y), want)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("fmt", "width"), CASES)
@pytest.mark.parametrize("fire", [0, 1, 2, 3, 5, 7, 9, 11, 13, 15, 16, 17, 31, 32])
def test_units_give_the_same_bits(name, fmt, width, fire):
    data, _, a = units_of(fmt, width, 32, fire)
    y = random_x(width, seed=3)
    want = Primitives("scalar").units(fmt, data, a, y)
    same_bits(Primitives(name).units(fmt, data, a, y), want)
    if fire:
        with pytest.raises(AssertionError):
            same_bits(Primitives(name).units(fmt, data, a * np.float32(1.01), y), want)
    else:
        same_bits(want, y)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FLOATS)
@pytest.mark.parametrize("count", [1, 5, 31])
def test_a_group_of_floats_may_be_short(name, fmt, count):
    data, w, a = units_of(fmt, 37, count, count)
    got = Primitives(name).units(fmt, data, a, np.zeros(37, np.float32))
    within(got, w @ a, rounding_of(fmt, w, a))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_an_idle_unit_is_not_read(name, fmt):
    data, _, a = units_of(fmt, 64, 32, 9)
    want = Primitives(name).units(fmt, data, a, np.zeros(64, np.float32))
    spoilt = data.copy()
    rows = spoilt[-32 * (len(data) // 34) :] if fmt == "Q8_0" else spoilt[-32 * (len(data) // 36) :]
    rows = rows if fmt in INTEGERS else spoilt
    rows.reshape(32, -1)[a == 0] = 0xFF  # NaN in every float format
    assert not np.array_equal(spoilt, data)
    same_bits(Primitives(name).units(fmt, spoilt, a, np.zeros(64, np.float32)), want)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("cols", ANY_SIZE)
def test_vectors_agree(name, cols):
    fast, scalar = Primitives(name), Primitives("scalar")
    x, y = random_x(cols), random_x(cols, seed=3)
    same_bits(fast.add(0.3, x, y), scalar.add(0.3, x, y))
    within(fast.dot(x, y), scalar.dot(x, y), ROUNDING * (np.abs(x) @ np.abs(y)))
    within(scalar.dot(x, y), x.astype(np.float64) @ y, ROUNDING * (np.abs(x) @ np.abs(y)))
    halves = np.random.default_rng(cols).integers(0, 65536, cols).astype(np.uint16)
    same_bits(fast.widen(halves), scalar.widen(halves))


@pytest.mark.parametrize("name", SETS)
def test_widen_knows_every_half(name):
    halves = np.arange(65536, dtype=np.uint16)
    got = Primitives(name).widen(halves)
    with np.errstate(invalid="ignore"):  # ARM flags a signaling NaN that becomes a quiet one
        want = halves.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, want)


# ---- the edges ----


def edge_blocks():
    """Blocks of 32 whose packing is easy to get wrong, one a row."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(14, 32)).astype(np.float32)
    x[0] = 0.0
    x[1] = -0.0
    x[2, 5] = np.nan
    x[3, 31] = np.inf
    x[4, 0] = -np.inf
    x[5] *= np.float32(1e-31)  # counts as zeros
    x[6] *= np.float32(1e-38)  # subnormal
    x[7] = np.finfo(np.float32).max
    x[8] = -np.finfo(np.float32).max
    x[9] = 1.0
    x[10] = np.arange(32) + np.float32(0.5)  # with the largest 32,767: ties
    x[10, 0] = 32767
    x[11] = np.nan
    x[12] = 1.0000001e-30
    x[13, 1:] = 0.0
    return x


@pytest.mark.parametrize("name", OTHERS)
def test_pack_gives_the_same_bits(name):
    for x in (edge_blocks().reshape(-1), random_x(2048)):
        for got, want in zip(Primitives(name).pack(x), Primitives("scalar").pack(x), strict=True):
            same_bits(got, want)


def test_pack_shows_what_is_not_a_number():
    _, scale, _ = Primitives("scalar").pack(edge_blocks().reshape(-1))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scale)), [2, 3, 4, 11])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("weight", [0x00, 0xFF, 0x80, 0x7F])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(name, fmt, weight, sign):
    packed = quantize(fmt, np.ones((32, 96), np.float32))
    blocks = packed.reshape(32, 3, -1)
    blocks[..., 2:] = weight
    x = np.full(96, sign * 5.0, np.float32)
    w = dequantize(fmt, packed, 96).astype(np.float64)
    one, scale = Primitives(name), 1e-5 * np.abs(w).sum() * 5
    within(one.tile(fmt, arrange("tile16x4", fmt, packed[:16], 96), x), (w @ x)[:16], scale / 32)
    within(one.row(fmt, packed[0], x), (w @ x)[:1], scale / 32)
    group = arrange("group32", fmt, np.ascontiguousarray(packed[:, : packed.shape[1] // 3]), 32)
    got = one.units(fmt, group, x[:32], np.zeros(32, np.float32))
    within(got, w[:, :32] @ x[:32], scale / 96)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_shows(name, fmt, bad):
    packed, _ = random_rows(fmt, 64, 64)
    one, scalar, x = Primitives(name), Primitives("scalar"), random_x(64)
    x[37] = bad
    tile = arrange("tile16x4", fmt, packed[:16], 64)
    same_bits(np.isfinite(one.tile(fmt, tile, x)), np.zeros(16, bool))
    same_bits(np.isnan(one.tile(fmt, tile, x)), np.isnan(scalar.tile(fmt, tile, x)))
    assert not np.isfinite(one.row(fmt, packed[0], x))
    group, _, a = units_of(fmt, 64, 32, 3)
    a[np.flatnonzero(a)[1]] = bad
    y = random_x(64)
    got = one.units(fmt, group, a, y)
    assert not np.isfinite(got).any()
    same_bits(np.isnan(got), np.isnan(scalar.units(fmt, group, a, y)))
    assert not np.isfinite(one.add_rows(fmt, packed[0], [bad], y)).any()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_zeros_give_zeros(name, fmt):
    packed, _ = random_rows(fmt, 32, 32)
    one, zero = Primitives(name), np.zeros(32, np.float32)
    same_bits(
        one.tile(fmt, arrange("tile16x4", fmt, packed[:16], 32), zero) == 0, np.ones(16, bool)
    )
    assert one.row(fmt, packed[0], zero) == 0
    same_bits(one.units(fmt, arrange("group32", fmt, packed, 32), zero, zero), zero)


def test_activations_are_kept_as_integers_of_their_block():
    act = Activations(random_x(64))
    np.testing.assert_allclose(act.q[:32] * act.scale[0], act.x[:32], atol=float(act.scale[0]))
