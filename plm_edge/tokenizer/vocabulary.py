"""What a tokenizer is made of, as both kinds of file tell it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import FileFormatError
from plm_edge.tokenizer.strings import StringArray

# Token kinds, with GGUF's numbers (tokenizer.ggml.token_type; gguf-py, constants.py, TokenType).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# Qwen2's ids that end a reply, whatever else the files name (PLM's template closes turns with the
# second, its base model stops with the first).
QWEN_STOPS = ("<|endoftext|>", "<|im_end|>")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Byte-level BPE: every token, every merge, and the ids that mean something."""

    tokens: StringArray  # (n_tokens,) in the byte alphabet; added ones verbatim
    kinds: NDArray[np.uint8]  # (n_tokens,) NORMAL, CONTROL or USER_DEFINED
    merges: StringArray  # "left right", the place in the list is the rank
    pre: str  # name of the pre-tokenizer, a key of pretokenize.PATTERNS
    nfc: bool  # text goes through Unicode's NFC first
    eos_id: int | None
    bos_id: int | None
    stop_ids: frozenset[int]
    chat_template: str | None

    def added(self) -> dict[str, int]:
        """Text -> id of the tokens that come from no merge, special or not."""
        return {self.tokens[i]: i for i in np.flatnonzero(self.kinds != NORMAL).tolist()}


def all_stops(added: dict[str, int], named: set[int], n_tokens: int) -> frozenset[int]:
    """The ids the files name, and Qwen's. Raises FileFormatError for one outside, and for none."""
    stops = frozenset(named | {added[text] for text in QWEN_STOPS if text in added})
    outside = sorted(i for i in stops if not 0 <= i < n_tokens)
    if outside:
        raise FileFormatError(
            f"tokenizer: expected end-of-text ids below {n_tokens}, found {outside}; "
            "correct eos_token_id"
        )
    if not stops:
        raise FileFormatError(
            "tokenizer: expected an end-of-text token, found none; name one as eos_token_id"
        )
    return stops
