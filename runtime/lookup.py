"""Prompt lookup: guess the next ids from where the last ones occurred before, where that pays.

Quotations, names, code and lists repeat what a sequence holds already. What followed the last ids
there is a draft; one call computes the logits behind all of it, and the sampler decides as ever, so
a draft changes when an id is known, never which. How far a draft goes follows from two things that
are measured all the time: how often such guesses are right (also where nothing is drafted, since
the id that is chosen tells), and how long a call of several tokens takes beside a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from plm_edge.native.kernels import FEW

NGRAMS = (3, 2)  # how many of the last ids must have occurred before, the longer first
MOST = FEW - 1  # drafted ids: calls of up to FEW tokens have the logits of steps, bit for bit
LONGEST = 8  # matched ids; longer matches are guessed like these
# How often the next id is as after the match before, until measured, by the length of the match.
CHANCES = (0.0, 0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9)
# What another token adds to a call, in steps, until measured; of AVX2, docs/decisions.md.
EXTRA = 0.55
WORTH = 1.05  # tokens a step that a draft must promise
WINDOW = 16  # guesses over which a chance is averaged
FORGET = 256  # steps after which the time of a call is measured anew


class Lookup:
    """The ids so far, where each n-gram of them last occurred, and what guessing is worth."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # n-gram -> index of the id that followed
        self._at = 0  # index of the guessed id; 0: there is none
        self._matched = 0  # ids before it that are as the last ones
        self._chances = list(CHANCES)
        self._steps: deque[float] = deque(maxlen=7)  # seconds
        self._extras = deque([EXTRA, EXTRA], maxlen=5)
        self._extra = EXTRA  # what another token adds to a call, in steps
        self._since = 0  # steps since the last draft
        for token in ids:
            self._append(token)
        self._find()

    def push(self, token: int) -> None:
        """The id that was chosen next."""
        if self._at:
            right = self._ids[self._at] == token
            chance = self._chances[self._matched]
            self._chances[self._matched] = chance + (right - chance) / WINDOW
            self._at = self._at + 1 if right else 0
            self._matched = min(self._matched + 1, LONGEST)
        self._append(token)
        if not self._at:
            self._find()

    def draft(self, most: int) -> list[int]:
        """Up to `most` ids that may come next; none where a plain step is faster."""
        if not self._at or not self._steps:
            return []
        length, chance = 0, 1.0
        tokens = cost = 1.0  # which a call brings, and takes in steps
        while length < min(most, MOST):
            chance *= self._chances[min(self._matched + length, LONGEST)]
            if (
                chance * cost <= tokens * self._extra
            ):  # nor would any further id raise tokens / cost
                break
            length, tokens, cost = length + 1, tokens + chance, cost + self._extra
        if tokens < WORTH * cost:
            return []
        period = len(self._ids) - self._at  # a draft that reaches its own beginning repeats it
        return [self._ids[self._at + n % period] for n in range(length)]

    def timed(self, drafted: int, seconds: float) -> None:
        """How long the call took that appended an id and `drafted` more."""
        if drafted:
            self._extras.append((seconds / _median(self._steps) - 1) / drafted)
            self._extra = _median(self._extras)
            self._since = 0
            return
        self._steps.append(seconds)
        self._since += 1
        if self._since == FORGET:
            self._extras.extend([EXTRA, EXTRA])
            self._extra = min(self._extra, EXTRA)

    def _append(self, token: int) -> None:
        end = len(self._ids)
        for n in NGRAMS:
            if end >= n:
                self._behind[tuple(self._ids[-n:])] = end
        self._ids.append(token)

    def _find(self) -> None:
        """The last ids, but for themselves, earlier in the sequence."""
        for n in NGRAMS:
            self._at = self._behind.get(tuple(self._ids[-n:]), 0)
            if self._at:
                self._matched = n
                return


def _median(values: deque[float]) -> float:
    return sorted(values)[len(values) // 2]
