"""The prompt of a turn: as much of the conversation as leaves room for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plm_edge.errors import ContextOverflow
from plm_edge.runtime.reuse import common, reuse
from plm_edge.template import render_chat
from plm_edge.template_sandbox import MAX_OUTPUT

if TYPE_CHECKING:
    from plm_edge.runtime.any_session import AnySession

Message = Mapping[str, str]

LONGEST_TOKEN = 256  # characters; assumed of any vocabulary
ROOM = 4  # a prompt leaves one part in ROOM of the context to the answer, or drops old turns


@dataclass(frozen=True)
class Prompt:
    """Ids of a turn; the first `cached` of them lie in the session already."""

    ids: tuple[int, ...]
    cached: int
    dropped: int  # turns


def fit(session: AnySession, messages: Sequence[Message], max_tokens: int | None) -> Prompt:
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
