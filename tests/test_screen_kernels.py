"""The kernels of the screened head: which tiles they choose, what they leave in every row."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import Rows, Weight, isa, run, step
from numpy.typing import NDArray
from primitives import floats

from plm_edge.arrangements import TILE, arranged_bytes
from plm_edge.native import kernels

Float32 = NDArray[np.float32]
SETS = list(kernels.isa_table())


class Head:
    """A random head with coarse logits beside it, and the buffers of plm_screen."""

    def __init__(self, fmt: str, rows: int, cols: int, name: str = "scalar") -> None:
        rng = np.random.default_rng((rows, cols))
        self.name, self.rows = name, rows
        self.tiles = -(-rows // TILE)
        self.weight = Weight(fmt, "tile16x4", rows, cols)
        self.x = Rows(rng.normal(size=cols).astype(np.float32))
        self.exact = floats(rows)
        product = kernels.Product(
            isa(name), step(1), self.weight.struct, self.x.struct, self.exact.ctypes.data, 0
        )
        assert run(("product", product))
        self.coarse = self.exact + rng.normal(size=rows).astype(np.float32)
        self.tile_bytes = arranged_bytes("tile16x4", fmt, TILE, cols)

    def screen(
        self, coarse: Float32, count: int, threads: int = 1
    ) -> tuple[Float32, NDArray[np.int32]]:
        """Logits as the four kernels leave them, and the tiles that were read."""
        logits = floats(self.rows)
        logits[:] = coarse
        peaks = np.full(self.tiles + 1, -7, np.int32)
        chosen, tails = np.full(count, -7, np.int32), np.full((count, 4), np.nan, np.float32)
        buffers = (logits, peaks, chosen, tails)
        args = kernels.Screen(
            isa(self.name),
            step(1),
            self.weight.struct,
            self.x.struct,
            *(buffer.ctypes.data for buffer in buffers),
            self.tile_bytes,
            count,
        )
        calls = [(op, args) for op in ("peak", "choose", "rescore", "level")]
        assert run(*calls, threads=threads)
        return logits, chosen

    def best_tiles(self, coarse: Float32, count: int) -> list[int]:
        padded = np.full(self.tiles * TILE, -np.inf, np.float32)
        padded[: self.rows] = coarse
        peaks = padded.reshape(-1, TILE).max(axis=1)
        return sorted(np.argsort(-peaks, kind="stable")[:count].tolist())

    def rows_of(self, tiles: list[int]) -> NDArray[np.bool_]:
        return np.isin(np.arange(self.rows) // TILE, tiles)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("rows", "count"), [(5, 1), (48, 2), (333, 7), (3000, 40), (333, 21)])
def test_chosen_tiles_are_the_best_and_exact(name: str, fmt: str, rows: int, count: int) -> None:
    head = Head(fmt, rows, 64, name)
    logits, chosen = head.screen(head.coarse, count)
    want = head.best_tiles(head.coarse, count)
    assert chosen.tolist() == want
    read = head.rows_of(want)
    np.testing.assert_array_equal(logits[read], head.exact[read])  # bit for bit
    shift = logits[~read] - head.coarse[~read]
    assert np.ptp(shift) < 1e-5 if shift.size else count == head.tiles
    if rows == 3000:
        assert not np.array_equal(head.best_tiles(-head.coarse, count), want)


def test_the_mass_outside_is_that_of_rows_like_those_outside() -> None:
    head = Head("Q8_0", 3000, 64)
    coarse, count = head.coarse - 3.0, 40
    logits, chosen = head.screen(coarse, count)
    read = head.rows_of(chosen.tolist())
    lowest = min(coarse[t * TILE : (t + 1) * TILE].max() for t in chosen)
    alike = read & (coarse < lowest)
    exact = head.exact.astype(np.float64)
    want = np.log(np.exp(exact[alike]).sum()) - np.log(np.exp(coarse[alike].astype(float)).sum())
    shift = logits[~read] - coarse[~read]
    assert np.abs(shift - want).max() < 1e-5
    assert want > 2.0  # the 3 that were taken off, less what the sample says
    everyone = np.log(np.exp(exact[read]).sum()) - np.log(np.exp(coarse[read].astype(float)).sum())
    assert np.abs(shift - everyone).min() > 1e-2  # the best rows are no sample of the others


def test_ties_go_to_the_lower_tile() -> None:
    head = Head("F32", 333, 16)
    _, chosen = head.screen(np.zeros(333, np.float32), 4)
    assert chosen.tolist() == [0, 1, 2, 3]
    coarse = np.zeros(333, np.float32)
    coarse[[40, 300]] = 1.0
    coarse[5] = -0.0
    _, chosen = head.screen(coarse, 4)
    assert chosen.tolist() == [0, 1, 2, 18]


def test_any_float_is_in_order() -> None:
    head = Head("F32", 16 * 64, 16)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 16 * 64, dtype=np.uint64).astype(np.uint32)
    coarse = bits.view(np.float32).copy()
    coarse[np.isnan(coarse)] = -np.inf
    for logits in (coarse, -np.abs(coarse)):
        for count in (1, 17, 63):
            _, chosen = head.screen(logits, count)
            assert chosen.tolist() == head.best_tiles(logits, count)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_shows(sign: float) -> None:
    head = Head("Q8_0", 333, 64)
    coarse = head.coarse.copy()
    coarse[200] = np.copysign(np.nan, sign)
    logits, chosen = head.screen(coarse, 3)
    assert 200 // TILE in chosen  # its tile is read, so the exact logits decide
    assert np.isfinite(logits[head.rows_of([200 // TILE])]).all()
    logits, _ = head.screen(np.full(333, np.nan, np.float32), 3)
    assert np.isnan(logits).sum() == 333 - 3 * TILE
    head.x.scale[:] = np.nan  # as packing leaves it where the state holds a NaN
    logits, chosen = head.screen(head.coarse, 3)
    assert np.isnan(logits).all()


def test_a_head_of_several_items_of_levels() -> None:
    """More than 65,536 rows: the level of the rows outside is set in parts."""
    head = Head("Q4_0", 70_001, 32)
    logits, chosen = head.screen(head.coarse, 300)
    read = head.rows_of(chosen.tolist())
    np.testing.assert_array_equal(logits[read], head.exact[read])
    shift = logits[~read] - head.coarse[~read]
    assert np.ptp(shift) < 1e-5 < abs(shift[0])


def test_threads_change_no_bit() -> None:
    head = Head("Q4_0", 3000, 64)
    one, four = (head.screen(head.coarse, 40, threads)[0] for threads in (1, 4))
    np.testing.assert_array_equal(one, four)
