"""The kernels of latent attention against float64 on the rows as they are cached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from kernel_calls import Weight, isa, run, step
from metrics import close

from plm_edge.kinds.mla import rope_interleaved
from plm_edge.native import kernels

SETS = list(kernels.isa_table())
THETA = 10_000.0

pytestmark = pytest.mark.parametrize("name", SETS)


def normal(*shape, seed=1):
    rng = np.random.default_rng((seed, *shape))
    return rng.normal(size=shape).astype(np.float32)


def turns(n_ctx, rope):
    """(n_ctx, rope / 2, 2): cosine and sine."""
    angle = np.arange(n_ctx)[:, None] * THETA ** (-np.arange(0, rope, 2) / rope)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)


def rotated(x, n_past):
    """Rotate x (T, rope), which stands at positions n_past.. of its sequence."""
    before = np.zeros((n_past, x.shape[1]))
    return rope_interleaved(np.concatenate([before, x]), THETA)[n_past:]


def test_rotate_turns_the_end_of_every_head_by_its_position(name):
    q, table = normal(3, 2, 5 + 6), turns(10, 6)
    want = q.astype(np.float64)
    for head in range(2):
        want[:, head, 5:] = rotated(want[:, head, 5:], n_past=4)
    args = kernels.Rotate(step(3, n_past=4), q.ctypes.data, table.ctypes.data, 2, 5, 6)
    assert run(("rotate", args))
    close(q, want, 1e-6)
    with pytest.raises(AssertionError):
        close(q, np.roll(want, 1, axis=0), 1e-6)


def as_stored(rows, rank, stored):
    """Float rows to what the cache holds, written out byte by byte for q8_0."""
    if stored != "q8_0":
        return rows.astype(np.float16 if stored == "f16" else np.float32)
    blocks = rows[:, :rank].astype(np.float32).reshape(len(rows), -1, 32)
    scale = (np.abs(blocks).max(axis=-1) / np.float32(127)).astype(np.float16)
    wide = np.where(scale == 0, 1, scale).astype(np.float32)[..., None]
    quants = np.clip(np.rint(blocks / wide), -127, 127).astype(np.int8)
    parts = (quants.reshape(len(rows), rank), scale, rows[:, rank:].astype(np.float16))
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def as_floats(cache, rank, rope, stored):
    """The inverse, in float64."""
    if stored != "q8_0":
        return cache.astype(np.float64)
    halves = np.ascontiguousarray(cache[:, rank:]).view(np.float16).astype(np.float64)
    quants = cache[:, :rank].view(np.int8).astype(np.float64)
    latent = quants * np.repeat(halves[:, : rank // 32], 32, axis=1)
    assert halves.shape[1] == rank // 32 + rope
    return np.concatenate([latent, halves[:, rank // 32 :]], axis=1)


def test_remember_in_q8_0_writes_blocks_of_32_with_a_half_scale(name):
    rank, rope, n_past = 64, 6, 2
    kv_a, w, table = normal(3, rank + rope), normal(rank, seed=2), turns(10, rope)
    kv_a[1, 32:64] = 0  # a block of zeros
    wide = kv_a.astype(np.float64)
    inverse = 1 / np.sqrt(np.mean(wide[:, :rank] ** 2, axis=1, keepdims=True) + np.float32(1e-2))
    exact = np.concatenate([wide[:, :rank] * inverse * w, rotated(wide[:, rank:], n_past)], axis=1)
    cache = np.full((8, rank + 2 * (rank // 32 + rope)), 7, np.uint8)
    pointers = (array.ctypes.data for array in (kv_a, w, table, cache))
    stored = kernels.CACHE_CODES["q8_0"]
    args = kernels.Remember(step(3, n_past=n_past), *pointers, rank, rope, stored, 1e-2)
    assert run(("remember", args))
    want = as_stored(exact.astype(np.float32), rank, "q8_0")
    got = cache[n_past : n_past + 3]
    # float32 against float64: a quant that lies at a tie may fall to the other side
    assert np.abs(got[:, :rank].view(np.int8).astype(int) - want[:, :rank].view(np.int8)).max() <= 1
    close(as_floats(got, rank, rope, "q8_0"), exact, 5e-3)
    assert (got[1, 32:64] == 0).all()
    assert (cache[:n_past] == 7).all()
    assert (cache[n_past + 3 :] == 7).all()
    kv_a[0, 5] = np.nan
    assert run(("remember", args))
    assert np.isnan(as_floats(cache[n_past : n_past + 1], rank, rope, "q8_0")).any()


@pytest.mark.parametrize("half", [False, True])
def test_remember_appends_the_normed_latent_and_the_rotated_key(name, half):
    rank, rope, n_past = 20, 6, 4
    kv_a, w, table = normal(3, rank + rope), normal(rank, seed=2), turns(10, rope)
    wide = kv_a.astype(np.float64)
    inverse = 1 / np.sqrt(np.mean(wide[:, :rank] ** 2, axis=1, keepdims=True) + np.float32(1e-2))
    want = np.concatenate([wide[:, :rank] * inverse * w, rotated(wide[:, rank:], n_past)], axis=1)
    cache = np.full((10, rank + rope), 7, np.float16 if half else np.float32)
    args = kernels.Remember(
        step(3, n_past=n_past),
        *(array.ctypes.data for array in (kv_a, w, table, cache)),
        rank,
        rope,
        half,
        1e-2,
    )
    assert run(("remember", args))
    close(cache[n_past : n_past + 3], want, 5e-4 if half else 1e-6)
    assert (cache[:n_past] == 7).all()
    assert (cache[n_past + 3 :] == 7).all()


def spoilt(size):
    """Bytes to be written before they are read: NaN as floats, -1 as integers."""
    room = kernels.aligned(size)
    room[:] = 0xFF
    return room


@dataclass
class Case:
    """Attention of `tokens` queries that follow `n_past` cached rows."""

    fmt: str
    n_past: int
    tokens: int
    stored: str = "f16"
    heads: int = 3
    nope: int = 8
    rope: int = 6
    v_head: int = 5

    def __post_init__(self):
        self.rank = 64 if self.fmt.startswith("Q") else 37
        both = self.nope + self.v_head
        self.kv_b = Weight(self.fmt, "rows", self.heads * both, self.rank)
        self.q = normal(self.tokens, self.heads, self.nope + self.rope, seed=3)
        self.rows = normal(self.n_past + self.tokens, self.rank + self.rope, seed=4)
        self.cache = as_stored(self.rows, self.rank, self.stored)

    def reference(self):
        """(T, heads, v_head) in float64, key by key and value by value."""
        y = np.empty((self.tokens, self.heads, self.v_head))
        rows = as_floats(self.cache, self.rank, self.rope, self.stored)
        for head, w in enumerate(np.split(self.kv_b.values, self.heads)):
            keys = np.concatenate(
                [rows[:, : self.rank] @ w[: self.nope].T, rows[:, self.rank :]], axis=1
            )
            values = rows[:, : self.rank] @ w[self.nope :].T
            for t in range(self.tokens):
                n = self.n_past + t + 1
                scores = keys[:n] @ self.q[t, head] * np.float32(0.2)
                weights = np.exp(scores - scores.max())
                y[t, head] = weights @ values[:n] / weights.sum()
        return y

    def run(self, name, ops, threads=2):
        size = (self.heads, self.nope, self.rope, self.v_head, self.rank)
        scratch_bytes = kernels.attention_scratch(*size, self.tokens)
        slices = max(kernels.SLICES * kernels.FEW, self.tokens)
        y = np.full((self.tokens, self.heads, self.v_head), np.nan, np.float32)
        room = (
            spoilt(self.tokens * kernels.query_bytes(self.heads, self.rank, self.rope)),
            np.full(slices * kernels.partial_floats(self.heads, self.rank), np.nan, np.float32),
            y,
            spoilt(threads * scratch_bytes),
        )
        args = kernels.Attention(
            isa(name),
            step(self.tokens, n_past=self.n_past),
            self.kv_b.struct,
            self.q.ctypes.data,
            self.cache.ctypes.data,
            *(array.ctypes.data for array in room),
            scratch_bytes,
            *size,
            kernels.CACHE_CODES[self.stored],
            self.tokens,
            0.2,
        )
        assert run(*((op, args) for op in ops), threads=threads)
        return y


WITHOUT_BYTES = ("avx2", "neon")  # sets that meet cached bytes as 16-bit integers
LATENT, EXPANDED = ("absorb", "attend", "unabsorb"), ("expand",)
CASES = [
    Case("F32", 0, 1, stored="f32"),
    Case("F16", 1, 1),
    Case("BF16", 31, 3, stored="f32"),
    Case("Q8_0", 70, 1),
    Case("Q4_0", 40, 20),
    Case("Q4_0", 0, 5),
    Case("Q8_0", 50, 3, stored="q8_0"),
    Case("Q4_0", 33, 1, stored="q8_0"),
    Case("F16", 33, 17, nope=1, rope=2, v_head=1, heads=1),
    Case("Q8_0", 71, 1, heads=16, rope=64),
    Case("Q4_0", 41, 3, heads=19, rope=40, stored="q8_0"),
    Case("Q8_0", 150, 9, heads=17, rope=40, stored="q8_0"),  # in one slice of 64 rows and more
    Case("Q4_0", 1100, 1, stored="q8_0"),
    Case("Q4_0", 150, 9, heads=17),
    Case("F32", 33, 2, heads=17, stored="f32"),
]


@pytest.mark.parametrize("ops", [LATENT, EXPANDED], ids=["latent", "expanded"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.fmt}-{c.n_past}-{c.tokens}")
def test_attention(name, case, ops):
    want, got = case.reference(), case.run(name, ops)
    # float32; a step of 1/32,767 where W_uv is integers; of 1/8,191 in both factors of the scores,
    # which reach 20 here, where the cache is no float32
    in_integers = case.stored != "f32" and (ops == LATENT or case.fmt.startswith("Q"))
    tolerance = 1e-3 if in_integers else 1e-4 if case.fmt.startswith("Q") else 1e-5
    if case.stored == "q8_0" and ops == LATENT and name not in WITHOUT_BYTES:
        tolerance = 2e-2  # a step of 1/127 in a factor of those scores, of 1/255 in the weights
    close(got, want, tolerance)
    np.testing.assert_array_equal(case.run(name, ops, threads=3), got)
    bent = case.rows.copy()
    bent[-1] += 1 if len(bent) < 100 else 10  # the newest row counts, for the last token at least
    case.cache = as_stored(bent, case.rank, case.stored)
    with pytest.raises(AssertionError):
        close(case.run(name, ops), want, tolerance)
    case.cache = as_stored(case.rows, case.rank, case.stored)


@pytest.mark.parametrize(("n_past", "tokens"), [(0, 70), (45, 33), (1, 1)])
@pytest.mark.parametrize("stored", ["f16", "q8_0"])
def test_keys_and_values_in_integers_give_each_set_the_same_bits(name, stored, n_past, tokens):
    case = Case("Q4_0", n_past, tokens, rope=40, v_head=70, stored=stored)
    want = case.run("scalar", EXPANDED)
    np.testing.assert_array_equal(case.run(name, EXPANDED), want)
    case.cache[0] = 1
    assert (case.run(name, EXPANDED) != want).any()


@pytest.mark.parametrize("ops", [LATENT, EXPANDED], ids=["latent", "expanded"])
@pytest.mark.parametrize("fmt", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_in_the_cache_shows(name, ops, fmt, bad):
    case = Case(fmt, 40, 2)
    case.cache[35, 3] = bad
    assert np.isnan(case.run(name, ops)).all()


def test_bytes_meet_a_query_of_bytes_with_no_loss_but_of_the_weights(name):
    # with one row of W_uk the query's latent is that row, whose blocks are bytes already
    case = Case("Q8_0", 3, 1, heads=17, nope=1, rope=40, stored="q8_0")
    want = case.reference()
    close(case.run(name, LATENT), want, 5e-3)  # a step of 1/255 in the weights
    case.q[..., 0] *= 1.01
    with pytest.raises(AssertionError):
        close(case.run(name, LATENT), want, 5e-3)


@pytest.mark.parametrize("ops", [LATENT, EXPANDED], ids=["latent", "expanded"])
@pytest.mark.parametrize("stored", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("factor", [300, -300])  # one of them takes a head's score far below 0
def test_one_row_has_all_the_weight_whatever_its_score(name, ops, stored, factor):
    case = Case("Q8_0", 0, 1, stored=stored)
    case.q *= factor
    close(case.run(name, ops), case.reference(), 1e-3)


@pytest.mark.parametrize("ops", [LATENT, EXPANDED], ids=["latent", "expanded"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("half", [1, 40])  # behind the bytes: two scales, then the rope key
def test_what_is_not_a_number_in_cached_bytes_shows(name, ops, bad, half):
    case = Case("Q8_0", 40, 2, rope=64, stored="q8_0")
    case.cache[35, case.rank :].view(np.float16)[half] = bad
    assert np.isnan(case.run(name, ops)).all()


@pytest.mark.parametrize("ops", [LATENT, EXPANDED], ids=["latent", "expanded"])
@pytest.mark.parametrize("fmt", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("later", [60000, np.nan])
@pytest.mark.parametrize("tokens", [4, 40])
def test_a_token_does_not_see_the_next_one(name, ops, fmt, later, tokens):
    case = Case(fmt, 3, tokens)
    want = case.run(name, ops)
    assert np.isfinite(want).all()
    case.cache[-1] = later
    np.testing.assert_array_equal(case.run(name, ops)[:-1], want[:-1])


@pytest.mark.parametrize("ops", [LATENT, EXPANDED], ids=["latent", "expanded"])
def test_large_scores_do_not_overflow(name, ops):
    case = Case("F32", 50, 1, stored="f32")
    case.q *= 300
    close(case.run(name, ops), case.reference(), 1e-3)
