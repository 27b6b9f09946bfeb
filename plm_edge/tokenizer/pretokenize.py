"""Text -> words: normal form, then the split that the vocabulary was trained with."""

from __future__ import annotations

import unicodedata

import regex

# By the name that GGUF files use (tokenizer.ggml.pre). Qwen2: tokenizer.json of Qwen/Qwen2-1.5B.
PATTERNS = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

_MANY_MARKS = regex.compile(r"\p{M}{32,}")


def splitter(pre: str) -> regex.Pattern[str]:
    """The pattern whose matches are the words; together they are the whole text."""
    return regex.compile(PATTERNS[pre])


def whole_characters(text: str) -> str:
    """Text that UTF-8 can write: surrogate pairs are joined, single surrogates become U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def nfc(text: str) -> str:
    """Unicode's NFC, in linear time.

    Python orders combining marks by insertion, which takes an hour for a megabyte of them: long
    runs are put into their canonical order here first, which NFC leaves as it is.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _MANY_MARKS.sub(_ordered, text))


def _ordered(run: regex.Match[str]) -> str:
    """The marks of a run, decomposed, in canonical order: stable by class between class 0."""
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in run.group())
    section, keys = 0, []
    for mark in marks:
        order = unicodedata.combining(mark)
        section += order == 0
        keys.append((section, order))
    return "".join(marks[i] for i in sorted(range(len(marks)), key=keys.__getitem__))
