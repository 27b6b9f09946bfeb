"""Q4_K and Q6_K in every instruction set: the scalar one against float64, the others against it."""

from __future__ import annotations

import numpy as np
import pytest
from primitives import LARGEST, Primitives
from test_isa import OTHERS, SETS, random_x, same_bits, within

from plm_edge.arrangements import arrange
from plm_edge.formats import dequantize, format_of
from plm_edge.native import kernels
from plm_edge.native.kernels import find_isa, kernels_of, set_for

FORMATS = ("Q4_K", "Q6_K")
COLS = (256, 512, 1280)
WIDTHS = (32, 64, 96, 128, 160, 544)
FIRES = (0, 1, 2, 3, 5, 8, 13, 16, 17, 31, 32)
HALVES = {"Q4_K": (0, 2), "Q6_K": (208,)}  # bytes of a block that begin an f16
QUANTS = {"Q4_K": slice(16, 144), "Q6_K": slice(0, 192)}

# float32 sums of some hundred terms, relative to the sum of their sizes
ROUNDING = 3e-6


def random_rows(fmt, rows, cols, seed=0):
    """Packed rows with every pattern of quants and scales, and their values in float64."""
    rng = np.random.default_rng((seed, rows, cols))
    form = format_of(fmt)
    packed = rng.integers(0, 256, (rows, form.row_bytes(cols)), np.uint8)
    blocks = packed.reshape(rows, -1, form.block_bytes)
    for at in HALVES[fmt]:
        scales = rng.normal(size=blocks.shape[:2]).astype(np.float16)
        scales[0, 0] = 3e-7  # subnormal
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return packed, dequantize(fmt, packed, cols).astype(np.float64)


def sizes_of(fmt, packed, cols):
    """Of the products: of Q4_K both terms of each weight, which may cancel."""
    if fmt == "Q6_K":
        return np.abs(dequantize(fmt, packed, cols)).astype(np.float64)
    no_quants = packed.copy()
    no_quants.reshape(len(packed), -1, 144)[..., 16:] = 0
    least = -dequantize(fmt, no_quants, cols).astype(np.float64)
    return np.abs(dequantize(fmt, packed, cols) + least) + np.abs(least)


def rounding_of(fmt, packed, x):
    """The most that the 16-bit activations and the float sums can be off: (rows)."""
    sizes = sizes_of(fmt, packed, len(x))
    half_steps = np.abs(x).reshape(-1, 32).max(axis=1) / LARGEST / 2
    w = np.abs(dequantize(fmt, packed, len(x)).astype(np.float64))
    return ROUNDING * (sizes @ np.abs(x.astype(np.float64))) + 1.0001 * w @ half_steps.repeat(32)


def group_of(fmt, width, fire, part, seed=2):
    """256 units: bytes, weights (width, 256), the packed rows, activations of one part."""
    rng = np.random.default_rng((seed, width, fire, part))
    packed, w = random_rows(fmt, width, 256, seed)
    a = np.zeros(32, np.float32)
    a[rng.permutation(32)[:fire]] = rng.uniform(0.1, 30, fire) * rng.choice([-1, 1], fire)
    return arrange("group32", fmt, packed, 256), w, packed, a


# ---- the scalar set against float64 on the dequantized weights ----


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("cols", COLS)
def test_scalar_products_equal_float64(fmt, cols):
    packed, w = random_rows(fmt, 16, cols)
    x, scalar = random_x(cols), Primitives("scalar")
    error = rounding_of(fmt, packed, x)
    tile = arrange("tile16x4", fmt, packed, cols)
    got = scalar.tile(fmt, tile, x)
    within(got, w @ x, error)
    same_bits(np.concatenate([scalar.row(fmt, row, x) for row in packed]), got)
    bent = x.copy()
    bent[np.abs(x).argmax()] *= 1.5
    with pytest.raises(AssertionError):
        within(scalar.tile(fmt, tile, bent), w @ x, error)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("fire", [0, 1, 7, 32])
@pytest.mark.parametrize("part", [0, 3, 4, 7])
def test_scalar_units_equal_float64(fmt, width, fire, part):
    data, w, packed, a = group_of(fmt, width, fire, part)
    y, scalar = random_x(width, seed=3), Primitives("scalar")
    units = np.zeros(256, np.float32)
    units[32 * part : 32 * (part + 1)] = a
    error = rounding_of(fmt, packed, units) + 1e-6 * np.abs(y)
    within(scalar.part_units(fmt, data, part, a, y), y + w @ units, error)
    if fire:
        with pytest.raises(AssertionError):
            within(scalar.part_units(fmt, data, part, a * np.float32(1.1), y), y + w @ units, error)


@pytest.mark.parametrize("fmt", FORMATS)
def test_scalar_added_rows_equal_float64(fmt):
    packed, w = random_rows(fmt, 3, 512)
    a, y = [0.7, -1.3, 2.1], random_x(512)
    got = Primitives("scalar").add_rows(fmt, packed, a, y)
    sizes = np.abs(y) + np.abs(a) @ sizes_of(fmt, packed, 512)
    within(got, y + np.array(a, np.float32) @ w, 5e-7 * sizes)
    bare = Primitives("scalar").add_rows(fmt, packed[1], [1.0], np.zeros(512, np.float32))
    np.testing.assert_array_equal(bare, w[1])  # an embedding is the dequantized row


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("part", range(8))
def test_units_as_floats_are_the_dequantized_weights(name, fmt, part):
    data, w, _, _ = group_of(fmt, 160, 0, part)
    for first, last in ((0, 32), (32, 160), (128, 160), (0, 160)):
        got = Primitives(name).part_rows(fmt, data, 160, part, first, last)
        want = w[first:last, 32 * part : 32 * (part + 1)].T
        np.testing.assert_array_equal(got, want)


# ---- every other set against the scalar one ----


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("cols", COLS)
def test_products_agree(name, fmt, cols):
    packed, _ = random_rows(fmt, 16, cols)
    tile, x = arrange("tile16x4", fmt, packed, cols), random_x(cols)
    fast, scalar = Primitives(name), Primitives("scalar")
    same_bits(fast.tile(fmt, tile, x), scalar.tile(fmt, tile, x))
    for row in packed:
        same_bits(fast.row(fmt, row, x), scalar.row(fmt, row, x))
    bent = tile.copy()
    bent[-1] ^= 0x70  # a quant of the last row
    with pytest.raises(AssertionError):
        same_bits(fast.tile(fmt, bent, x), scalar.tile(fmt, tile, x))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 17, 32])
def test_every_token_gets_the_bits_it_would_get_alone(name, fmt, tokens):
    packed, _ = random_rows(fmt, 16, 512)
    tile = arrange("tile16x4", fmt, packed, 512)
    x = np.stack([random_x(512, seed) for seed in range(tokens)])
    got = Primitives(name).tile_of_tokens(fmt, tile, x)
    scalar = Primitives("scalar")
    same_bits(got, np.stack([scalar.tile(fmt, tile, row) for row in x]))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_rows_are_added_with_the_same_bits(name, fmt, count):
    packed, _ = random_rows(fmt, count, 512)
    a, y = np.linspace(-1, 2, count), random_x(512)
    want = Primitives("scalar").add_rows(fmt, packed, a, y)
    same_bits(Primitives(name).add_rows(fmt, packed, a, y), want)
    with pytest.raises(AssertionError):
        same_bits(Primitives(name).add_rows(fmt, packed, a * 1.01, y), want)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("fire", FIRES)
def test_units_give_the_same_bits(name, fmt, width, fire):
    for part in (0, 3, 4, 7):
        data, _, _, a = group_of(fmt, width, fire, part)
        y = random_x(width, seed=3)
        want = Primitives("scalar").part_units(fmt, data, part, a, y)
        same_bits(Primitives(name).part_units(fmt, data, part, a, y), want)
        if fire:
            bent = a * np.float32(1.01)
            with pytest.raises(AssertionError):
                same_bits(Primitives(name).part_units(fmt, data, part, bent, y), want)
        else:
            same_bits(want, y)


# ---- the edges ----


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_an_idle_unit_is_not_read(name, fmt):
    part = 5
    data, _, _, a = group_of(fmt, 64, 9, part)
    want = Primitives(name).part_units(fmt, data, part, a, np.zeros(64, np.float32))
    spoilt = data.copy()
    rows = spoilt[-256 * (32 if fmt == "Q4_K" else 48) :].reshape(256, -1)
    idle = np.ones(256, bool)
    idle[32 * part : 32 * (part + 1)] = a == 0
    rows[idle] ^= 0xFF
    assert not np.array_equal(spoilt, data)
    same_bits(Primitives(name).part_units(fmt, spoilt, part, a, np.zeros(64, np.float32)), want)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("quant", [0x00, 0xFF])
@pytest.mark.parametrize("scale", [0x80, 0x7F, 0xFF])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(name, fmt, quant, scale, sign):
    packed, _ = random_rows(fmt, 32, 256)
    packed[:, QUANTS[fmt]] = quant
    packed[:, 4 : 16 if fmt == "Q4_K" else 4] = scale
    packed[:, 192 : 208 if fmt == "Q6_K" else 192] = scale
    x = np.full(256, sign * 5.0, np.float32)
    w = dequantize(fmt, packed, 256).astype(np.float64)
    one, error = Primitives(name), rounding_of(fmt, packed, x)
    within(one.tile(fmt, arrange("tile16x4", fmt, packed[:16], 256), x), (w @ x)[:16], error[:16])
    within(one.row(fmt, packed[0], x), (w @ x)[:1], error[:1])
    data = arrange("group32", fmt, packed, 256)
    got = np.zeros(32, np.float32)
    for part in range(8):
        got = one.part_units(fmt, data, part, x[:32], got)
    within(got, w @ x, 2 * error)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_shows(name, fmt, bad):
    packed, _ = random_rows(fmt, 64, 256)
    one, scalar, x = Primitives(name), Primitives("scalar"), random_x(256)
    x[37] = bad
    tile = arrange("tile16x4", fmt, packed[:16], 256)
    same_bits(np.isfinite(one.tile(fmt, tile, x)), np.zeros(16, bool))
    same_bits(np.isnan(one.tile(fmt, tile, x)), np.isnan(scalar.tile(fmt, tile, x)))
    assert not np.isfinite(one.row(fmt, packed[0], x))
    data, _, _, a = group_of(fmt, 64, 3, 2)
    a[np.flatnonzero(a)[1]] = bad
    y = random_x(64)
    got = one.part_units(fmt, data, 2, a, y)
    assert not np.isfinite(got).any()
    same_bits(np.isnan(got), np.isnan(scalar.part_units(fmt, data, 2, a, y)))
    assert not np.isfinite(one.add_rows(fmt, packed[0], [bad], random_x(256))).any()


def test_a_set_says_whose_kernels_it_has():
    for name in SETS:
        isa = find_isa(name)[1]
        assert set_for(isa, "Q8_0") == name
        assert set_for(isa, "Q4_K") in SETS[: SETS.index(name) + 1]
    assert set_for(find_isa("scalar")[1], "Q6_K") == "scalar"


def test_what_a_set_leaves_to_another_is_said(monkeypatch):
    assert kernels_of("scalar", ["Q4_K", "F32"]) == "scalar"
    monkeypatch.setattr(kernels, "set_for", lambda _isa, fmt: "x" if fmt == "Q6_K" else "scalar")
    assert kernels_of("scalar", ["Q4_0", "Q6_K"]) == "scalar (Q6_K: x)"
