"""Files that are not what they should be: one line each, never a traceback or other ids."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutate
from trained_tokenizer import train, write_folder

from plm_edge.errors import FileFormatError
from plm_edge.tokenizer import StringArray, Tokenizer, hf

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def sound() -> str:
    return train().to_str()


def refusal(make: Callable[[], Tokenizer]) -> str:
    """The one line it is refused with."""
    with pytest.raises(FileFormatError) as why:
        make()
    line = str(why.value)
    assert "\n" not in line
    return line


def swap_ids(t: dict[str, Any]) -> None:
    t["added_tokens"][0]["id"], t["added_tokens"][1]["id"] = 1, 0


BAD_TOKENIZERS: dict[str, tuple[Change, str]] = {
    "no model": (lambda t: t.pop("model"), "model.type 'BPE', found 'None'"),
    "model type": (lambda t: t["model"].update(type="Unigram"), "'BPE', found 'Unigram'"),
    "unknown key": (lambda t: t.update(extra=1), "keys of a BPE tokenizer, found \"['extra']\""),
    "unknown model key": (lambda t: t["model"].update(x=1), "model.x"),
    "dropout": (lambda t: t["model"].update(dropout=0.1), "model.dropout unset"),
    "ignore_merges": (lambda t: t["model"].update(ignore_merges=True), "ignore_merges unset"),
    "prefix": (lambda t: t["model"].update(continuing_subword_prefix="##"), "prefix unset"),
    "normalizer": (lambda t: t.update(normalizer={"type": "NFKC"}), "normalizer null or 'NFC'"),
    "no split": (lambda t: t.update(pre_tokenizer=None), "the pre_tokenizer of ['qwen2']"),
    "other split": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(a+)+b"),
        "the pre_tokenizer of ['qwen2']",
    ),
    "prefix space": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "the pre_tokenizer of ['qwen2']",
    ),
    "decoder": (lambda t: t.update(decoder=None), "decoder 'ByteLevel'"),
    "post-processor": (
        lambda t: t.update(post_processor={"type": "TemplateProcessing"}),
        "post_processor null or 'ByteLevel'",
    ),
    "vocab a list": (lambda t: t["model"].update(vocab=[]), "model.vocab, text to id"),
    "id gap": (lambda t: t["model"]["vocab"].update(zzz=701), "id 700 next, found \"'zzz': 701\""),
    "same id twice": (lambda t: t["model"]["vocab"].update(zzz=300), "without gaps or twins"),
    "id a text": (lambda t: t["model"]["vocab"].update(zzz="700"), "whole numbers as token ids"),
    "id true": (lambda t: t["model"]["vocab"].update(zzz=True), "whole numbers as token ids"),
    "negative id": (lambda t: t["model"]["vocab"].update(zzz=-1), "id 0 next"),
    "special token with another id": (swap_ids, "added token '<|endoftext|>' with id 0"),
    "added token twice": (
        lambda t: t["added_tokens"].append(t["added_tokens"][0]),
        "each added token once",
    ),
    "added token that strips": (
        lambda t: t["added_tokens"][0].update(lstrip=True),
        "lstrip false for added token '<|endoftext|>'",
    ),
    "added token without text": (lambda t: t["added_tokens"].append({"id": 3}), "content and id"),
    "merges a text": (lambda t: t["model"].update(merges="a b"), "model.merges, a list"),
    "merge of three": (lambda t: t["model"]["merges"].append(["a", "b", "c"]), "of two texts"),
    "merge without space": (lambda t: t["model"]["merges"].append("ab"), "one space between"),
    "merge with two spaces": (lambda t: t["model"]["merges"].append(["a", " b"]), "one space"),
    "merge of nothing": (lambda t: t["model"]["merges"].append(["", "b"]), "one space between"),
    "merge of unknown parts": (lambda t: t["model"]["merges"].append("Zq Qz"), "that are tokens"),
    "merge of a special token": (
        lambda t: t["model"]["merges"].append("<|im_end|> a"),
        "that are tokens",
    ),
    "merge twice": (
        lambda t: t["model"]["merges"].append(t["model"]["merges"][5]),
        "a pair of its own",
    ),
    "token of another alphabet": (lambda t: t["model"]["vocab"].update({"漢": 700}), "token 700"),
    "empty token": (lambda t: t["model"]["vocab"].update({"": 700}), "token 700"),
    "lone surrogate": (lambda t: t["model"]["vocab"].update({"\ud800": 700}), "Unicode text"),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_bad_tokenizer_json(case: str, sound: str, tmp_path: Path) -> None:
    change, expected = BAD_TOKENIZERS[case]
    bad = json.loads(sound)
    change(bad)
    assert expected in refusal(lambda: Tokenizer.from_hf(write_folder(tmp_path, bad)))


def test_a_byte_without_token(sound: str, tmp_path: Path) -> None:
    bad = json.loads(sound)
    vocab, merges = bad["model"]["vocab"], bad["model"]["merges"]
    letter = next(t for t in vocab if len(t) == 1 and not any(t in "".join(m) for m in merges))
    del vocab[letter]
    vocab |= {text: i for i, text in enumerate(sorted(vocab, key=vocab.get))}
    line = refusal(lambda: Tokenizer.from_hf(write_folder(tmp_path, bad)))
    assert "a token for each of the 256 bytes" in line


BAD_TEXTS = {
    "": "tokenizer.json is not valid JSON",
    "{": "tokenizer.json is not valid JSON",
    "[]": "must hold a JSON object, found list",
    "\ufeff{}": "byte order mark",
    '{"model": NaN}': "holds NaN",
    '{"model": 1, "model": 2}': "the key 'model' twice",
    '{"a":' * 100_000: "nested deeper",
    "version https://git-lfs.github.com/spec/v1": "Git LFS pointer",
    "[" + "0," * 4_000_000: "more than 4000000 values",
}


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: repr(text[:20]))
def test_bad_json(text: str, tmp_path: Path) -> None:
    line = refusal(lambda: Tokenizer.from_hf(write_folder(tmp_path, text)))
    assert BAD_TEXTS[text] in line


def test_missing_and_too_large_files(
    sound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "found no such file" in refusal(lambda: Tokenizer.from_hf(tmp_path))
    folder = write_folder(tmp_path, sound)
    (folder / "tokenizer.json").write_bytes(b"\xff{}")
    assert "not valid JSON" in refusal(lambda: Tokenizer.from_hf(folder))
    monkeypatch.setattr(hf, "TOKENIZER_BYTES", 1000)
    folder = write_folder(tmp_path, sound)
    assert "at most 1000 are expected" in refusal(lambda: Tokenizer.from_hf(folder))


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "eos is no token": ({"tokenizer_config": {"eos_token": "</s>"}}, "eos_token to be an added"),
    "eos outside": ({"generation_config": {"eos_token_id": 700}}, "ids below 700, found [700]"),
    "eos a text": ({"config": {"eos_token_id": "2"}}, "an id or a list of ids, found '2'"),
    "bos outside": ({"config": {"bos_token_id": -1}}, "an id below 700"),
    "add_bos_token": ({"tokenizer_config": {"add_bos_token": True}}, "add_bos_token false"),
    "unknown added token": (
        {"tokenizer_config": {"added_tokens_decoder": {"700": {"content": "<x>"}}}},
        "added token 700 in tokenizer.json too",
    ),
    "template a number": ({"tokenizer_config": {"chat_template": 1}}, "chat_template to be text"),
    "template named by a list": (
        {"tokenizer_config": {"chat_template": [{"name": ["default"], "template": "T"}]}},
        "a list of named templates",
    ),
    "template named by an object": (
        {"tokenizer_config": {"chat_template": [{"name": {}, "template": "T"}]}},
        "a list of named templates",
    ),
    "templates without names": (
        {"tokenizer_config": {"chat_template": ["T"]}},
        "a list of named templates",
    ),
    "added tokens a list": (
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        "added_tokens_decoder, an object",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(case: str, sound: str, tmp_path: Path) -> None:
    files, expected = BAD_SETTINGS[case]
    assert expected in refusal(lambda: Tokenizer.from_hf(write_folder(tmp_path, sound, **files)))


def test_no_end_of_text_at_all(sound: str, tmp_path: Path) -> None:
    for name in ("<|endoftext|>", "<|im_end|>"):
        sound = sound.replace(name, name.upper())
    none: dict[str, Any] = {"tokenizer_config": {}, "generation_config": {}, "config": {}}
    folder = write_folder(tmp_path, sound, **none)
    assert "an end-of-text token, found none" in refusal(lambda: Tokenizer.from_hf(folder))


def test_merges_as_texts_and_as_pairs(sound: str, tmp_path: Path) -> None:
    """Older files have "a b", newer ones ["a", "b"]: the same tokenizer."""
    pairs = json.loads(sound)
    texts = json.loads(sound)
    texts["model"]["merges"] = [" ".join(pair) for pair in pairs["model"]["merges"]]
    assert texts != pairs
    one, other = (
        Tokenizer.from_hf(write_folder(tmp_path / name, t)).to_gguf()
        for name, t in (("pairs", pairs), ("texts", texts))
    )
    assert one == other


def test_chat_template_in_every_place(sound: str, tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = write_folder(tmp_path, sound, tokenizer_config={"chat_template": several})
    assert Tokenizer.from_hf(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("own file")
    assert Tokenizer.from_hf(folder).chat_template == "own file"


G = "tokenizer.ggml."
BAD_METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({f"{G}model": "llama"}, "expected 'gpt2' (byte-level BPE), found 'llama'"),
    "pre": ({f"{G}pre": "llama-bpe"}, "expected one of ['qwen2'], found 'llama-bpe'"),
    "no tokens": ({f"{G}tokens": None}, "an array of strings, found 'NoneType'"),
    "tokens of numbers": ({f"{G}tokens": [1, 2]}, "an array of strings"),
    "too few types": ({f"{G}token_type": [1, 1]}, "700 values, one for each token, found '2'"),
    "types a text": ({f"{G}token_type": "1"}, "an array of whole numbers"),
    "strange type": ({f"{G}token_type": [6] + [1] * 699}, "types 1, 3 and 4"),
    "a hole": ({f"{G}token_type": [1] * 400 + [5] + [1] * 299}, "found '5 at 400'"),
    "eos outside": ({f"{G}eos_token_id": 700}, "an id below 700, found '700'"),
    "eos true": ({f"{G}eos_token_id": True}, "an id below 700"),
    "stop outside": ({"plm_edge.tokenizer.stop_ids": [1, 800]}, "below 700, found [800]"),
    "normalizer": ({"plm_edge.tokenizer.normalizer": "nfkc"}, "'nfc' or 'none'"),
    "add_bos_token": ({f"{G}add_bos_token": True}, "expected false"),
    "template": ({"tokenizer.chat_template": 1}, "expected text"),
    "no merges": ({f"{G}merges": None}, "an array of strings"),
    "token twice": ({f"{G}tokens": ["x"] * 700}, "'x' a second time"),
    "offsets run back": (
        {f"{G}merges": StringArray(b"a bb c", np.array([0, 6, 3, 6], np.int64))},
        "offsets that ascend",
    ),
    "offsets past the end": (
        {f"{G}merges": StringArray(b"a b", np.array([0, 99], np.int64))},
        "inside their bytes",
    ),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata(case: str, sound: str, tmp_path: Path) -> None:
    changes, expected = BAD_METADATA[case]
    metadata = Tokenizer.from_hf(write_folder(tmp_path, sound)).to_gguf() | changes
    assert expected in refusal(lambda: Tokenizer.from_gguf(metadata))


def test_more_tokens_than_rows(sound: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_hf(write_folder(tmp_path, sound))
    with pytest.raises(FileFormatError, match="at most 699 tokens, the rows of the embedding"):
        ours.to_gguf(vocab_rows=699)


@pytest.mark.parametrize("seed", range(150))
def test_damaged_files_are_refused_or_read(seed: int, sound: str, tmp_path: Path) -> None:
    rng = random.Random(seed)
    folder = write_folder(tmp_path, sound)
    name = rng.choice(["tokenizer.json"] * 3 + ["tokenizer_config.json", "config.json"])
    (folder / name).write_bytes(mutate((folder / name).read_bytes(), rng))
    line = ""
    try:
        Tokenizer.from_hf(folder).encode("Any text at all, 123.")
    except FileFormatError as why:
        line = str(why)
    assert "\n" not in line
