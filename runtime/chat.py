"""A chat turn over a session: messages in, pieces of text out.

answer = chat(session, [{"role": "user", "content": "Hello"}], max_tokens=64)
for piece in answer: print(piece, end="")
answer.stats
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from plm_edge.errors import Interrupted, UsageError
from plm_edge.runtime.lookup import MOST, Lookup
from plm_edge.runtime.prompt import Message, Prompt, fit
from plm_edge.runtime.reuse import common
from plm_edge.runtime.sampler import RECENT, Logits, Sampler
from plm_edge.runtime.stream import TextStream, check_stops
from plm_edge.template import check_messages
from plm_edge.workspace import PREFILL_CHUNK

if TYPE_CHECKING:
    from plm_edge.runtime.any_session import AnySession

Notice = Callable[[str], None]


@dataclass(frozen=True)
class ChatStats:
    """What a turn cost so far. Rates and times are None until there is something to measure."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, not computed again
    dropped_turns: int  # oldest turns left out, since the context is full
    seed: int
    generated_tokens: int = 0
    first_token_s: float | None = None  # from the start of the prefill to the first id
    tokens_per_s: float | None = None  # after the first token
    reason: str | None = None  # "stop", "length", "interrupted"; None: still running, or an error
    drafted_tokens: int = 0  # guessed by lookup
    accepted_tokens: int = 0  # of them, those that were chosen

    def __str__(self) -> str:
        """One line; what was not measured is left out."""
        parts = [f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} of them cached"]
        if self.first_token_s is not None:
            parts.append(f"first after {self.first_token_s:.2f} s")
        parts.append(f"answer {self.generated_tokens} tokens")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.drafted_tokens:
            parts.append(f"{self.accepted_tokens} of {self.drafted_tokens} drafted accepted")
        return f"[{'; '.join(parts)}; seed {self.seed}; {self.reason or 'failed'}]"


class Answer(Iterator[str]):
    """The pieces of one answer. `cancel` ends it early, from any thread or a signal handler.

    Whenever a piece is handed out, the session holds the ids of the prompt and of all pieces so
    far (the last id only where a stop token followed it), and the sampler has drawn once for each.
    """

    def __init__(
        self, session: AnySession, prompt: Prompt, limits: Limits, sampler: Sampler, lookup: bool
    ) -> None:
        self._session, self._prompt, self._limits, self._sampler = session, prompt, limits, sampler
        self._ids = list(prompt.ids)
        self._stream = TextStream(session.tokenizer, limits.stop)
        # Calls of several tokens with all logits have the full head, steps that of the session.
        self._lookup = Lookup(prompt.ids) if lookup and session.head == "full" else None
        self._cancelled = False
        self._generated = self._drafted = self._accepted = 0
        self._first_s: float | None = None
        self._steps, self._steps_s = 0, 0.0
        self._reason: str | None = None
        self._pieces: Generator[str] = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Stop within one chunk of the prefill or one token; the iteration then ends normally."""
        self._cancelled = True
        self._session.cancel()

    def close(self) -> None:
        """End the answer here; what was said stays in the session's cache."""
        self._pieces.close()

    @property
    def stats(self) -> ChatStats:
        """The numbers of this moment."""
        return ChatStats(
            prompt_tokens=len(self._prompt.ids),
            cached_tokens=self._prompt.cached,
            dropped_turns=self._prompt.dropped,
            seed=int(self._sampler.seed or 0),
            generated_tokens=self._generated,
            first_token_s=self._first_s,
            tokens_per_s=self._steps / self._steps_s if self._steps else None,
            reason=self._reason,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    def _run(self) -> Generator[str]:
        try:
            started = time.monotonic()
            rows, draft = self._read_prompt(), list[int]()
            while not self._cancelled:
                piece = self._choose(rows, draft, started)
                if piece:
                    yield piece
                if self._reason or self._cancelled:
                    break
                started = time.monotonic()
                draft = self._draft()
                rows = self._compute(draft)
        except (Interrupted, KeyboardInterrupt, GeneratorExit) as error:
            self._reason = self._reason or "interrupted"
            if not isinstance(error, Interrupted):
                raise
        self._reason = self._reason or "interrupted"
        tail = self._stream.flush()
        if tail:
            yield tail

    def _read_prompt(self) -> list[Logits]:
        """The logits of what follows the prompt; none after a cancel."""
        session, ids = self._session, self._ids
        # Asked now: another answer may have run in the session since this one was prepared.
        cached = min(common(session.ids, ids), len(ids) - 1)
        self._prompt = replace(self._prompt, cached=cached)
        session.truncate(cached)
        rows: list[Logits] = []
        # In pieces: a cancel that falls between two calls is seen after one of them at the latest.
        for start in range(cached, len(ids), PREFILL_CHUNK):
            if self._cancelled:
                break
            rows = [session.prefill(ids[start : start + PREFILL_CHUNK])]
        return rows

    def _draft(self) -> list[int]:
        """Ids that may follow the last one; as many as may still be said, no stop token."""
        if self._lookup is None:
            return []
        room = min(MOST, self._session.n_ctx - len(self._ids))
        if self._limits.max_tokens is not None:
            room = min(room, self._limits.max_tokens - self._generated - 1)
        guessed = self._lookup.draft(room)
        return list(takewhile(lambda token: token not in self._limits.stop_ids, guessed))

    def _compute(self, draft: list[int]) -> list[Logits]:
        """Append the last id and the draft; the logits behind each of them."""
        started, last = time.monotonic(), self._ids[-1]
        rows: list[Logits]
        if draft:
            rows = list(self._session.prefill([last, *draft], all_logits=True))
        else:
            rows = [self._session.step(last)]
        if self._lookup is not None:
            self._lookup.timed(len(draft), time.monotonic() - started)
        return rows

    def _choose(self, rows: list[Logits], draft: list[int], started: float) -> str:
        """Sample row by row while the draft is what was chosen; the text of that.

        A stop string is looked for before the next id is drawn. The session keeps the ids that
        were chosen but the last, or those of the call before where an error ends this one.
        """
        session, n_tokens = self._session, self._session.tokenizer.n_tokens
        said: list[str] = []
        before, kept = len(self._ids), session.n_past - len(draft)
        try:
            for at, row in enumerate(rows):
                token = self._sampler.sample(row[:n_tokens], self._ids[-RECENT:])
                if token in self._limits.stop_ids:
                    self._reason = "stop"
                    break
                said.append(self._say(token))
                self._end(self._generated + len(said))
                if self._reason or draft[at : at + 1] != [token]:
                    break
            kept += at
        finally:
            if draft:
                session.truncate(kept)
        self._generated += len(said)
        self._drafted += len(draft)
        self._accepted += common(self._ids[before:], draft)
        self._clock(at + 1, time.monotonic() - started)
        return "".join(said)

    def _say(self, token: int) -> str:
        self._ids.append(token)
        if self._lookup is not None:
            self._lookup.push(token)
        return self._stream.push(token)

    def _end(self, generated: int) -> None:
        """Set the reason where the answer ends with the last id."""
        if self._stream.stopped:
            self._reason = "stop"
        elif generated == self._limits.max_tokens or len(self._ids) > self._session.n_ctx:
            self._reason = "length"

    def _clock(self, tokens: int, seconds: float) -> None:
        if self._first_s is None:
            self._first_s = seconds
        else:
            self._steps += tokens
            self._steps_s += seconds


@dataclass(frozen=True)
class Limits:
    """When an answer ends, apart from the context."""

    max_tokens: int | None
    stop: tuple[str, ...]
    stop_ids: frozenset[int]


def chat(
    session: AnySession,
    messages: Sequence[Message],
    max_tokens: int | None = None,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
    notice: Notice | None = None,
    lookup: bool = False,
) -> Answer:
    """Answer the last message. Only what differs from the session's cached ids is computed.

    Where the conversation has outgrown the context, its oldest turns are left out and `notice` (a
    line on stderr by default) says so. Raises at once if the last message alone is too long.
    `lookup` guesses tokens from earlier text where that is faster; it changes no token, and does
    nothing in a session with a screened head.
    """
    check_messages(messages)
    whole = isinstance(max_tokens, int) and not isinstance(max_tokens, bool)
    if max_tokens is not None and not (whole and max_tokens > 0):
        raise UsageError(f"max_tokens must be a whole number from 1, or None, not {max_tokens!r}")
    tokenizer = session.tokenizer
    texts = check_stops(stop)
    stop_ids = {tokenizer.special_ids[text] for text in texts if text in tokenizer.special_ids}
    limits = Limits(max_tokens, texts, tokenizer.stop_ids | stop_ids)
    prompt = fit(session, messages, max_tokens)
    if prompt.dropped:
        turns = "1 turn was" if prompt.dropped == 1 else f"{prompt.dropped} turns were"
        line = f"the context of {session.n_ctx} tokens is full: the oldest {turns} left out"
        (notice or _to_stderr)(line)
    return Answer(session, prompt, limits, sampler or Sampler(), lookup)


def _to_stderr(line: str) -> None:
    print(f"plm-edge: {line}", file=sys.stderr)
