"""llama.cpp tokenizes as we do from the metadata that to_gguf writes."""

from __future__ import annotations

import unicodedata

import gguf
import pytest
from llama_peer import MISSING
from trained_tokenizer import ODD, random_texts, train, write_folder

from plm_edge.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason=MISSING)

ROWS = 736  # of an embedding: 700 tokens and padding


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_hf(write_folder(tmp_path_factory.mktemp("hf"), train().to_str()))


@pytest.fixture(scope="module")
def llama(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> llama_cpp.Llama:
    path = tmp_path_factory.mktemp("gguf") / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "plm")
    for key, value in ours.to_gguf(ROWS).items():
        kind = gguf.GGUFValueType.get_type(value)
        if kind == gguf.GGUFValueType.INT32:
            kind = gguf.GGUFValueType.UINT32
        writer.add_key_value(key, value, kind)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def differing(llama: llama_cpp.Llama, ours: Tokenizer, texts: list[str]) -> list[str]:
    return [
        text
        for text in texts
        if llama.tokenize(text.encode(), add_bos=True, special=False) != ours.encode(text)
    ]


def test_same_ids(llama: llama_cpp.Llama, ours: Tokenizer) -> None:
    """On text that NFC leaves as it is, and that ends before a NUL (the API takes C strings)."""
    texts = [unicodedata.normalize("NFC", t) for t in [*ODD, *random_texts(seed=5, count=300)]]
    plain = [text for text in texts if "\0" not in text]
    assert differing(llama, ours, plain) == []
    bent = ours.to_gguf()
    bent["tokenizer.ggml.merges"].reverse()
    assert differing(llama, Tokenizer.from_gguf(bent), plain)


def test_special_tokens(llama: llama_cpp.Llama, ours: Tokenizer) -> None:
    text = "a<|im_start|>b<|im_end|>"
    assert llama.tokenize(text.encode(), special=True) == ours.encode(text, specials=True)
    assert llama.n_vocab() == ROWS
    assert llama.token_eos() == ours.eos_id
    model = llama._model.vocab
    ends = {i for i in range(ROWS) if llama_cpp.llama_vocab_is_eog(model, i)}
    assert ends == {0, 2}  # by their names; it has no key for others
