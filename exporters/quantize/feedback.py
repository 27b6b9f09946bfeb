"""Rounding that answers for its errors: what one column loses, the columns before it make good.

A row w is stored as v. On inputs x of second moment H = mean of x x^T the product is off by
(w - v) H (w - v)^T in the mean square. With H = L D L^T, L lower triangular with ones on its
diagonal, that is a sum over the columns

    sum_k D_k (t_k - v_k)^2     where t_k = w_k + sum_{i > k} (w_i - v_i) L_ik

and t_k depends on later columns alone. So columns are rounded from the last to the first, each to
the nearest number to its t_k: GPTQ's rule (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304,
section 3.1), which needs no inverse. The scale of some columns is chosen when the columns behind
them stand: several are tried, and the least sum over these columns wins, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_LEAST_DAMPING, _MORE = 1e-5, 10.0  # added while H is not positive definite in float32
_TRIES = 8


@dataclass(frozen=True)
class Factor:
    """H = L D L^T."""

    lower: Float32  # L (cols, cols)
    weights: Float32  # D (cols,)


def damped(moment: Float32, share: float) -> Float32:
    """H (cols, cols) with a share of its mean input power added to each input."""
    power = float(np.diagonal(moment).mean(dtype=np.float64)) or 1.0
    more: Float32 = moment.copy()
    more.flat[:: len(moment) + 1] += np.float32(power * share)
    return more


def factor(moment: Float32) -> Factor:
    """Of H (cols, cols), damped further if float32 needs it."""
    for tried in range(_TRIES):
        try:
            lower = np.linalg.cholesky(moment)
        except np.linalg.LinAlgError:
            moment = damped(moment, _LEAST_DAMPING * _MORE**tried)
            continue
        diagonal = np.diagonal(lower).copy()
        lower /= diagonal
        return Factor(lower, np.square(diagonal))
    raise AssertionError("a second moment, damped, is positive definite")


@dataclass(frozen=True)
class Scales:
    """Ways to store a run of columns, n of them for each row: value = scale * quant - least."""

    scale: Float32  # (rows, n)
    least: Float32  # (rows, n), or of one 0
    codes: NDArray[np.int64]  # (rows, n, number of codes): how the format writes them


@dataclass(frozen=True)
class Chosen:
    """The best way for each row, and what it stores."""

    quants: NDArray[np.int16]  # (rows, cols)
    values: Float32  # (rows, cols)
    codes: NDArray[np.int64]  # (rows, number of codes)


def round_run(
    rows: Float32,
    target: Float32,
    scales: Scales,
    limits: tuple[int, int],
    lower: Float32 | None,
    weights: Float32,
) -> Chosen:
    """Store some columns of `rows` (rows, cols); `target` has what later columns lost added.

    `lower` (cols, cols) and `weights` (cols,) are theirs of L and D; without L nothing is made
    good.
    """
    with np.errstate(divide="ignore"):
        inverse = np.where(scales.scale != 0.0, np.float32(1.0) / scales.scale, np.float32(0.0))
    inverse = np.where(np.isfinite(inverse), inverse, np.float32(0.0))
    count, cols = rows.shape
    ways = scales.scale.shape[1]
    quants = np.empty((cols, count, ways), np.float32)
    values = np.empty((cols, count, ways), np.float32)
    lost = np.empty((cols, count, ways), np.float32)
    cost = np.zeros((count, ways), np.float32)
    for k in reversed(range(cols)):
        wanted = np.broadcast_to(target[:, k, None], (count, ways))
        if lower is not None and k + 1 < cols:
            feedback = lower[k + 1 :, k] @ lost[k + 1 :].reshape(cols - k - 1, -1)
            wanted = wanted + feedback.reshape(count, ways)
        quants[k] = np.clip(np.rint((wanted + scales.least) * inverse), *limits)
        values[k] = quants[k] * scales.scale - scales.least
        lost[k] = rows[:, k, None] - values[k]
        cost += weights[k] * np.square(wanted - values[k])
    best, every = cost.argmin(axis=1), np.arange(count)
    return Chosen(
        quants[:, every, best].T.astype(np.int16),
        np.ascontiguousarray(values[:, every, best].T),
        scales.codes[every, best],
    )
