"""From logits to the next id: penalties, top-k, top-p, min-p, temperature, one random draw.

The order and the meaning of each filter are those of llama.cpp's default chain
(src/llama-sampler.cpp), so a setting that works there works here. The same seed and the same logits
give the same ids on every machine: ties are broken by the lower id, and each draw takes one number
from numpy's PCG64.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import NumericalError, UsageError

SORTED_FIRST = 256  # candidates; top-p seldom needs more of a large vocabulary
RECENT = 64  # how many of the last ids the repeat penalty looks at

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sampler:
    """Settings, checked once, and the random numbers that follow from the seed.

    temperature 0 takes the largest logit; top_k 0, top_p 1, min_p 0 and repeat_penalty 1 switch
    that filter off. seed None picks one; `seed` then holds it, so that a run can be repeated.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    seed: int | None = None
    _draws: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, 0.0, 100.0)
        _check_whole("top_k", self.top_k, 0, 2**31 - 1)
        _check_real("top_p", self.top_p, 0.0, 1.0)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        _check_real("repeat_penalty", self.repeat_penalty, 0.1, 10.0)
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))
        _check_whole("seed", self.seed, 0, 2**64 - 1)
        object.__setattr__(self, "_draws", np.random.Generator(np.random.PCG64(self.seed)))

    def sample(self, logits: Logits, recent_ids: Sequence[int] = ()) -> int:
        """The next id, below len(logits). logits (n_tokens,): rows past the tokenizer stay out."""
        top = float(logits.max()) if logits.size else -math.inf
        if not math.isfinite(top):  # max() hands on a NaN
            raise NumericalError(
                f"expected finite logits, found {top}; weights or cache are damaged: "
                "download or export the model again"
            )
        if self.repeat_penalty != 1.0:
            logits = penalized(logits, recent_ids, self.repeat_penalty)
        if self.temperature == 0:
            return int(logits.argmax())
        ids = np.arange(logits.size)  # (candidates,)
        if 0 < self.top_k < logits.size:
            ids = largest(logits, self.top_k)
        ids, values = nucleus(ids, logits[ids], self.top_p, self.min_p)
        with np.errstate(over="ignore"):  # temperature near 0: exp(-inf) for all but the first
            weights = np.exp((values - values.max()) / self.temperature)
        edges = np.cumsum(weights)  # (candidates,)
        found = int(np.searchsorted(edges, self._draws.random() * edges[-1], side="right"))
        return int(ids[min(found, ids.size - 1)])


def penalized(logits: Logits, recent_ids: Sequence[int], penalty: float) -> Logits:
    """A copy in which ids seen lately are less likely: divided if positive, else multiplied."""
    seen = np.unique(np.asarray(recent_ids[-RECENT:], dtype=np.int64))
    seen = seen[seen < logits.size]
    values = logits[seen].astype(np.float64)
    values = np.where(values > 0, values / penalty, values * penalty)
    out: Logits = logits.copy()
    most = np.finfo(out.dtype).max  # which a penalty of 0.1 could exceed
    out[seen] = np.clip(values, -most, most)
    return out


def largest(logits: Logits, count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits, ascending; of equal ones at the edge the lower ids."""
    edge = np.partition(logits, logits.size - count)[logits.size - count]
    above = np.flatnonzero(logits > edge)
    level = np.flatnonzero(logits == edge)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


def nucleus(
    ids: NDArray[np.int64], logits: Logits, top_p: float, min_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What top-p and then min-p leave: ids and their logits, each (kept,).

    Both keep a head of the sorted candidates, so min-p may go first, on the unsorted ones, as
    long as the shares that top-p adds up are of all candidates: of a large vocabulary only a few
    are sorted.
    """
    values = logits.astype(np.float64)
    weights = np.exp(values - values.max())
    total = weights.sum()
    kept = np.flatnonzero((weights >= min_p) & (values > -np.inf))
    for head in (SORTED_FIRST, kept.size) if top_p < 1.0 else ():
        first = kept[largest(values[kept], head)] if head < kept.size else kept
        first = first[np.argsort(-values[first], kind="stable")]
        share = np.cumsum(weights[first])
        if share[-1] >= top_p * total or first.size == kept.size:
            kept = first[: int(np.searchsorted(share, top_p * total, side="left")) + 1]
            break
    return ids[kept], values[kept]


def _check_real(name: str, value: object, low: float, high: float) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low <= value <= high:  # type: ignore[operator]  # NaN compares False
        raise UsageError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:  # type: ignore[operator]
        raise UsageError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
