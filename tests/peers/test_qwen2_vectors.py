"""llama.cpp's own test vectors of the Qwen2 vocabulary (models/ggml-vocab-qwen2.gguf.inp, .out)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from plm_edge.gguf_file import GgufFile
from plm_edge.tokenizer import Tokenizer

FOLDER = Path(os.environ.get("PLM_EDGE_LLAMA_SDIST") or Path.home() / ".cache/plm-edge-peers")
BETWEEN = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    found = sorted(FOLDER.rglob("ggml-vocab-qwen2.gguf"))
    if not found:
        pytest.skip(f"no ggml-vocab-qwen2.gguf in {FOLDER}; run tools/fetch_llama_sdist.py")
    return found[0]


@pytest.fixture(scope="module")
def metadata(vocabulary: Path) -> dict[str, Any]:
    return GgufFile.open(vocabulary).metadata


@pytest.fixture(scope="module")
def vectors(vocabulary: Path) -> list[tuple[str, list[int]]]:
    """(text, ids) pairs, as tests/test-tokenizer-0.cpp reads them."""
    texts = Path(f"{vocabulary}.inp").read_bytes().decode().split(BETWEEN)
    lines = Path(f"{vocabulary}.out").read_text().split("\n")
    assert len(texts) == len(lines) == 47
    return [(text, list(map(int, ids.split()))) for text, ids in zip(texts, lines, strict=True)]


def wrong(metadata: dict[str, Any], vectors: list[tuple[str, list[int]]]) -> list[str]:
    tokenizer = Tokenizer.from_gguf(metadata)
    return [text for text, ids in vectors if tokenizer.encode(text) != ids]


@pytest.mark.parametrize("normalizer", ["none", "nfc"])
def test_all_vectors(
    normalizer: str, metadata: dict[str, Any], vectors: list[tuple[str, list[int]]]
) -> None:
    """No text among them is changed by NFC, which llama.cpp does not apply."""
    assert wrong({**metadata, "plm_edge.tokenizer.normalizer": normalizer}, vectors) == []


def test_one_wrong_rank_is_noticed(
    metadata: dict[str, Any], vectors: list[tuple[str, list[int]]]
) -> None:
    merges = list(metadata["tokenizer.ggml.merges"])
    i, j = merges.index("Ġ t"), merges.index("t h")
    merges[i], merges[j] = merges[j], merges[i]
    assert wrong({**metadata, "tokenizer.ggml.merges": merges}, vectors)


def test_decomposed_text_is_where_the_two_differ(metadata: dict[str, Any]) -> None:
    """The Hugging Face tokenizer of PLM composes the text first; llama.cpp does not."""
    text = "cafe\u0301"
    ours = Tokenizer.from_gguf(metadata)
    llama = Tokenizer.from_gguf({**metadata, "plm_edge.tokenizer.normalizer": "none"})
    assert ours.encode(text) == llama.encode("café") != llama.encode(text)


def test_what_the_file_is(metadata: dict[str, Any]) -> None:
    """Qwen2's 151,643 tokens and 3 special ones; 290 rows of padding are no tokens."""
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.n_tokens == 151_646
    assert len(tokenizer.to_gguf(151_936)["tokenizer.ggml.tokens"]) == 151_936
    assert tokenizer.special_ids == {
        "<|endoftext|>": 151_643,
        "<|im_start|>": 151_644,
        "<|im_end|>": 151_645,
    }
    assert tokenizer.stop_ids == {151_643, 151_645}
