"""What prefill and latent attention need of an instruction set: several tokens, panels, mixing.

As in test_isa.py: every set gives the bits of the scalar one, the scalar one is held to integers or
float64; only `mix` may fuse its steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from primitives import BYTE, LARGEST, PANEL, Primitives
from test_isa import CASES, FORMATS, INTEGERS, random_rows, random_x, same_bits, units_of, within

from plm_edge.arrangements import arrange
from plm_edge.native.kernels import BOTH, FIRST, SECOND, isa_table

SETS = list(isa_table())
OTHERS = [name for name in SETS if name != "scalar"]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("fmt", "cols"), CASES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 33])
def test_a_token_among_many_gets_the_bits_it_gets_alone(name, fmt, cols, tokens):
    packed, _ = random_rows(fmt, 16, cols)
    tile, one = arrange("tile16x4", fmt, packed, cols), Primitives(name)
    x = np.stack([random_x(cols, seed=t) for t in range(tokens)])
    want = np.stack([one.tile(fmt, tile, row) for row in x])
    same_bits(one.tile_of_tokens(fmt, tile, x), want)
    x[-1, 0] = x[-1, 0] * 2 + 1
    with pytest.raises(AssertionError):
        same_bits(one.tile_of_tokens(fmt, tile, x), want)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_token_leaves_the_others_alone(name, fmt, bad):
    packed, _ = random_rows(fmt, 16, 64)
    tile, one = arrange("tile16x4", fmt, packed, 64), Primitives(name)
    x = np.stack([random_x(64, seed=t) for t in range(5)])
    want = one.tile_of_tokens(fmt, tile, x)
    x[2, 40] = bad
    got = one.tile_of_tokens(fmt, tile, x)
    assert not np.isfinite(got[2]).any()
    same_bits(np.delete(got, 2, axis=0), np.delete(want, 2, axis=0))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("weight", [0x00, 0xFF, 0x80, 0x7F])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_many_tokens_do_not_overflow(name, fmt, weight, sign):
    packed, _ = random_rows(fmt, 16, 96)
    packed.reshape(16, 3, -1)[..., 2:] = weight
    tile, one = arrange("tile16x4", fmt, packed, 96), Primitives(name)
    x = np.full((3, 96), sign * 5.0, np.float32)
    same_bits(one.tile_of_tokens(fmt, tile, x), np.stack([one.tile(fmt, tile, x[0])] * 3))


def cases_of(function):
    """What of CASES those sets do that have the function."""
    return [(s, fmt, n) for s in SETS for fmt, n in CASES if Primitives(s).has(function, fmt)]


@pytest.mark.parametrize(("name", "fmt", "cols"), cases_of("four_tiles"))
def test_four_tiles_give_the_bits_of_each(name, fmt, cols):
    one, x = Primitives(name), random_x(cols)
    packed, _ = random_rows(fmt, 64, cols)
    tiles = [arrange("tile16x4", fmt, packed[r : r + 16], cols) for r in range(0, 64, 16)]
    each = np.concatenate([one.tile(fmt, tile, x) for tile in tiles])
    for near in (SECOND, FIRST, BOTH):  # where what comes next is asked for changes nothing
        got = one.four_tiles(fmt, np.concatenate(tiles), x, near)
        same_bits(got, each)
    with pytest.raises(AssertionError):
        same_bits(got, one.four_tiles(fmt, np.concatenate(tiles[::-1]), x))


ROWS = [(s, fmt) for s in SETS for fmt in FORMATS if Primitives(s).has("rows", fmt)]


@pytest.mark.parametrize(("name", "fmt"), ROWS)
@pytest.mark.parametrize("cols", [32, 96, 288, 512, 2336])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 47, 128])
def test_several_rows_give_the_bits_of_each(name, fmt, cols, count):
    one, x = Primitives(name), random_x(cols)
    x[-1] = 1e4  # what it is multiplied with is not lost in the rounding
    packed, _ = random_rows(fmt, count, cols)
    want = np.concatenate([one.row(fmt, row, x) for row in packed])
    for ahead in (False, True):  # what comes next changes nothing
        same_bits(one.rows(fmt, packed, x, ahead), want)
    packed[-1, -1] ^= 0x70
    with pytest.raises(AssertionError):
        same_bits(one.rows(fmt, packed, x), want)


@pytest.mark.parametrize(("name", "fmt"), ROWS)
@pytest.mark.parametrize("weight", [0x00, 0xFF, 0x80, 0x7F])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_several_rows_do_not_overflow(name, fmt, weight, sign):
    packed, _ = random_rows(fmt, 16, 160)
    packed.reshape(16, 5, -1)[..., 2:] = weight
    one, x = Primitives(name), np.full(160, sign * 5.0, np.float32)
    same_bits(one.rows(fmt, packed, x), np.concatenate([one.row(fmt, row, x) for row in packed]))


@pytest.mark.parametrize(("name", "fmt"), ROWS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_scale_shows_in_its_own_row_of_several(name, fmt, bad):
    packed, _ = random_rows(fmt, 16, 128)
    one, x = Primitives(name), random_x(128)
    packed.reshape(16, 4, -1)[5, 2, :2] = np.array([bad], np.float16).view(np.uint8)
    got = one.rows(fmt, packed, x)
    same_bits(np.isfinite(got), np.arange(16) != 5)
    same_bits(got, np.concatenate([one.row(fmt, row, x) for row in packed]))


@pytest.mark.parametrize(("name", "fmt", "cols"), cases_of("tile_of_bytes"))
@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 8, 17])
def test_activations_of_8_bits_give_the_bits_of_16(name, fmt, cols, tokens):
    one = Primitives(name)
    packed, _ = random_rows(fmt, 16, cols)
    tile = arrange("tile16x4", fmt, packed, cols)
    x = np.stack([random_x(cols, seed=t) for t in range(tokens)])
    got = one.tile_of_tokens(fmt, tile, x, most=BYTE, by="tile_of_bytes")
    same_bits(got, one.tile_of_tokens(fmt, tile, x, most=BYTE))
    with pytest.raises(AssertionError):
        same_bits(got, one.tile_of_tokens(fmt, tile, x))  # 16 bits say more


@pytest.mark.parametrize(("name", "fmt", "cols"), cases_of("two_of_bytes"))
@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
def test_two_tiles_of_bytes_give_what_each_gives(name, fmt, cols, tokens):
    one = Primitives(name)
    packed, _ = random_rows(fmt, 32, cols)
    each = [arrange("tile16x4", fmt, rows, cols) for rows in np.split(packed, 2)]
    x = np.stack([random_x(cols, seed=t) for t in range(tokens)])
    want = np.hstack([one.tile_of_tokens(fmt, tile, x, BYTE) for tile in each])
    same_bits(one.tile_of_tokens(fmt, np.concatenate(each), x, BYTE, by="two_of_bytes"), want)
    with pytest.raises(AssertionError):
        same_bits(
            one.tile_of_tokens(fmt, np.concatenate(each[::-1]), x, BYTE, "two_of_bytes"), want
        )


@pytest.mark.parametrize(("name", "fmt", "cols"), cases_of("tile_of_bytes"))
@pytest.mark.parametrize("weight", [0x00, 0xFF])
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)])
def test_the_largest_sums_of_activations_of_8_bits_do_not_overflow(name, fmt, cols, weight, signs):
    packed, _ = random_rows(fmt, 16, cols)
    packed.reshape(16, cols // 32, -1)[..., 2:] = weight
    tile = arrange("tile16x4", fmt, packed, cols)
    four = np.float32([signs[0], signs[0], signs[1], signs[1]])  # a sum of 16 bits has two of them
    x = 3 * np.tile(four, (5, cols // 4))
    one = Primitives(name)
    same_bits(
        one.tile_of_tokens(fmt, tile, x, most=BYTE, by="tile_of_bytes"),
        one.tile_of_tokens(fmt, tile, x, most=BYTE),
    )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("fmt", "cols"), CASES)
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_many_rows_are_added_as_one_after_the_other(name, fmt, cols, count):
    packed, _ = random_rows(fmt, count, cols)
    a, want = random_x(count, seed=5), random_x(cols)
    got = Primitives(name).add_rows(fmt, packed, a, want)
    for row, factor in zip(packed, a, strict=True):
        want = Primitives("scalar").add_rows(fmt, row, [factor], want)
    same_bits(got, want)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("first", "last"), [(0, 32), (32, 160), (128, 160), (0, 160)])
def test_unit_rows_are_the_weights_of_a_group(name, fmt, first, last):
    data, w, _ = units_of(fmt, 160, 32, 5)
    got = Primitives(name).unit_rows(fmt, data, 160, first, last, 32)
    same_bits(got, w.T[:, first:last].astype(np.float32))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16"])
def test_unit_rows_of_a_short_odd_group(name, fmt):
    data, w, _ = units_of(fmt, 37, 5, 5)
    got = Primitives(name).unit_rows(fmt, data, 37, 0, 37, 5)
    same_bits(got, w.T.astype(np.float32))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("width", [1, 7, 8, 37, 64, 128, 129])
@pytest.mark.parametrize("count", [0, 1, 6, 32])
def test_mix_adds_the_rows_it_is_told(name, width, count):
    rng = np.random.default_rng((width, count))
    w, y = rng.normal(size=(32, width)).astype(np.float32), random_x(width)
    which, a = rng.permutation(32)[:count], random_x(count, seed=7)
    exact = y + a.astype(np.float64) @ w[which].astype(np.float64)
    error = 3e-6 * (np.abs(y) + np.abs(a) @ np.abs(w[which])) + 1e-30
    one = Primitives(name)
    within(one.mix(a, which, w, y), exact, error)
    if count:
        bent = w.copy()
        bent[which[-1]] += 1
        with pytest.raises(AssertionError):
            within(one.mix(a, which, bent, y), exact, error)


WORDS = [(name, fmt) for name in SETS for fmt in FORMATS if Primitives(name).has_words(fmt)]


@pytest.mark.parametrize(("name", "fmt"), WORDS)
@pytest.mark.parametrize("ends", [(0, 32), (32, 160), (64, 128), (128, 160)])
@pytest.mark.parametrize("counts", [(0,), (2,), (32,), (6, 0, 2)])
def test_mix_words_adds_the_units_it_is_told_in_integers(name, fmt, ends, counts):
    data, w, _ = units_of(fmt, 160, 32, 5)
    scales = np.ascontiguousarray(data[:320]).view(np.float16)[slice(*ends)].astype(np.float32)
    whole = np.rint(w[slice(*ends)] / scales[:, None]).astype(np.int64)
    y = random_x(len(counts) * len(scales)).reshape(len(counts), -1)
    want, fired, one = y.copy(), [], Primitives(name)
    for token, count in zip(np.roll(range(len(counts)), 1), counts, strict=True):
        which = np.random.default_rng(count).permutation(32)[:count]
        q, scale = integers(32, most=LARGEST)[32 - count :], np.float32(1e-3 * (token + 1))
        fired.append((q, which, scale, token))
        sums = (whole[:, which] @ q.astype(np.int64)).astype(np.float32)
        want[token] += sums * (scales * scale)
    same_bits(one.mix_words(fmt, data, 160, ends, fired, y), want)
    if counts[0]:
        fired[0] = (fired[0][0], np.roll(fired[0][1], 1), *fired[0][2:])
        with pytest.raises(AssertionError):
            same_bits(one.mix_words(fmt, data, 160, ends, fired, y), want)


@pytest.mark.parametrize("name", sorted({name for name, _ in WORDS}))
@pytest.mark.parametrize("share", [0, 0.2, 1])
def test_keep_words_keeps_what_fired(name, share):
    x = random_x(32, seed=3)
    x = np.where(np.random.default_rng(4).permutation(32) < 32 * share, 1, -1) * np.abs(x)
    x[7] = 0
    fired = np.flatnonzero(x > 0)
    square = np.where(x > 0, x * x, 0).astype(np.float32)
    q, scales, _ = Primitives("scalar").pack(square)
    words, which, scale = Primitives(name).keep_words(x)
    assert len(words) == len(fired) + len(fired) % 2
    same_bits(words[: len(fired)], q[fired])
    np.testing.assert_array_equal(which[: len(fired)], fired)
    assert not words[len(fired) :].any()
    assert (which < 32).all()
    assert scale == scales[0]
    x[3] = np.nan
    words, which, scale = Primitives(name).keep_words(x)
    assert np.isnan(scale)
    assert 3 in which


def integers(*shape, most, seed=0):
    """Every size up to `most`, both ends among them."""
    q = np.random.default_rng((seed, *shape)).integers(-most, most + 1, shape)
    q.flat[0], q.flat[-1] = -most, most
    return q.astype(np.int16)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("lanes", [1, 5, 16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 32])
@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("across", [False, True])
def test_a_panel_product_is_exact_in_every_block(name, lanes, rows, blocks, across):
    cols = 32 * blocks
    p, x = integers(lanes, cols, most=PANEL), integers(rows, cols, most=PANEL, seed=1)
    p_scale = random_x(lanes * blocks).reshape(lanes, blocks)
    x_scale = random_x(rows * blocks, seed=2).reshape(rows, blocks)
    y = random_x(rows * 16, seed=3).reshape(rows, 16)
    want = y.copy()
    for b in range(blocks):
        part = slice(32 * b, 32 * b + 32)
        sums = x[:, part].astype(np.int64) @ p[:, part].T.astype(np.int64)
        factor = p_scale[:, b][None] * x_scale[:, b][:, None]
        want[:, :lanes] += sums.astype(np.float32) * factor
    got = Primitives(name).panel(p, p_scale, x, x_scale, y, across)
    same_bits(got, want)
    p[0, 0] += 1
    with pytest.raises(AssertionError):
        same_bits(Primitives(name).panel(p, p_scale, x, x_scale, y, across), want)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("panel", "row"), [(PANEL, PANEL), (128, LARGEST)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_panel_products_do_not_overflow(name, panel, row, sign):
    p, x = np.full((16, 32), -panel), np.full((4, 32), sign * row)
    ones = np.ones((16, 1), np.float32)
    got = Primitives(name).panel(p, ones, x, ones[:4], np.zeros((4, 16), np.float32))
    same_bits(got, np.full((4, 16), np.float32(-32 * panel * sign * row)))


@pytest.mark.parametrize("name", SETS)
def test_a_scale_that_is_not_a_number_shows_in_its_own_row(name):
    p, x = integers(16, 64, most=PANEL), integers(6, 64, most=PANEL)
    ones, x_scale = np.ones((16, 2), np.float32), np.ones((6, 2), np.float32)
    x_scale[4, 1] = np.nan
    got = Primitives(name).panel(p, ones, x, x_scale, np.zeros((6, 16), np.float32))
    same_bits(np.isnan(got).any(axis=1), np.arange(6) == 4)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 32, 100])
def test_weigh_rounds_the_product_of_fractions(name, n):
    a, b = integers(n, most=LARGEST), integers(n, most=PANEL, seed=1)
    want = np.floor((a.astype(np.int64) * b + 2**14) / 2**15)
    np.testing.assert_array_equal(Primitives(name).weigh(a, b), want)
    np.testing.assert_array_equal(Primitives(name).weigh([-1, 1], [16384, 16384]), [0, 1])


@pytest.mark.parametrize("name", SETS)
def test_exps(name):
    x = -np.abs(random_x(1000)) % 100
    x[:6] = 0, -0.0, np.nan, -87, -87.01, -np.inf
    x = -np.abs(x)
    got = Primitives(name).exps(x)
    same_bits(got, Primitives("scalar").exps(x))
    exact = np.where(x < -87, 0, np.exp(x.astype(np.float64)))
    within(got[~np.isnan(x)], exact[~np.isnan(x)], 3e-7 * exact[~np.isnan(x)])
    assert np.isnan(got[np.isnan(x)]).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("most", [PANEL, LARGEST])
def test_halves_are_packed_as_their_floats(name, most):
    rng = np.random.default_rng(3)
    halves = (rng.normal(size=(40, 32)) * np.exp2(rng.integers(-14, 10, (40, 1)))).astype(
        np.float16
    )
    halves[0], halves[1], halves[2] = 0, -0.0, 6e-8  # zeros, the smallest subnormal
    halves[3, 5], halves[4, 31], halves[5, 0] = np.nan, np.inf, -np.inf
    halves[6], halves[7, 3] = 65504, -65504
    q, scale = Primitives(name).pack_halves(halves.reshape(-1).view(np.uint16), most)
    want_q, want_scale, _ = Primitives("scalar").pack(halves.astype(np.float32).reshape(-1), most)
    same_bits(q, want_q)
    same_bits(scale, want_scale)
    assert np.abs(q).max() == most
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scale)), [3, 4, 5])
