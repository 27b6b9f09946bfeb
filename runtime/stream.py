"""From ids to text while it is written: whole characters only, stop strings never shown.

A token may end in the middle of a character, and a stop string may begin in the middle of a token
and end several tokens later. What could still become either is held back until it is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Protocol

from plm_edge.errors import UsageError

MAX_STOPS, MAX_STOP_LENGTH = 64, 1000


class TokenBytes(Protocol):
    """The part of the tokenizer that a stream needs."""

    @property
    def special_ids(self) -> Mapping[str, int]: ...

    def token_bytes(self, token: int, /) -> bytes: ...


def check_stops(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings as a tuple, or UsageError."""
    if isinstance(stop, str):
        raise UsageError(f"stop must be a list of strings, not the string {stop!r}")
    if len(stop) > MAX_STOPS:
        raise UsageError(f"stop holds {len(stop)} strings; up to {MAX_STOPS} are possible")
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise UsageError(
                f"stop must hold strings of 1 to {MAX_STOP_LENGTH} characters, not {text!r:.60}"
            )
    return tuple(stop)


class TextStream:
    """Push ids, take the text that is certain. After a stop string: `stopped`."""

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = check_stops(stop)
        self._special = frozenset(tokenizer.special_ids.values())
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that this token makes certain; special tokens have none."""
        if self.stopped or token in self._special:
            return ""
        self._held += self._decoder.decode(self._tokenizer.token_bytes(token))
        cut = self._first_stop()
        if cut is not None:
            self.stopped = True
        else:
            cut = len(self._held) - self._could_begin()
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back and is text after all; an unfinished character is dropped."""
        out = "" if self.stopped else self._held
        self._held = ""
        self._decoder.reset()
        return out

    def _first_stop(self) -> int | None:
        """Where the stop string that ends first begins, whatever the tokens' borders are."""
        found = [(at + len(text), at) for text in self._stop if (at := self._held.find(text)) >= 0]
        return min(found)[1] if found else None

    def _could_begin(self) -> int:
        """Length of the longest end of the held text that some stop string begins with."""
        longest = max((len(text) for text in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stop):
                return length
        return 0
