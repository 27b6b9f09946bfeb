"""A vocabulary as Hugging Face files, for programs that read those; tokenizer/hf.py reads them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from plm_edge.tokenizer.pretokenize import PATTERNS
from plm_edge.tokenizer.vocabulary import CONTROL, NORMAL, Vocabulary

TOKENIZER, CONFIG, GENERATION = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json",
)  # fmt: skip


def hf_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name -> content of the files. The same vocabulary gives the same bytes."""
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": bool(vocabulary.kinds[i] == CONTROL)}
        for text, i in sorted(vocabulary.added().items(), key=lambda item: item[1])
    ]  # fmt: skip
    generation = {"eos_token_id": sorted(vocabulary.stop_ids)}
    return {
        TOKENIZER: _json(_tokenizer(vocabulary, added)),
        CONFIG: _json(_config(vocabulary, added)),
        GENERATION: _json(generation),
    }


def _tokenizer(vocabulary: Vocabulary, added: list[dict[str, Any]]) -> dict[str, Any]:
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[vocabulary.pre]}}
    tokens = list(vocabulary.tokens)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if vocabulary.nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**split, "behavior": "Isolated", "invert": False},
                {**by_bytes, "use_regex": False},
            ],
        },
        "post_processor": {**by_bytes, "use_regex": False},
        "decoder": {**by_bytes, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": {tokens[i]: i for i in np.flatnonzero(vocabulary.kinds == NORMAL).tolist()},
            "merges": list(vocabulary.merges),
        },
    }  # fmt: skip


def _config(vocabulary: Vocabulary, added: list[dict[str, Any]]) -> dict[str, Any]:
    def text(token: int | None) -> str | None:
        return None if token is None else vocabulary.tokens[token]

    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added
        },
        "bos_token": text(vocabulary.bos_id),
        "chat_template": vocabulary.chat_template,
        "eos_token": text(vocabulary.eos_id),
        "pad_token": text(vocabulary.eos_id),
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
