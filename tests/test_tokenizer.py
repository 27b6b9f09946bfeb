"""Our tokenizer against the `tokenizers` package, on text of every sort."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from trained_tokenizer import ODD, SPECIALS, random_texts, train, write_folder

from plm_edge.errors import UsageError
from plm_edge.native import bpe
from plm_edge.tokenizer import StringArray, Tokenizer, tokenizer


@pytest.fixture(scope="module")
def oracle() -> tokenizers.Tokenizer:
    return train()


@pytest.fixture(scope="module")
def ours(oracle: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_hf(write_folder(tmp_path_factory.mktemp("hf"), oracle.to_str()))


def from_json(folder: Path, changed: dict[str, Any]) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Both tokenizers of a changed tokenizer.json."""
    theirs = tokenizers.Tokenizer.from_str(json.dumps(changed))
    theirs.encode_special_tokens = True
    return Tokenizer.from_hf(write_folder(folder, changed)), theirs


def differing(ours: Tokenizer, oracle: tokenizers.Tokenizer, texts: list[str]) -> list[str]:
    """The texts that the two encode differently."""
    want = [encoding.ids for encoding in oracle.encode_batch(texts)]
    return [text for text, ids in zip(texts, want, strict=True) if ours.encode(text) != ids]


def test_odd_text_has_the_ids_of_the_oracle(ours: Tokenizer, oracle: tokenizers.Tokenizer) -> None:
    assert differing(ours, oracle, ODD) == []


def test_random_text_has_the_ids_of_the_oracle(
    ours: Tokenizer, oracle: tokenizers.Tokenizer
) -> None:
    assert differing(ours, oracle, random_texts(seed=1, count=2000)) == []


def test_two_merges_exchanged_are_noticed(
    ours: Tokenizer, oracle: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    """The merge ab before bc makes ab, c of abc: exchange two such merges, and the ids differ."""
    bent = json.loads(oracle.to_str())
    merges = bent["model"]["merges"]
    letters = [m for m in merges if all(len(part) == 1 and part.isascii() for part in m)]
    first, second = next((a, b) for a in letters for b in letters if a[1] == b[0] and a != b)
    i, j = merges.index(first), merges.index(second)
    merges[i], merges[j] = merges[j], merges[i]
    word = first[0] + first[1] + second[1]
    assert differing(ours, oracle, [word]) == []
    assert differing(Tokenizer.from_hf(write_folder(tmp_path, bent)), oracle, [word]) == [word]


def test_without_nfc(tmp_path: Path, oracle: tokenizers.Tokenizer) -> None:
    plain = json.loads(oracle.to_str()) | {"normalizer": None}
    ours, theirs = from_json(tmp_path, plain)
    assert differing(ours, theirs, ODD) == []
    assert "e\u0301" * 500 in differing(ours, oracle, ODD)


@pytest.mark.parametrize("seed", range(3))
def test_merges_in_any_order(seed: int, tmp_path: Path, oracle: tokenizers.Tokenizer) -> None:
    """A merge may make a pair of a lower rank than its own; that pair comes next."""
    shuffled = json.loads(oracle.to_str())
    random.Random(seed).shuffle(shuffled["model"]["merges"])
    ours, theirs = from_json(tmp_path, shuffled)
    assert differing(ours, theirs, [*ODD, *random_texts(seed, 200)]) == []


def test_words_long_enough_for_every_level_of_the_tree(
    ours: Tokenizer, oracle: tokenizers.Tokenizer
) -> None:
    rng = random.Random(2)
    lengths = [1, 2, 16, 17, 18, 32, 33, 255, 256, 257, 272, 273, 4096, 4097, 65_536, 70_000]
    texts = ["A" * n for n in lengths] + ["".join(rng.choices("aAeExé漢", k=n)) for n in lengths]
    assert differing(ours, oracle, texts) == []


def test_remembered_words_are_bounded_and_change_nothing(
    ours: Tokenizer, oracle: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "_KNOWN", 50)
    monkeypatch.setattr(tokenizer, "_BATCH", 7)
    for _ in range(2):
        assert differing(ours, oracle, ODD + random_texts(seed=3, count=200)) == []
        assert len(ours._known) <= 50


def test_bytes_come_back(ours: Tokenizer, oracle: tokenizers.Tokenizer) -> None:
    for text in random_texts(seed=4, count=200):
        ids = ours.encode(text)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=False)
        assert b"".join(map(ours.token_bytes, ids)).decode() == ours.decode(ids)


def test_part_of_a_character(ours: Tokenizer) -> None:
    ids = ours.encode("\U00010348")  # four bytes, no merge
    assert b"".join(ours.token_bytes(i) for i in ids[:2]) == b"\xf0\x90"
    assert ours.decode(ids[:2]) == "\ufffd"


def test_special_tokens_are_text_unless_asked_for(
    ours: Tokenizer, oracle: tokenizers.Tokenizer
) -> None:
    text = "a<|im_start|>b <|im_end|><|im_end|>"
    assert not set(ours.encode(text)) & set(ours.special_ids.values())
    oracle = tokenizers.Tokenizer.from_str(oracle.to_str())  # encode_special_tokens off
    assert ours.encode(text, specials=True) == oracle.encode(text).ids
    assert ours.decode(ours.encode(text, specials=True)) == text
    assert list(ours.split_specials(text)) == ["a", 1, "b ", 2, 2]


def test_added_tokens_that_are_not_special(tmp_path: Path, oracle: tokenizers.Tokenizer) -> None:
    """They are cut out of every text, the longest first; a text they are part of is not."""
    changed = json.loads(oracle.to_str())
    n = len(changed["model"]["vocab"])
    for i, text in enumerate(["<tool>", "<tool>é", "漢"]):
        added = {**changed["added_tokens"][0], "id": n + i, "content": text, "special": False}
        changed["added_tokens"].append(added)
    ours, theirs = from_json(tmp_path, changed)
    texts = ["x<tool>y", "<tool>é", "<tool>e\u0301", "漢漢字<|im_end|>", "<tool"]
    assert differing(ours, theirs, texts) == []
    assert ours.encode("<tool>é漢") == [n + 1, n + 2]
    assert ours.decode([n + 1, n + 2]) == "<tool>é漢"
    assert sorted(ours.special_ids) == sorted(SPECIALS)


@pytest.mark.parametrize(
    ("text", "as_if"),
    [("a\ud800b", "a\ufffdb"), ("\udc00\ud800", "\ufffd\ufffd"), ("\ud83d\ude80", "🚀")],
)
def test_surrogates(text: str, as_if: str, ours: Tokenizer) -> None:
    assert ours.encode(text) == ours.encode(as_if)


def test_not_text_is_refused(ours: Tokenizer) -> None:
    with pytest.raises(UsageError, match="expected text to encode, found bytes"):
        ours.encode(b"abc")  # type: ignore[arg-type]


@pytest.mark.parametrize("token_id", [-1, 700, 2**40])
def test_an_id_that_is_no_token_is_refused(token_id: int, ours: Tokenizer) -> None:
    assert ours.n_tokens == 700
    with pytest.raises(UsageError, match=f"expected a token id below 700, found {token_id}"):
        ours.decode([token_id])


def test_stop_ids_come_from_every_file(ours: Tokenizer) -> None:
    """im_end by tokenizer_config, [2, 7] by generation_config, 9 by config, endoftext by name."""
    assert (ours.eos_id, ours.bos_id, ours.stop_ids) == (2, 0, {0, 2, 7, 9})


def test_gguf_metadata_keeps_everything(ours: Tokenizer) -> None:
    metadata = ours.to_gguf(vocab_rows=736)
    assert metadata["tokenizer.ggml.tokens"][699:] == [
        ours._vocabulary.tokens[699],
        *(f"[PAD{i}]" for i in range(700, 736)),
    ]
    assert metadata["tokenizer.ggml.token_type"] == [3] * 3 + [1] * 697 + [5] * 36
    one_piece = dict(metadata)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        one_piece[key] = StringArray.of(metadata[key])
    for again in (Tokenizer.from_gguf(metadata), Tokenizer.from_gguf(one_piece)):
        assert again.to_gguf(vocab_rows=736) == metadata
        assert again.n_tokens == 700
        assert (again.special_ids, again.stop_ids) == (ours.special_ids, ours.stop_ids)
        assert all(again.encode(text) == ours.encode(text) for text in ODD)


def test_gguf_says_whether_text_is_normalized(ours: Tokenizer) -> None:
    """A file that says nothing is the Hugging Face tokenizer's: NFC."""
    metadata = ours.to_gguf()
    key = "plm_edge.tokenizer.normalizer"
    assert metadata.pop(key) == "nfc"
    assert Tokenizer.from_gguf(metadata).encode("e\u0301") == ours.encode("é")
    assert Tokenizer.from_gguf(metadata | {key: "none"}).encode("e\u0301") != ours.encode("é")


def test_padding_of_older_converters_is_left_out(ours: Tokenizer) -> None:
    metadata = ours.to_gguf(vocab_rows=736)
    metadata["tokenizer.ggml.token_type"][700:] = [4] * 36
    assert Tokenizer.from_gguf(metadata).n_tokens == 700


def test_native_merges_of_no_words(ours: Tokenizer) -> None:
    assert bpe.encode(ours._tables, []) == []
    assert bpe.encode(ours._tables, [b"", b"a", b""])[::2] == [[], []]


def test_string_array() -> None:
    strings = ["a", "", "é漢", "🚀"]
    array = StringArray.of(strings)
    assert list(array) == strings == [array[i] for i in range(4)]
    assert (array[-1], len(array), list(array[1:3])) == ("🚀", 4, ["", "é漢"])
    assert list(array.head(2)) == ["a", ""]
    with pytest.raises(IndexError):
        array[4]
