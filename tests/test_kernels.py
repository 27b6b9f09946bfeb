"""The kernels against float64, on every instruction set, and the pool that runs them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from kernel_calls import Rows, Weight, isa, run, step
from metrics import close
from primitives import LARGEST, floats

from plm_edge.native import kernels

SETS = list(kernels.isa_table())
INTEGERS, FLOATS = ("Q8_0", "Q4_0"), ("F32", "F16", "BF16")
FORMATS = (*FLOATS, *INTEGERS)
# 16-bit activations: half a step in 32,767 of a block's largest value, times some hundred values
TOLERANCE = 2e-4

pytestmark = pytest.mark.parametrize("name", SETS)


def normal(*shape, seed=1):
    rng = np.random.default_rng((seed, *shape))
    return rng.normal(size=shape).astype(np.float32)


def product(name, weight, x, y, add=False, threads=1):
    rows = Rows(x)
    out = floats(y.size).reshape(y.shape)
    out[:] = y
    now = step(len(rows.x), threads=threads)
    args = kernels.Product(isa(name), now, weight.struct, rows.struct, out.ctypes.data, add)
    assert run(("product", args), threads=threads)
    return out


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("arrangement", ["rows", "tile16x4"])
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (7, 3), (64, 8), (130, 2)])
def test_product(name, fmt, arrangement, rows, blocks):
    cols = blocks * 32 if fmt in INTEGERS else {1: 1, 3: 3, 8: 256, 2: 513}[blocks]
    weight, x, y = Weight(fmt, arrangement, rows, cols), normal(3, cols), normal(3, rows, seed=2)
    want = x @ weight.values.T
    close(product(name, weight, x, y), want, TOLERANCE)
    close(product(name, weight, x, y, add=True), y + want, TOLERANCE)
    bent = x.copy()
    bent[-1, np.abs(x[-1]).argmax()] *= 1.1
    with pytest.raises(AssertionError):
        close(product(name, weight, bent, y), want, TOLERANCE)


@pytest.mark.parametrize("arrangement", ["rows", "tile16x4"])
@pytest.mark.parametrize("rows", [65, 640, 3000])
def test_threads_share_the_rows_of_a_product(name, arrangement, rows):
    weight, x, y = Weight("Q4_0", arrangement, rows, 32), normal(1, 32), normal(1, rows, seed=2)
    want = product(name, weight, x, y, add=True)
    close(want, y + x @ weight.values.T, TOLERANCE)
    for threads in (2, 3, 7, 64):  # a row left out, or added twice, shows
        np.testing.assert_array_equal(product(name, weight, x, y, True, threads), want)


def test_a_token_s_rows_are_shared_in_stretches(name):
    weight, out = Weight("Q4_0", "tile16x4", 48 * 64, 32), floats(2 * 48 * 64)

    def items(tokens, threads):
        now, rows = step(tokens, threads=threads), Rows(normal(tokens, 32))
        args = kernels.Product(isa(name), now, weight.struct, rows.struct, out.ctypes.data, False)
        op = kernels.op("product", args)
        return ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(op.kernel.items)(op.args)

    assert items(1, 2) == 2 + 2 + 2 + 6  # 12, 6, 3 and 1 times 64 rows
    assert items(1, 7) == 7 + 27  # 3 and 1
    assert items(1, 64) == items(2, 2) == 48


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("arrangement", ["rows", "tile16x4"])
def test_embed_gives_the_stored_row(name, fmt, arrangement):
    cols = 96 if fmt in INTEGERS else 37
    weight, ids = Weight(fmt, arrangement, 41, cols), np.array([0, 40, 17, 17], np.int32)
    y = np.full((4, cols), np.nan, np.float32)
    args = kernels.Embed(isa(name), step(4), weight.struct, ids.ctypes.data, y.ctypes.data)
    assert run(("embed", args))
    np.testing.assert_array_equal(y, weight.values[ids].astype(np.float32))


def test_norm_reads_from_the_first_row_and_packs(name):
    x, w, y = normal(5, 96), normal(96, seed=2), np.full((2, 96), np.nan, np.float32)
    packed = Rows.empty(2, 96)
    args = kernels.Norm(
        isa(name),
        step(2, first=3),
        x.ctypes.data,
        w.ctypes.data,
        y.ctypes.data,
        packed.struct,
        96,
        LARGEST,
        1e-3,
    )
    assert run(("norm", args))
    wide = x[3:].astype(np.float64)
    want = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + np.float32(1e-3)) * w
    close(y, want, 1e-6)
    close((packed.q.reshape(-1, 32) * packed.scale[:, None]).reshape(2, 96), want, 1e-4)
    with pytest.raises(AssertionError):
        close(y, want * 1.00001, 1e-6)


@pytest.mark.parametrize("square", [False, True])
def test_pack(name, square):
    before = normal(2, 64)
    x, packed = before.copy(), Rows.empty(2, 64)
    args = kernels.Pack(isa(name), step(2), x.ctypes.data, packed.struct, 64, square, LARGEST)
    assert run(("pack", args))
    want = np.maximum(before, 0) ** 2 if square else before
    np.testing.assert_array_equal(x, want)
    close((packed.q.reshape(-1, 32) * packed.scale[:, None]).reshape(2, 64), want, 1e-4)
    np.testing.assert_array_equal(packed.sum, packed.q.reshape(-1, 32).sum(axis=1))


# ---- the squared-ReLU pair ----


class Pair:
    """An up and a down matrix of one format; `dense` is the pair in float64."""

    def __init__(self, fmt, d_model, d_ffn):
        self.up = Weight(fmt, "tile16x4", d_ffn, d_model)
        self.down = Weight(fmt, "group32", d_model, d_ffn, seed=1)
        self.d_model, self.d_ffn = d_model, d_ffn

    def dense(self, x):
        return np.maximum(x @ self.up.values.T, 0) ** 2 @ self.down.values.T

    def fused(self, name, x, y, threads=1):
        rows, tokens = Rows(x), np.atleast_2d(x).shape[0]
        out = y.copy()
        partial = np.full((tokens, kernels.SLICES, self.d_model), np.nan, np.float32)
        units = np.full((tokens, self.d_ffn), np.nan, np.float32)
        self.unit_rows = np.zeros(kernels.SLICES, np.int64)
        now = step(tokens, threads=threads)
        now.contents.ends = threads > 1  # the same results either way
        now.contents.near = kernels.BOTH if threads > 1 else kernels.SECOND
        fire = kernels.Fire(
            isa(name),
            now,
            self.up.struct,
            self.down.struct,
            rows.struct,
            units.ctypes.data,
            partial.ctypes.data,
            self.unit_rows.ctypes.data,
        )
        gather = kernels.Gather(now, partial.ctypes.data, out.ctypes.data, self.d_model)
        assert run(("fire", fire), ("gather", gather), threads=threads)
        return out

    def down_of(self, name, x, y):
        rows, out, tokens = Rows(x), y.copy(), len(np.atleast_2d(x))
        groups = -(-self.d_ffn // 32)
        arrays = (
            np.full((groups, tokens, 32), np.nan, np.float32),
            np.full((groups, tokens), np.nan, np.float32),
            np.full((groups, tokens, 32), 99, np.uint8),
            np.full((groups, tokens), 99, np.uint8),
            np.full((groups, tokens), 9999, np.uint16),
        )
        fired = kernels.Fired(*(array.ctypes.data for array in arrays))
        weights = self.up.struct, self.down.struct
        up = kernels.Up(isa(name), step(tokens), *weights, rows.struct, fired)
        sums = np.full((tokens, self.d_model), np.nan, np.float32)
        room = (sums.ctypes.data, out.ctypes.data)
        down = kernels.Down(isa(name), step(tokens), self.down.struct, fired, *room)
        assert run(("up", up), ("down", down))
        return out


PAIRS = [(fmt, *size) for fmt in FLOATS for size in [(1, 1), (7, 3), (64, 256), (128, 513)]]
PAIRS += [(fmt, *size) for fmt in INTEGERS for size in [(32, 32), (96, 64), (288, 1088)]]


@pytest.mark.parametrize(("fmt", "d_model", "d_ffn"), PAIRS)
def test_the_fused_pair_equals_the_dense_one(name, fmt, d_model, d_ffn):
    pair, x, y = Pair(fmt, d_model, d_ffn), normal(d_model), normal(d_model, seed=2)
    x[0] = abs(x[0]) * np.sign(pair.up.values[0, 0])  # size (1, 1) fires
    want = y + pair.dense(x)
    close(pair.fused(name, x, y), want, TOLERANCE)
    bent = x.copy()
    bent[np.abs(x).argmax()] *= 1.1
    with pytest.raises(AssertionError):
        close(pair.fused(name, bent, y), want, TOLERANCE)


@pytest.mark.parametrize(("fmt", "d_model", "d_ffn"), PAIRS)
def test_few_tokens_get_the_bits_they_get_alone(name, fmt, d_model, d_ffn):
    pair, x, y = Pair(fmt, d_model, d_ffn), normal(5, d_model), normal(5, d_model, seed=2)
    got = pair.fused(name, x, y, threads=2)
    rows = pair.unit_rows
    for threads in (1, 3, 16):
        np.testing.assert_array_equal(pair.fused(name, x, y, threads=threads), got)
        np.testing.assert_array_equal(pair.unit_rows, rows)
    alone = [(pair.fused(name, *row), pair.unit_rows.sum()) for row in zip(x, y, strict=True)]
    np.testing.assert_array_equal(got, [out for out, _ in alone])
    counts = [count for _, count in alone]
    fired = (x @ pair.up.values.T > 0).astype(int)
    assert rows.sum() == fired.any(axis=0).sum(), "a row is read once, for whoever needs it"
    np.testing.assert_array_equal(counts, fired.sum(axis=1))


@pytest.mark.parametrize(("fmt", "d_model", "d_ffn"), PAIRS)
def test_down_adds_the_units_that_fired(name, fmt, d_model, d_ffn):
    pair, x, y = Pair(fmt, d_model, d_ffn), normal(3, d_model), normal(3, d_model, seed=2)
    x[:, 0] = abs(x[:, 0]) * np.sign(pair.up.values[0, 0])  # size (1, 1) fires
    close(pair.down_of(name, x, y), y + pair.dense(x), TOLERANCE)
    close(pair.down_of(name, x[1], y[1]), y[1] + pair.dense(x[1]), TOLERANCE)
    with pytest.raises(AssertionError):
        close(pair.down_of(name, 1.1 * x, y), y + pair.dense(x), TOLERANCE)


@pytest.mark.parametrize(("fmt", "d_model", "d_ffn"), [("F32", 7, 99), ("Q8_0", 96, 96)])
@pytest.mark.parametrize("tokens", [128, 129, 256])
def test_many_tokens_get_the_bits_they_get_alone(name, fmt, d_model, d_ffn, tokens):
    pair, weight = Pair(fmt, d_model, d_ffn), Weight(fmt, "tile16x4", 50, d_model)
    x, y = normal(tokens, d_model), normal(tokens, d_model, seed=2)
    x[::3] *= -1  # other units, and as many again
    x[5, 2] = np.nan
    got, product_of_all = pair.down_of(name, x, y), product(name, weight, x, np.zeros((tokens, 50)))
    assert np.isnan(got[5]).all()
    some = [t for t in (0, 1, 4, 6, 77, 127, 128, 255) if t < tokens]
    alone = [pair.down_of(name, x[t], y[t]) for t in some]
    np.testing.assert_array_equal(got[some], alone)
    one = [product(name, weight, x[t], np.zeros((1, 50)))[0] for t in some]
    np.testing.assert_array_equal(product_of_all[some], one)
    assert np.isfinite(np.delete(got, 5, axis=0)).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_pair_shows_nan_and_is_silent_when_nothing_fires(name, fmt):
    pair, y = Pair(fmt, 64, 96), normal(64, seed=2)
    np.testing.assert_array_equal(pair.fused(name, np.zeros(64, np.float32), y), y)
    x = normal(64)
    x[5] = np.nan
    assert np.isnan(pair.fused(name, x, y)).all()
    np.testing.assert_array_equal(
        pair.down_of(name, np.zeros((2, 64)), normal(2, 64)), normal(2, 64)
    )


# ---- the pool ----


@pytest.mark.parametrize("fmt", ["F16", "Q4_0"])
def test_the_bits_do_not_depend_on_the_threads(name, fmt):
    pair, x, y = Pair(fmt, 128, 544), normal(128), normal(128, seed=2)
    weight, many = Weight(fmt, "tile16x4", 500, 128), normal(4, 128, seed=3)
    want = pair.fused(name, x, y), product(name, weight, many, np.zeros((4, 500)))
    for threads in (2, 3, 8):
        got = (
            pair.fused(name, x, y, threads),
            product(name, weight, many, np.zeros((4, 500)), threads=threads),
        )
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_cancelled_list_stops_before_the_next_op(name, threads):
    def add_one(y):
        kept.append(np.ones(kernels.SLICES, np.float32))
        return "gather", kernels.Gather(step(1), kept[-1].ctypes.data, ctypes.addressof(y), 1)

    kept = []
    first, cancel, last = (ctypes.c_float(0) for _ in range(3))
    flag = ctypes.c_int.from_buffer(cancel)  # the second op writes a float there: no longer 0
    ops = add_one(first), add_one(cancel), add_one(last)
    assert not run(*ops, threads=threads, cancel=flag)
    assert (first.value, cancel.value, last.value) == (16, 16, 0)
    assert not run(*ops, threads=threads, cancel=flag), "still set: not one op is done"
    assert first.value == 16
    assert run(*ops, threads=threads)
    assert (first.value, last.value) == (32, 16)
