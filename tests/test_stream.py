"""Streamed text: whole characters, no stop string, no special token, wherever a token ends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ngram_session import ByteTokenizer

from plm_edge.errors import UsageError
from plm_edge.runtime.reuse import common, reuse
from plm_edge.runtime.stream import TextStream, check_stops


class Pieces(ByteTokenizer):
    """Any pieces of bytes as tokens 1000, 1001, ..."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces_ = pieces

    def token_bytes(self, token: int) -> bytes:
        return self.pieces_[token - 1000] if token >= 1000 else super().token_bytes(token)


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    s = TextStream(Pieces(pieces), stop)
    out = [s.push(1000 + at) for at in range(len(pieces))]
    return [*out, s.flush()]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def test_a_character_comes_whole() -> None:
    assert stream([b"caf\xc3", b"\xa9 \xf0\x9f", b"\xa6\x8a"]) == ["caf", "é ", "🦊", ""]


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    assert stream([b"a\xf0\x9f\xa6"]) == ["a", ""]


def test_bytes_that_are_no_text_become_one_replacement() -> None:
    assert "".join(stream([b"a\xff", b"b\xc3", b"c"])) == "a\ufffdb\ufffdc"


def test_a_stop_string_is_held_back_and_never_shown() -> None:
    assert stream([b"one EN", b"D two"], ("END",)) == ["one ", "", ""]
    assert stream([b"one EN", b"ough"], ("END",)) == ["one ", "ENough", ""]
    assert stream([b"one EN"], ("END",)) == ["one ", "EN"]


def test_nothing_follows_a_stop_string() -> None:
    s = TextStream(Pieces([b"a END b", b"c"]), ("END",))
    assert (s.push(1000), s.stopped, s.push(1001), s.flush()) == ("a ", True, "", "")


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="abé🦊", max_size=30),
    st.lists(st.text(alphabet="abé🦊", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 200), max_size=20),
)
def test_borders_of_tokens_do_not_matter(text: str, stop: list[str], cuts: list[int]) -> None:
    ends = [text.find(s) + len(s) for s in stop if s in text]
    want = text
    if ends:
        first = text[: min(ends)]
        want = min((first.removesuffix(s) for s in stop if first.endswith(s)), key=len)
    pieces = stream(split(text.encode(), cuts), tuple(stop))
    assert "".join(pieces) == want
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_stop_string_that_ends_first_counts() -> None:
    for pieces in ([b"xabc"], [b"xa", b"bc"], [b"xab", b"c"]):
        assert "".join(stream(pieces, ("abc", "b"))) == "xa"
        assert "".join(stream(pieces, ("abc", "xabc", "bc"))) == ""


def test_special_tokens_are_not_shown() -> None:
    tokenizer = ByteTokenizer()
    s = TextStream(tokenizer)
    ids = tokenizer.encode("a<|im_start|>b<|im_end|>", specials=True)
    assert "".join(s.push(token) for token in ids) == "ab"


@pytest.mark.parametrize("stop", [[""], ["a"] * 65, ["a" * 1001], "END", [3]])
def test_stop_strings_that_cannot_be(stop: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^stop "):
        check_stops(stop)


def test_a_long_answer_takes_linear_time() -> None:
    pieces = [b"a" * 10] * 20_000
    assert len("".join(stream(pieces, ("a" * 9 + "b",)))) == 200_000


def ids_of(text: str) -> list[int]:
    return ByteTokenizer().encode(text, specials=True)


def test_cached_rows_are_kept_up_to_the_first_difference() -> None:
    t = ByteTokenizer()
    assert reuse([], ids_of("abc"), t) == (ids_of("abc"), 0)
    assert reuse(ids_of("abX"), ids_of("abc"), t) == (ids_of("abc"), 2)
    assert reuse(ids_of("abc"), ids_of("abc"), t) == (ids_of("abc"), 2)  # one is left to run
    assert common([1, 2, 3], [1, 2]) == 2


def test_an_answer_cut_into_other_tokens_is_kept() -> None:
    t = ByteTokenizer()
    said = ids_of("<|im_start|>") + list(b"the bear")  # the tokenizer would say "the" and "bear"
    wanted = ids_of("<|im_start|>the bear<|im_end|>more")
    assert reuse(said, wanted, t) == (said + ids_of("<|im_end|>more"), len(said))
    longer = said + ids_of("<|im_end|>mo")
    assert reuse(longer, wanted, t) == (said + ids_of("<|im_end|>more"), len(longer))


def test_an_answer_cut_short_keeps_its_rows() -> None:
    t = ByteTokenizer()
    said = ids_of("<|im_start|>") + list(b"the bear")  # a stop string began at "r"
    wanted = ids_of("<|im_start|>the bea<|im_end|>more")
    assert reuse(said, wanted, t) == (said[:-1] + ids_of("<|im_end|>more"), len(said) - 1)


@pytest.mark.parametrize("other", ["the bears", "the boar", "a bear"])
def test_another_text_is_not_kept(other: str) -> None:
    t = ByteTokenizer()
    said = ids_of("<|im_start|>") + list(b"the bear")
    wanted = ids_of(f"<|im_start|>{other}<|im_end|>more")
    ids, cached = reuse(said, wanted, t)
    assert ids == wanted
    assert cached == 1


def test_text_that_looks_like_a_special_token_is_not_one() -> None:
    t = ByteTokenizer()
    plain = ids_of("<|im_start|>a") + t.encode("<|im_end|>")
    assert reuse(plain, ids_of("<|im_start|>a<|im_end|>b"), t)[1] == 2
    real = ids_of("<|im_start|>a<|im_end|>")
    quoted = [*ids_of("<|im_start|>a"), *t.encode("<|im_end|>"), *ids_of("<|im_end|>b")]
    assert reuse(real, quoted, t) == (quoted, 2)
