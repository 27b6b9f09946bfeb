"""The least loss that a size allows: one format for each tensor, by dynamic programming.

Losses of tensors are taken to add up, which small ones do (docs/decisions.md has figures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 8192  # sizes are counted in as many parts of what is left above the smallest choice


@dataclass(frozen=True)
class Choice:
    """One way to store a tensor."""

    format: str
    nbytes: int
    loss: float


def least_loss(choices: Mapping[str, tuple[Choice, ...]], budget: int) -> dict[str, Choice] | None:
    """Name -> the choice, at most `budget` bytes in all and the least sum of losses.

    None where not even the smallest choices fit. Sizes round up to a step, so that the sum never
    exceeds the budget: a mix that is a step from it may be missed.
    """
    smallest = {
        name: min(ways, key=lambda way: way.nbytes).nbytes for name, ways in choices.items()
    }
    room = budget - sum(smallest.values())
    if room < 0:
        return None
    step = max(1, -(-room // _STEPS))
    width = room // step + 1
    best = np.zeros(width)  # least loss of the tensors so far, with so many steps at most
    taken: list[NDArray[np.int64]] = []
    for name, ways in choices.items():
        totals = np.full((len(ways), width), np.inf)
        for number, way in enumerate(ways):
            steps = _steps(way.nbytes - smallest[name], step)
            if steps < width:
                totals[number, steps:] = best[: width - steps] + way.loss
        taken.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    found, at = {}, width - 1
    for (name, ways), numbers in zip(reversed(list(choices.items())), reversed(taken), strict=True):
        way = ways[int(numbers[at])]
        found[name] = way
        at -= _steps(way.nbytes - smallest[name], step)
    return {name: found[name] for name in choices}


def _steps(nbytes: int, step: int) -> int:
    return -(-nbytes // step)
