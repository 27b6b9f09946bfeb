"""Prompt lookup: the same answers as without it, and drafts only where they pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ngram_session import TALE, NgramSession

from plm_edge.errors import NumericalError
from plm_edge.runtime import Session, load
from plm_edge.runtime import chat as chat_module
from plm_edge.runtime.chat import Answer, ChatStats, chat
from plm_edge.runtime.conversation import Conversation
from plm_edge.runtime.lookup import CHANCES, FORGET, MOST, Lookup
from plm_edge.runtime.prompt import Message
from plm_edge.runtime.sampler import Sampler
from plm_edge.template import render_chat

COPY = f"tell {TALE}"  # a question that holds what the answer will be
SAMPLERS = {
    "greedy": {"temperature": 0.0, "seed": 1},
    "greedy, no penalty": {"temperature": 0.0, "repeat_penalty": 1.0, "seed": 1},
    "sampled": {"temperature": 1.5, "seed": 4},
    "cool": {"temperature": 0.6, "seed": 5},
    "hot": {"temperature": 4.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 11},
}


class Free(Lookup):
    """On a machine where more tokens in a call cost nothing: drafts whenever it can."""

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(ids)
        for drafted in (0, 1, 1, 1):
            self.timed(drafted, 1.0)

    def timed(self, drafted: int, seconds: float) -> None:
        super().timed(drafted, 1.0)


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "Lookup", Free)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@dataclass(frozen=True)
class Outcome:
    """All that must not depend on the drafts."""

    text: str
    ids: tuple[int, ...]
    generated: int
    reason: str | None
    recent: tuple[tuple[int, ...], ...]  # ids the repeat penalty was shown, each time
    next_draw: float


def outcome(
    session: Any, messages: Sequence[Message], lookup: bool, settings: dict[str, Any], **limits: Any
) -> tuple[Outcome, ChatStats]:
    recent: list[tuple[int, ...]] = []

    class Recording(Sampler):
        def sample(self, logits: Any, recent_ids: Sequence[int] = ()) -> int:
            recent.append(tuple(recent_ids))
            return super().sample(logits, recent_ids)

    sampler = Recording(**settings)
    answer = chat(session, messages, sampler=sampler, lookup=lookup, **limits)
    text = "".join(answer)
    stats = answer.stats
    draw = float(sampler._draws.random())
    ended = stats.generated_tokens, stats.reason
    return Outcome(text, tuple(session.ids), *ended, tuple(recent), draw), stats


def both(settings: dict[str, Any], n_ctx: int = 512, text: str = COPY, **limits: Any) -> ChatStats:
    """The same turn with and without; the numbers of the one with."""
    plain, without = outcome(NgramSession(n_ctx), user(text), False, settings, **limits)
    fast, stats = outcome(NgramSession(n_ctx), user(text), True, settings, **limits)
    assert astuple(fast) == astuple(plain)
    assert (without.drafted_tokens, without.accepted_tokens) == (0, 0)
    return stats


# ---- the same answer


@pytest.mark.parametrize("settings", SAMPLERS.values(), ids=SAMPLERS)
def test_the_answer_is_that_of_single_steps(settings: dict[str, Any]) -> None:
    stats = both(settings, max_tokens=200)
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    both(settings, text="tell", max_tokens=200)


def test_another_answer_would_show() -> None:
    settings = SAMPLERS["hot"]
    plain, _ = outcome(NgramSession(512), user(COPY), False, settings, max_tokens=50)
    bent, _ = outcome(NgramSession(512), user(COPY), True, settings | {"seed": 12}, max_tokens=50)
    for one, other in zip(astuple(plain), astuple(bent), strict=True):
        assert one != other or one in (50, "length")


def test_a_call_computes_several_ids() -> None:
    session = NgramSession(512)
    answer = chat(session, user(COPY), sampler=Sampler(temperature=0), lookup=True)
    assert "".join(answer) == TALE
    calls = len(session.computed) - 1  # but the prompt
    assert max(session.computed[1:]) == 1 + MOST
    assert calls < answer.stats.generated_tokens / 3
    assert answer.stats.tokens_per_s is not None


@pytest.mark.parametrize("most", range(1, 24))
def test_max_tokens_within_a_draft(most: int) -> None:
    both(SAMPLERS["greedy"], max_tokens=most)
    both(SAMPLERS["sampled"], max_tokens=most)


@pytest.mark.parametrize("most", range(1, 24))
def test_no_more_is_drafted_than_may_be_said(most: int) -> None:
    reached: list[int] = []

    class Watching(NgramSession):
        def truncate(self, n: int) -> None:
            reached.append(self.n_past)
            super().truncate(n)

    answer = chat(Watching(512), user(COPY), most, Sampler(temperature=0), lookup=True)
    assert len("".join(answer))
    assert max(reached) < answer.stats.prompt_tokens + most


@pytest.mark.parametrize("left", range(24))
def test_the_end_of_the_context_within_a_draft(left: int) -> None:
    need = len(render_chat(NgramSession().tokenizer, user(COPY)))
    both(SAMPLERS["greedy"], n_ctx=need + left)
    both(SAMPLERS["sampled"], n_ctx=need + left)


@pytest.mark.parametrize("stop", ["forest", "an thr", "x ran", "zebra", "é", "🐻"])
def test_a_stop_string_within_a_draft(stop: str) -> None:
    stats = both(SAMPLERS["greedy"], stop=[stop])
    assert stats.reason == "stop"
    assert stats.drafted_tokens
    both(SAMPLERS["sampled"], stop=[stop], max_tokens=100)


def test_a_screened_head_leaves_it_off() -> None:
    session = NgramSession(512)
    session.head = "screened"  # whose steps have other logits than its calls of several tokens
    answer = chat(session, user(COPY), sampler=Sampler(temperature=0), lookup=True)
    assert ("".join(answer), answer.stats.drafted_tokens) == (TALE, 0)


def test_a_stop_token_is_never_drafted() -> None:
    seen: list[int] = []

    class Watching(NgramSession):
        def prefill(self, ids: Sequence[int], all_logits: bool = False) -> np.ndarray:
            seen.extend(ids if all_logits else [])
            return super().prefill(ids, all_logits)

    session = Watching(512)
    told = [*user("tell"), {"role": "assistant", "content": TALE}, *user("tell")]
    answer = chat(session, told, sampler=Sampler(temperature=0), lookup=True)
    assert ("".join(answer), answer.stats.reason) == (TALE, "stop")
    assert seen
    assert not set(seen) & session.tokenizer.stop_ids


def test_a_stop_token_within_a_draft() -> None:
    """The draft goes on where the earlier text did, the model ends."""
    stats = both(SAMPLERS["greedy"], text=f"tell {TALE} It met a fox there and")
    assert stats.reason == "stop"
    assert stats.accepted_tokens < stats.drafted_tokens


# ---- what is left behind


def test_pieces_leave_the_session_at_what_was_said() -> None:
    session, tokenizer = NgramSession(512), NgramSession().tokenizer
    answer = chat(session, user(COPY), sampler=Sampler(temperature=0), lookup=True)
    said = ""
    for piece in answer:
        said += piece
        ids = session.ids[answer.stats.prompt_tokens :]
        ended = answer.stats.reason is not None  # by a stop token behind the last id
        assert len(ids) == answer.stats.generated_tokens - (not ended)
        assert said.startswith(tokenizer.decode(ids).rstrip("\ufffd"))
    assert answer.stats.accepted_tokens


@pytest.mark.parametrize("pieces", [1, 5, 9])
def test_an_answer_may_be_left_or_cancelled_at_any_piece(pieces: int) -> None:
    for end in (Answer.close, Answer.cancel):
        session, sampler = NgramSession(512), Sampler(temperature=1.5, seed=4)
        answer = chat(session, user(COPY), sampler=sampler, lookup=True)
        said = "".join(next(answer) for _ in range(pieces))
        end(answer)
        said += "".join(answer)
        count = answer.stats.generated_tokens
        plain = Sampler(temperature=1.5, seed=4)
        want, _ = outcome(NgramSession(512), user(COPY), False, SAMPLERS["sampled"])
        assert want.text.startswith(said)
        assert tuple(session.ids) == want.ids[: answer.stats.prompt_tokens + count - 1]
        assert [plain._draws.random() for _ in range(count + 1)][-1] == sampler._draws.random()


def test_a_cancel_during_a_call_takes_the_draft_back() -> None:
    session = NgramSession(512)
    answer = chat(session, user(COPY), sampler=Sampler(temperature=0), lookup=True)
    said = "".join(next(answer) for _ in range(6))
    session.cancel_after = 4  # ids of the next draft
    said += "".join(answer)
    assert answer.stats.reason == "interrupted"
    assert TALE.startswith(said)
    assert len(session.ids) == answer.stats.prompt_tokens + answer.stats.generated_tokens - 1


class Spoiled(NgramSession):
    """Ends the third row of a draft with a NaN, or with a Ctrl-C while it is looked at."""

    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> np.ndarray:
        rows = super().prefill(ids, all_logits)
        if all_logits:
            rows[2:, 5] = np.nan
        return rows


class Interrupting(Sampler):
    def sample(self, logits: Any, recent_ids: Sequence[int] = ()) -> int:
        try:
            return super().sample(logits, recent_ids)
        except NumericalError:
            raise KeyboardInterrupt from None


@pytest.mark.parametrize(
    ("kind", "error"), [(Sampler, NumericalError), (Interrupting, KeyboardInterrupt)]
)
def test_an_error_within_a_draft_leaves_what_was_said(
    kind: type[Sampler], error: type[BaseException]
) -> None:
    session, talk = Spoiled(512), Conversation(sampler=kind(temperature=0), lookup=True)
    with pytest.raises(error):
        list(talk.ask(session, COPY))
    assert talk.answer is not None
    stats = talk.answer.stats
    said = talk.messages[-1]["content"]
    assert TALE.startswith(said)
    assert len(session.ids) == stats.prompt_tokens + stats.generated_tokens
    assert session.tokenizer.decode(session.ids[stats.prompt_tokens :]) == said


def test_a_conversation_goes_on_as_without() -> None:
    def talked(lookup: bool) -> tuple[list[Message], list[int], int]:
        session = NgramSession(512)
        talk = Conversation(sampler=Sampler(temperature=1.0, seed=2), max_tokens=40, lookup=lookup)
        cached = 0
        for text in (COPY, "tell"):
            "".join(talk.ask(session, text))
            "".join(talk.regenerate(session))
            assert talk.answer is not None
            cached += talk.answer.stats.cached_tokens
        return talk.messages, session.ids, cached

    assert talked(True) == talked(False)


def test_numbers_as_a_line() -> None:
    stats = ChatStats(3, 0, 0, 7, 9, drafted_tokens=6, accepted_tokens=4)
    assert "answer 9 tokens; 4 of 6 drafted accepted; seed 7" in str(stats)


# ---- what is drafted, and whether


def timed(ids: Sequence[int], extra: float = 0.1) -> Lookup:
    """A lookup that has seen steps of a second and calls where another token adds `extra`."""
    lookup = Lookup(ids)
    lookup.timed(0, 1.0)
    for _ in range(5):
        lookup.timed(4, 1.0 + 4 * extra)
    return lookup


def follow(lookup: Lookup, ids: Sequence[int], extra: float) -> tuple[float, int]:
    """Decode `ids` step by step and draft by draft: tokens a second, drafted ids."""
    at, seconds, drafted = 0, 0.0, 0
    while at < len(ids):
        draft = lookup.draft(min(MOST, len(ids) - at - 1))
        seconds += 1.0 + extra * len(draft)
        lookup.timed(len(draft), 1.0 + extra * len(draft))
        drafted += len(draft)
        for guess in [*draft, None]:
            lookup.push(ids[at])
            at += 1
            if guess != ids[at - 1]:
                break
    return len(ids) / seconds, drafted


def test_a_draft_is_what_followed() -> None:
    assert timed([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]).draft(3) == [4, 5, 6]
    assert timed([1, 2, 3, 9, 1, 2, 3, 8, 0, 0, 1, 2, 3]).draft(2) == [8, 0]  # the last time
    assert timed([1, 2, 3, 4, 9, 2, 3, 7, 7, 1, 2, 3]).draft(1) == [4]  # the longer match
    assert timed([2, 3, 4, 5, 9, 2, 3]).draft(1) == [4]  # two ids, where three are new
    assert timed([1, 2, 3, 4, 9, 3]).draft(7) == []
    assert timed([]).draft(7) == timed([1]).draft(7) == []
    assert timed([1, 2, 3, 4, 1, 2, 3]).draft(0) == []


def test_a_draft_may_repeat_itself() -> None:
    assert timed([1, 2, 1, 2, 1, 2], 0.0).draft(5) == [1, 2, 1, 2, 1]
    assert timed([7, 7, 7, 7], 0.0).draft(3) == [7, 7, 7]


def test_nothing_is_drafted_before_a_step_was_timed() -> None:
    lookup = Lookup([1, 2, 3] * 9)
    for token in (1, 2, 3):
        lookup.push(token)
    assert lookup.draft(7) == []
    lookup.timed(0, 1.0)
    assert lookup.draft(7)


def test_a_draft_is_as_long_as_pays() -> None:
    text = list(range(50))
    lengths = [len(timed([*text, *text[:9]], extra).draft(MOST)) for extra in (0.01, 0.3, 0.7, 1.0)]
    assert lengths[0] == MOST
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0
    assert len(timed([1, 2, 3, 4, 1, 2, 3], CHANCES[3] - 0.1).draft(1)) == 1
    assert timed([1, 2, 3, 4, 1, 2, 3], CHANCES[3] - 0.01).draft(1) == []  # gains below WORTH


def test_repeated_text_is_fast_and_new_text_costs_nothing() -> None:
    rng = np.random.default_rng(0)
    old = [int(i) for i in rng.integers(0, 1000, 300)]
    few = [int(i) for i in rng.integers(0, 12, 600)]  # n-grams recur, what follows them does not
    rate, _ = follow(Lookup(old), old, 0.1)
    assert rate > 3
    rate, drafted = follow(Lookup([]), few, 0.1)
    assert drafted
    assert rate > 0.97


def test_it_comes_back_when_text_repeats_again() -> None:
    rng = np.random.default_rng(0)
    old = [int(i) for i in rng.integers(0, 1000, 300)]
    few = [int(i) for i in rng.integers(2000, 2012, 600)]
    lookup = Lookup(old)
    follow(lookup, few, 0.1)
    rate, _ = follow(lookup, old, 0.1)
    assert rate > 3


def test_dear_calls_switch_it_off_and_are_tried_again() -> None:
    rng = np.random.default_rng(0)
    old = [int(i) for i in rng.integers(0, 1000, 3 * FORGET)]
    lookup = Lookup(old)
    rate, drafted = follow(lookup, old, 1.0)  # another token costs a whole step
    assert rate > 0.97
    assert 0 < drafted < 5 * 4 * MOST
    rate, _ = follow(lookup, old, 0.1)  # the other programs are gone
    assert rate > 1.5


# ---- the native session


QUESTIONS = {
    "new text": "Tell me a tale about a fox",
    "text that repeats": "Once there was a king who had a fox and a bear. " * 4,
}


@pytest.mark.parametrize("settings", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_native_the_answer_is_that_of_single_steps(
    demo: Session, question: str, settings: dict[str, Any]
) -> None:
    demo.reset()
    plain, _ = outcome(demo, user(question), False, settings, max_tokens=150)
    rows = demo.cached_rows().copy()
    demo.reset()
    fast, stats = outcome(demo, user(question), True, settings, max_tokens=150)
    assert astuple(fast) == astuple(plain)
    assert (demo.cached_rows() == rows).all()
    if settings["temperature"] < 1:
        assert stats.drafted_tokens


@pytest.mark.parametrize("quant", ["F32", "Q8_0", "Q4_0"])
def test_native_shapes_and_formats(bundle_of: Callable[..., Path], quant: str) -> None:
    with load(bundle_of("blocks", quant), threads=1) as session:
        for settings in SAMPLERS.values():
            session.reset()
            plain, _ = outcome(session, user("a b a b a b"), False, settings, max_tokens=60)
            session.reset()
            fast, _ = outcome(session, user("a b a b a b"), True, settings, max_tokens=60)
            assert astuple(fast) == astuple(plain)


def test_native_a_conversation_goes_on_as_without(demo: Session) -> None:
    def talked(lookup: bool) -> tuple[list[Message], tuple[int, ...]]:
        demo.reset()
        talk = Conversation(sampler=Sampler(seed=3), max_tokens=40, lookup=lookup)
        for text in QUESTIONS.values():
            "".join(talk.ask(demo, text))
            "".join(talk.regenerate(demo))
        return talk.messages, demo.ids

    assert talked(True) == talked(False)
