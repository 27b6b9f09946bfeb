"""The tokenizer: text to ids, ids to bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from plm_edge.errors import UsageError
from plm_edge.native import bpe
from plm_edge.tokenizer import gguf_keys, hf
from plm_edge.tokenizer.pretokenize import nfc, splitter, whole_characters
from plm_edge.tokenizer.vocabulary import CONTROL, NORMAL, Vocabulary

_BATCH = 65_536  # words handed to the native code at a time
_KNOWN = 16_384  # words whose ids are remembered
_KNOWN_LENGTH = 32  # characters; a longer word hardly comes twice


class Tokenizer:
    """Byte-level BPE of one vocabulary. Nothing it shows ever changes; threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tables = bpe.build(vocabulary.tokens, vocabulary.kinds != NORMAL, vocabulary.merges)
        self._words = splitter(vocabulary.pre)
        self._known: dict[str, list[int]] = {}
        self._added = vocabulary.added()
        self.special_ids = {t: i for t, i in self._added.items() if vocabulary.kinds[i] == CONTROL}
        self._any_added = _any_of(self._added)
        self._any_plain = _any_of(self._added.keys() - self.special_ids.keys())
        self._any_special = _any_of(self.special_ids)
        self.n_tokens = len(vocabulary.tokens)
        self.stop_ids = vocabulary.stop_ids
        self.eos_id = vocabulary.eos_id
        self.bos_id = vocabulary.bos_id
        self.chat_template = vocabulary.chat_template

    @classmethod
    def from_hf(cls, folder: Path | str) -> Tokenizer:
        """From a Hugging Face folder: tokenizer.json and the small files beside it."""
        return cls(hf.read_vocabulary(Path(folder)))

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any]) -> Tokenizer:
        """From the metadata of a GGUF file."""
        return cls(gguf_keys.read_vocabulary(metadata))

    def to_gguf(self, vocab_rows: int | None = None) -> dict[str, Any]:
        """Metadata for a GGUF file whose embedding has `vocab_rows` rows (default: no padding).

        An int is a uint32 there, a list of ints an int32 array.
        """
        return gguf_keys.metadata(self._vocabulary, vocab_rows)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of a text. Text like "<|im_end|>" stays text unless `specials`.

        Halves of surrogate pairs that stand alone count as U+FFFD.
        """
        if not isinstance(text, str):
            raise UsageError(
                f"expected text to encode, found {type(text).__name__}; decode it first"
            )
        ids: list[int] = []
        for part in _cut(self._any_added if specials else self._any_plain, whole_characters(text)):
            if part in self._added and (specials or part not in self.special_ids):
                ids.append(self._added[part])
            else:
                self._encode_words(part, ids)
        return ids

    def split_specials(self, text: str) -> Iterator[str | int]:
        """The text in parts: ids of special tokens, and the text between them."""
        for part in _cut(self._any_special, text):
            yield self.special_ids.get(part, part)

    def _encode_words(self, text: str, ids: list[int]) -> None:
        words = self._words.findall(nfc(text) if self._vocabulary.nfc else text)
        for start in range(0, len(words), _BATCH):
            batch, known = words[start : start + _BATCH], self._known
            fresh = [word for word in dict.fromkeys(batch) if word not in known]
            made = dict(zip(fresh, self._merge(fresh), strict=True))
            for word in batch:
                ids += made[word] if word in made else known[word]
            self._remember(made)

    def _merge(self, words: list[str]) -> list[list[int]]:
        return bpe.encode(self._tables, [word.encode("utf-8") for word in words])

    def _remember(self, made: dict[str, list[int]]) -> None:
        """Keep short words. A full table is replaced, never emptied: another thread may read it."""
        short = ((word, ids) for word, ids in made.items() if len(word) <= _KNOWN_LENGTH)
        if len(self._known) + len(made) > _KNOWN:
            self._known = dict(islice(short, _KNOWN))
        else:
            self._known.update(short)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may be part of a character."""
        if not 0 <= token_id < self.n_tokens:
            raise UsageError(f"expected a token id below {self.n_tokens}, found {token_id}")
        start, stop = self._tables.raw_offsets[token_id : token_id + 2].tolist()
        return self._tables.raw[start:stop]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special ones included; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the longest of the texts at the leftmost place, as a group of its own."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def _cut(pattern: re.Pattern[str] | None, text: str) -> list[str]:
    """The text in parts, matches of the pattern apart; no part is empty."""
    return [part for part in (pattern.split(text) if pattern else [text]) if part]
