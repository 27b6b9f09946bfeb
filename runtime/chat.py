"""A chat turn over a session: messages in, pieces of text out.

answer = chat(session, [{"role": "user", "content": "Hello"}], max_tokens=64)
for piece in answer: print(piece, end="")
answer.stats
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from plm_edge.errors import ContextOverflow, Interrupted, UsageError
from plm_edge.runtime.reuse import common, reuse
from plm_edge.runtime.sampler import RECENT, Sampler
from plm_edge.runtime.stream import TextStream, check_stops
from plm_edge.template import check_messages, render_chat
from plm_edge.template_sandbox import MAX_OUTPUT
from plm_edge.workspace import PREFILL_CHUNK

if TYPE_CHECKING:
    from plm_edge.runtime.session import Session

Message = Mapping[str, str]
Notice = Callable[[str], None]

LONGEST_TOKEN = 256  # characters; assumed of any vocabulary
ROOM = 4  # a prompt leaves one part in ROOM of the context to the answer, or drops old turns


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

    def __str__(self) -> str:
        """One line; what was not measured is left out."""
        parts = [f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} of them cached"]
        if self.first_token_s is not None:
            parts.append(f"first after {self.first_token_s:.2f} s")
        parts.append(f"answer {self.generated_tokens} tokens")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        return f"[{'; '.join(parts)}; seed {self.seed}; {self.reason or 'failed'}]"


class Answer(Iterator[str]):
    """The pieces of one answer. `cancel` ends it early, from any thread or a signal handler."""

    def __init__(self, session: Session, prompt: Prompt, limits: Limits, sampler: Sampler) -> None:
        self._session, self._prompt, self._limits, self._sampler = session, prompt, limits, sampler
        self._cancelled = False
        self._generated = 0
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
        )

    def _run(self) -> Generator[str]:
        stream = TextStream(self._session.tokenizer, self._limits.stop)
        try:
            for token in self._tokens():
                piece = stream.push(token)
                if stream.stopped:
                    self._reason = "stop"
                if piece:
                    yield piece
                if stream.stopped:
                    return
        except (Interrupted, KeyboardInterrupt, GeneratorExit) as error:
            self._reason = self._reason or "interrupted"
            if not isinstance(error, Interrupted):
                raise
        tail = stream.flush()
        if tail:
            yield tail

    def _tokens(self) -> Iterator[int]:
        """Sampled ids; sets the reason when it ends by itself."""
        session, ids = self._session, list(self._prompt.ids)
        stop_ids = self._limits.stop_ids
        started = time.monotonic()
        # Asked now: another answer may have run in the session since this one was prepared.
        cached = min(common(session.ids, ids), len(ids) - 1)
        self._prompt = replace(self._prompt, cached=cached)
        session.truncate(cached)
        # In pieces: a cancel that falls between two calls is seen after one of them at the latest.
        for start in range(cached, len(ids), PREFILL_CHUNK):
            if self._cancelled:
                break
            logits = session.prefill(ids[start : start + PREFILL_CHUNK])
        while not self._cancelled:
            token = self._sampler.sample(logits[: session.tokenizer.n_tokens], ids[-RECENT:])
            self._clock(time.monotonic() - started)
            if token in stop_ids:
                self._reason = "stop"
                return
            self._generated += 1
            ids.append(token)
            yield token
            if self._generated == self._limits.max_tokens or session.n_past >= session.n_ctx:
                self._reason = "length"
                return
            if self._cancelled:
                break
            started = time.monotonic()
            logits = session.step(token)
        self._reason = "interrupted"

    def _clock(self, seconds: float) -> None:
        if self._first_s is None:
            self._first_s = seconds
        else:
            self._steps += 1
            self._steps_s += seconds


@dataclass(frozen=True)
class Limits:
    """When an answer ends, apart from the context."""

    max_tokens: int | None
    stop: tuple[str, ...]
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class Prompt:
    """Ids of a turn; the first `cached` of them lie in the session already."""

    ids: tuple[int, ...]
    cached: int
    dropped: int  # turns


def chat(
    session: Session,
    messages: Sequence[Message],
    max_tokens: int | None = None,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
    notice: Notice | None = None,
) -> Answer:
    """Answer the last message. Only what differs from the session's cached ids is computed.

    Where the conversation has outgrown the context, its oldest turns are left out and `notice` (a
    line on stderr by default) says so. Raises at once if the last message alone is too long.
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
    return Answer(session, prompt, limits, sampler or Sampler())


def fit(session: Session, messages: Sequence[Message], max_tokens: int | None) -> Prompt:
    """The prompt that fits into the context, without the oldest turns if it must be.

    Leaving out moves everything behind it, which is then computed again. So turns go until the
    prompt fills half the context; the next turns reuse that prompt until it, too, has grown too
    long.
    """
    head, turns = split_turns(messages)
    n_ctx, held = session.n_ctx, session.ids
    room = max(1, min(max_tokens or n_ctx, n_ctx // ROOM))
    far = _out_of_reach(head, turns, n_ctx)

    def render(dropped: int) -> list[int]:
        kept = [message for turn in turns[dropped:] for message in turn]
        return render_chat(session.tokenizer, [*head, *kept])

    def first_below(most: int) -> int:
        low, high = far, len(turns) - 1  # the last turn always stays
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(render(middle)) <= most else (middle + 1, high)
        return low

    least = first_below(n_ctx - room)
    dropped, ids = least, render(least)
    if least:
        for dropped in range(least, first_below(n_ctx // 2) + 1):
            ids = render(dropped)
            if reuse(held, ids, session.tokenizer)[1] * 2 > len(ids):
                break
    if not 0 < len(ids) <= n_ctx:
        raise _too_long(f"{len(ids)} tokens", n_ctx)
    joined, cached = reuse(held, ids, session.tokenizer)
    if len(joined) > n_ctx:
        joined, cached = ids, min(common(held, ids), len(ids) - 1)
    return Prompt(tuple(joined), cached, dropped)


def _out_of_reach(head: list[Message], turns: list[list[Message]], n_ctx: int) -> int:
    """How many of the oldest turns cannot fit by their length alone, so need not be rendered."""
    most = min(n_ctx * LONGEST_TOKEN, MAX_OUTPUT // 2)  # the template needs some for itself
    left = most - sum(len(message["content"]) for message in head)
    for at in range(len(turns) - 1, -1, -1):
        left -= sum(len(message["content"]) for message in turns[at])
        if left < 0:
            if at == len(turns) - 1:
                raise _too_long(f"{most - left} characters", n_ctx)
            return at + 1
    return 0


def _too_long(found: str, n_ctx: int) -> ContextOverflow:
    return ContextOverflow(
        f"the message and the system prompt take {found}, the context holds {n_ctx} tokens; "
        "shorten them or ask for a larger context with -c"
    )


def split_turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """System messages at the front, then the turns; each begins with a message of the user."""
    first = next((at for at, m in enumerate(messages) if m["role"] != "system"), len(messages) - 1)
    turns: list[list[Message]] = []
    for message in messages[first:]:
        if not turns or message["role"] == "user":
            turns.append([])
        turns[-1].append(message)
    return list(messages[:first]), turns


def _to_stderr(line: str) -> None:
    print(f"plm-edge: {line}", file=sys.stderr)
