"""A vocabulary in GGUF metadata, as llama.cpp's converter writes it for Qwen2.

Two keys are our own: whether text goes through NFC (llama.cpp never does it, the Hugging Face
tokenizer of Qwen2 does), and all ids that end a reply (llama.cpp has a key for one of each sort).
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from plm_edge.errors import FileFormatError
from plm_edge.tokenizer.pretokenize import PATTERNS
from plm_edge.tokenizer.strings import StringArray
from plm_edge.tokenizer.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    all_stops,
)

_G = "tokenizer.ggml."
NORMALIZER = "plm_edge.tokenizer.normalizer"  # "nfc" (also where the key is missing) or "none"
STOP_IDS = "plm_edge.tokenizer.stop_ids"
TEMPLATE = "tokenizer.chat_template"


def read_vocabulary(metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a GGUF file's metadata; its padding tokens are left out."""
    if metadata.get(f"{_G}model") != "gpt2":
        _refuse(f"{_G}model", "'gpt2' (byte-level BPE)", metadata.get(f"{_G}model"))
    pre = metadata.get(f"{_G}pre")
    if not isinstance(pre, str) or pre not in PATTERNS:
        _refuse(f"{_G}pre", f"one of {sorted(PATTERNS)}", pre)
    normalizer = metadata.get(NORMALIZER, "nfc")
    if normalizer not in ("nfc", "none"):
        _refuse(NORMALIZER, "'nfc' or 'none'", normalizer)
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if metadata.get(_G + key):
            _refuse(_G + key, "false", True)
    template = metadata.get(TEMPLATE)
    if template is not None and not isinstance(template, str):
        _refuse(TEMPLATE, "text", template)

    padded = _strings(metadata, f"{_G}tokens")
    all_kinds = _ints(metadata, f"{_G}token_type")
    if len(all_kinds) != len(padded):
        _refuse(f"{_G}token_type", f"{len(padded)} values, one for each token", len(all_kinds))
    tokens = padded.head(_without_padding(padded, all_kinds))
    kinds = all_kinds[: len(tokens)]
    strange = np.flatnonzero(~np.isin(kinds, (NORMAL, CONTROL, USER_DEFINED)))
    if len(strange):
        i = int(strange[0])
        _refuse(f"{_G}token_type", "types 1, 3 and 4, and 5 at the end", f"{kinds[i]} at {i}")
    return _with_ids(metadata, tokens, kinds.astype(np.uint8), pre, normalizer == "nfc")


def _with_ids(
    metadata: dict[str, Any], tokens: StringArray, kinds: np.ndarray[Any, Any], pre: str, nfc: bool
) -> Vocabulary:
    added = {tokens[i]: i for i in np.flatnonzero(kinds != NORMAL).tolist()}
    eos, eot, bos = (
        _id(metadata, f"{_G}{key}_token_id", len(tokens)) for key in ("eos", "eot", "bos")
    )
    named = {i for i in (eos, eot) if i is not None}
    if STOP_IDS in metadata:
        named.update(_ints(metadata, STOP_IDS).tolist())
    stops = all_stops(added, named, len(tokens))
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=_strings(metadata, f"{_G}merges"),
        pre=pre,
        nfc=nfc,
        eos_id=min(stops) if eos is None else eos,
        bos_id=bos,
        stop_ids=stops,
        chat_template=metadata.get(TEMPLATE),
    )


def _without_padding(tokens: StringArray, kinds: np.ndarray[Any, Any]) -> int:
    """How many tokens there are before the padding (of type 4 in files of older converters)."""
    n = len(tokens)
    while n and (
        kinds[n - 1] == UNUSED
        or (kinds[n - 1] == USER_DEFINED and tokens[n - 1] == f"[PAD{n - 1}]")
    ):
        n -= 1
    return n


def metadata(vocabulary: Vocabulary, vocab_rows: int | None = None) -> dict[str, Any]:
    """The keys of a GGUF file whose embedding has `vocab_rows` rows; read_vocabulary reads them."""
    n = len(vocabulary.tokens)
    rows = n if vocab_rows is None else vocab_rows
    if rows < n:
        raise FileFormatError(
            f"tokenizer: expected at most {rows} tokens, the rows of the embedding, found {n}; "
            "the tokenizer belongs to another model"
        )
    eot = vocabulary.added().get("<|im_end|>")
    keys: dict[str, Any] = {
        f"{_G}model": "gpt2",
        f"{_G}pre": vocabulary.pre,
        f"{_G}tokens": [*vocabulary.tokens, *(f"[PAD{i}]" for i in range(n, rows))],
        f"{_G}token_type": [*vocabulary.kinds.tolist(), *[UNUSED] * (rows - n)],
        f"{_G}merges": list(vocabulary.merges),
        f"{_G}eos_token_id": vocabulary.eos_id,
        f"{_G}eot_token_id": eot if eot in vocabulary.stop_ids else None,
        f"{_G}bos_token_id": vocabulary.bos_id,
        f"{_G}add_bos_token": False,
        TEMPLATE: vocabulary.chat_template,
        NORMALIZER: "nfc" if vocabulary.nfc else "none",
        STOP_IDS: sorted(vocabulary.stop_ids),
    }
    return {key: value for key, value in keys.items() if value is not None}


def _refuse(key: str, expected: str, found: object) -> NoReturn:
    raise FileFormatError(
        f"{key}: expected {expected}, found {str(found)[:80]!r}; "
        "only Qwen2-style byte-level BPE is supported"
    )


def _strings(metadata: dict[str, Any], key: str) -> StringArray:
    """An array of strings: in one piece (anything with .blob and .offsets), or a list of str."""
    found: Any = metadata.get(key)
    if hasattr(found, "blob") and hasattr(found, "offsets"):
        return StringArray(found.blob, found.offsets)
    if not isinstance(found, list | tuple) or not all(isinstance(s, str) for s in found):
        _refuse(key, "an array of strings", type(found).__name__)
    try:
        return StringArray.of(found)
    except UnicodeEncodeError as why:
        _refuse(key, "Unicode text", why.object)


def _ints(metadata: dict[str, Any], key: str) -> np.ndarray[Any, Any]:
    found = np.asarray(metadata.get(key))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        _refuse(key, "an array of whole numbers", metadata.get(key))
    return found.astype(np.int64)


def _id(metadata: dict[str, Any], key: str, n_tokens: int) -> int | None:
    found = metadata.get(key)
    if found is None:
        return None
    if (
        not isinstance(found, int | np.integer)
        or isinstance(found, bool)
        or not 0 <= found < n_tokens
    ):
        _refuse(key, f"an id below {n_tokens}", found)
    return int(found)
