"""Sampler: equal to a slow one that follows the words, filter by filter; refuses what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from plm_edge.errors import NumericalError, UsageError
from plm_edge.runtime.sampler import Sampler, largest, nucleus

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def probabilities(logits: np.ndarray, s: Sampler, recent: list[int]) -> np.ndarray:
    """Slow and plain: each filter on the full sorted list, in llama.cpp's order. float64, (n,)."""
    values = logits.astype(np.float64)
    for token in set(recent[-64:]):
        values[token] *= 1 / s.repeat_penalty if values[token] > 0 else s.repeat_penalty
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if s.top_k:
        order = order[: s.top_k]
    share = np.exp(values[order] - values[order[0]])
    share /= share.sum()
    keep, total = 0, 0.0
    while keep < len(order) and (keep == 0 or total < s.top_p):
        total += share[keep]
        keep += 1
    order = [i for i, p in zip(order[:keep], share[:keep], strict=True) if p >= s.min_p * share[0]]
    out = np.zeros(len(values))
    out[order] = np.exp((values[order] - values[order[0]]) / s.temperature)
    return out / out.sum()


def distance(s: Sampler, slow: Sampler, draws: int = 4000) -> float:
    """Total variation between drawn ids and the slow sampler's probabilities."""
    rng = np.random.default_rng(5)
    logits = (rng.normal(size=50) * 2).astype(np.float32)
    recent = [int(logits.argmax()), 3, 4]
    counts = np.bincount([s.sample(logits, recent) for _ in range(draws)], minlength=50)
    return float(abs(counts / draws - probabilities(logits, slow, recent)).sum() / 2)


CASES = [
    {},
    OFF,
    {**OFF, "top_k": 5},
    {**OFF, "top_p": 0.6},
    {**OFF, "min_p": 0.3},
    {**OFF, "repeat_penalty": 1.8},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.8, "min_p": 0.1, "repeat_penalty": 0.7},
]


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_slow_sampler(case: dict[str, float]) -> None:
    s = Sampler(**{"seed": 1, **case})  # type: ignore[arg-type]
    assert distance(s, s) < 0.06  # 4,000 draws over up to 50 ids: chance alone gives 0.05


@pytest.mark.parametrize(
    ("case", "bend"),
    [
        (OFF, {"temperature": 1.1}),
        ({**OFF, "top_k": 5}, {"top_k": 3}),
        ({**OFF, "top_p": 0.6}, {"top_p": 0.9}),
        ({**OFF, "min_p": 0.3}, {"min_p": 0.05}),
        ({**OFF, "repeat_penalty": 1.8}, {"repeat_penalty": 1.0}),
    ],
)
def test_the_comparison_notices_each_filter(case: dict[str, float], bend: dict[str, float]) -> None:
    s = Sampler(seed=1, **case)  # type: ignore[arg-type]
    assert distance(s, replace(s, **bend)) > 0.06  # type: ignore[arg-type]


def test_seed_repeats_and_another_seed_differs() -> None:
    logits = np.zeros(1000, np.float32)
    runs = [[Sampler(seed=n, **OFF).sample(logits) for _ in range(1)] for n in (7, 7, 8)]  # type: ignore[arg-type]
    assert runs[0] == runs[1] != runs[2]
    chosen = Sampler()
    again = Sampler(seed=chosen.seed)
    assert [chosen.sample(logits) for _ in range(20)] == [again.sample(logits) for _ in range(20)]


def test_draws_are_pinned() -> None:
    logits = np.linspace(-2, 2, 300, dtype=np.float32)
    s = Sampler(seed=42)
    assert [s.sample(logits) for _ in range(8)] == PINNED


PINNED = [273, 286, 269, 276, 297, 263, 273, 272]


def test_greedy_takes_the_largest_and_the_lower_id_of_equals() -> None:
    logits = np.array([0, 3, 1, 3], np.float32)
    assert Sampler(temperature=0).sample(logits) == 1
    assert Sampler(temperature=0, repeat_penalty=2.0).sample(logits, [1]) == 3


def test_top_k_of_equal_logits_keeps_the_lower_ids() -> None:
    assert largest(np.array([1, 5, 5, 5, 9], np.float32), 3).tolist() == [1, 2, 4]
    assert largest(np.zeros(151_936, np.float32), 2).tolist() == [0, 1]


def test_penalty_forgets_after_64_ids() -> None:
    logits = np.array([1.0, 0.9], np.float32)
    s = Sampler(temperature=0, repeat_penalty=2.0)
    assert s.sample(logits, [0] + [5] * 64) == 0
    assert s.sample(logits, [0] + [5] * 63) == 1


def test_penalty_lowers_negative_logits_too() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    assert Sampler(temperature=0, repeat_penalty=2.0).sample(logits, [0]) == 1


def test_top_p_may_need_more_candidates_than_are_sorted_first() -> None:
    ids, _ = nucleus(np.arange(1000), np.zeros(1000, np.float32), top_p=0.9, min_p=0.0)
    assert ids.tolist() == list(range(900))
    peaked = np.linspace(0, 20, 1000, dtype=np.float32)
    for top_p in (0.5, 0.95, 0.999999):
        few, _ = nucleus(np.arange(1000), peaked, top_p, min_p=0.0)
        share = np.cumsum(np.sort(np.exp(peaked.astype(np.float64)))[::-1])
        assert few.tolist() == [999 - n for n in range((share < top_p * share[-1]).sum() + 1)]


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 100.0])
@pytest.mark.parametrize("top", [1.0, 3e38])
def test_extremes_stay_finite(temperature: float, top: float) -> None:
    logits = np.array([top, -top, -np.inf, 0], np.float32)
    s = Sampler(temperature=temperature, repeat_penalty=0.1, seed=0, **OFF)  # type: ignore[arg-type]
    assert {s.sample(logits, [0, 1]) for _ in range(20)} <= {0, 1, 3}


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf], []])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_damaged_logits_are_refused(bad: list[float], temperature: float) -> None:
    with pytest.raises(NumericalError, match="expected finite logits"):
        Sampler(temperature=temperature).sample(np.array(bad, np.float32))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1, math.nan, 1e300, math.inf, "warm", True, None]),
        ("top_k", [-1, 2**31, 1.5, math.nan, True, None]),
        ("top_p", [-0.1, 1.01, math.nan]),
        ("min_p", [-0.1, 2, math.nan]),
        ("repeat_penalty", [0, -1, math.nan, math.inf, 1e-300]),
        ("seed", [-1, 2**64, 0.5]),
    ],
)
def test_settings_are_refused_by_name(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"^{name} must be a .*number from "):
            Sampler(**{name: value})  # type: ignore[arg-type]
