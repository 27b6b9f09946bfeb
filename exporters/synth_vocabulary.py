"""A made-up vocabulary of any size in Qwen2's layout: bytes, merges, three special tokens.

It knows no words, only letters put together: two, then three, then four, with and without a space
before them. Text takes about twice the tokens of a trained vocabulary; loading, look-up and memory
are those of the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

import numpy as np

from plm_edge.template import CHATML
from plm_edge.tokenizer import StringArray
from plm_edge.tokenizer.vocabulary import CONTROL, NORMAL, Vocabulary

_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # of English, the frequent ones first
_COMMON = _LETTERS[:16]
_SPACE = "\u0120"  # the space in the byte alphabet
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def made_up_vocabulary(n_merges: int) -> Vocabulary:
    """256 bytes, `n_merges` merged tokens and the special tokens, in this order of ids."""
    merges = list(islice(_merges(), n_merges))
    assert len(merges) == n_merges
    tokens = [*_byte_alphabet(), *(left + right for left, right in merges), *SPECIALS]
    first_special = len(tokens) - len(SPECIALS)
    kinds = np.full(len(tokens), NORMAL, np.uint8)
    kinds[first_special:] = CONTROL
    return Vocabulary(
        tokens=StringArray.of(tokens),
        kinds=kinds,
        merges=StringArray.of(f"{left} {right}" for left, right in merges),
        pre="qwen2",
        nfc=True,
        eos_id=first_special + 2,
        bos_id=None,
        stop_ids=frozenset({first_special, first_special + 2}),
        chat_template=CHATML,
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of tokens, the first merged first. Each part is a byte or was made before."""
    pairs = [a + b for a, b in product(_LETTERS, repeat=2)]
    yield from product(_LETTERS, repeat=2)
    yield from product([_SPACE], _LETTERS)
    yield from product([_SPACE], pairs)
    yield from product(pairs, _LETTERS)
    yield from product([_SPACE + pair for pair in pairs], _LETTERS)
    for a, b, c, d in product(_COMMON, repeat=4):
        yield a + b, c + d
        yield _SPACE + a + b, c + d


def _byte_alphabet() -> list[str]:
    """GPT-2's 256 letters (bytes_to_unicode of openai/gpt-2), in the order of Qwen2's ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in (*printable, *range(256, 256 + 256 - len(printable)))]
