"""The words that mean one thing: how the tests measure a difference between logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def relative_error(got: Array, want: Array) -> float:
    """max|got - want| / max|want| over everything; NaN if either holds a NaN."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    return float(np.abs(got - want).max() / np.abs(want).max())


def close(got: Array, want: Array, tol: float) -> None:
    """Assert relative_error(got, want) < tol; a NaN fails, because NaN < tol is False."""
    error = relative_error(got, want)
    assert error < tol, f"relative error {error:.2e}, allowed {tol:.0e}"


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Logits (T, vocab) -> log probabilities (T, vocab), in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl(reference: Array, tested: Array) -> float:
    """Mean over positions of KL(reference || tested) in nats; both (T, vocab) logits."""
    assert reference.shape == tested.shape, f"shape {tested.shape}, expected {reference.shape}"
    log_p, log_q = log_softmax(reference), log_softmax(tested)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def equal_greedy(reference: Array, tokens: ArrayLike, least: float = 1e-3) -> tuple[int, int]:
    """How many tokens from the first on are the reference's likeliest, and where it is undecided.

    Reference (T, vocab) logits of the positions that the tokens (T) were chosen at. Undecided: the
    gap between its first two logits is below `least` of their range; T where it never is.
    """
    best = np.partition(reference, -2, axis=-1)[:, -2:]  # second, first
    gap = (best[:, 1] - best[:, 0]) / (best[:, 1] - reference.min(axis=-1))
    differs = reference.argmax(axis=-1) != np.asarray(tokens)
    return _first(differs), _first(~(gap >= least))  # a NaN is undecided


def _first(which: NDArray[np.bool_]) -> int:
    return int(which.argmax()) if which.any() else len(which)
