"""Faults of a model folder: what to do to a good one, the error, a part of its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY_SHAPES, tiny_weights, write_safetensors, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.errors import FileFormatError, PlmEdgeError, SpecError, UnsupportedError

SPEC = TINY_SHAPES["odd"]
EMBED = "model.embed_tokens.weight"

Fault = Callable[[Path], object]


def _config(**changes: Any) -> Fault:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _bytes(name: str, data: bytes) -> Fault:
    return lambda folder: (folder / name).write_bytes(data)


def _weights(change: Callable[[dict[str, Any]], None], dtype: str = "F32") -> Fault:
    def rewrite(folder: Path) -> None:
        weights: dict[str, Any] = dict(tiny_weights(SPEC))
        change(weights)
        write_safetensors(folder / "model.safetensors", weights, dtype)

    return rewrite


def _index(weight_map: dict[str, Any] | None) -> Fault:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        if weight_map is not None and "*" in weight_map:
            index["weight_map"] = dict.fromkeys(tiny_weights(SPEC), weight_map["*"])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def _replace(name: str, by: Callable[[Path], Any]) -> Fault:
    def replace(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        by(folder / name)

    return replace


def _renamed(folder: Path, new: str) -> None:
    (folder / "model.safetensors").rename(folder / new)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"

FOLDER_FAULTS: dict[str, tuple[Fault, type[PlmEdgeError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), FileFormatError, "expected config.json"),
    "empty config": (_bytes("config.json", b""), FileFormatError, "not valid JSON"),
    "config is text": (_bytes("config.json", b"hello"), FileFormatError, "not valid JSON"),
    "config is a list": (_bytes("config.json", b"[1]"), FileFormatError, "JSON object, found list"),
    "config cut": (_bytes("config.json", b'{"a": 1'), FileFormatError, "not valid JSON"),
    "config of 2 MB": (_bytes("config.json", b" " * 2_000_000), FileFormatError, "at most 1000000"),
    "config deep": (
        _bytes("config.json", b'{"a":' + b"[" * 65 + b"]" * 65 + b"}"), FileFormatError, "deeper",
    ),
    "config 10,000 deep": (
        _bytes("config.json", b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        FileFormatError, "deeper than 64",
    ),
    "config twice": (_bytes("config.json", b'{"a":1,"a":2}'), FileFormatError, "'a' twice"),
    "config with a mark": (_bytes("config.json", b"\xef\xbb\xbf{}"), FileFormatError, "byte order"),
    "config UTF-16": (_bytes("config.json", '{"a":1}'.encode("utf-16")), FileFormatError, "JSON"),
    "config NaN": (_bytes("config.json", b'{"rope_theta": NaN}'), FileFormatError, "NaN"),
    "config huge int": (
        _bytes("config.json", b'{"a": ' + b"9" * 5000 + b"}"), FileFormatError, "not valid JSON",
    ),
    "config is a pointer": (_bytes("config.json", LFS), FileFormatError, "git lfs pull"),
    "config is a folder": (
        _replace("config.json", lambda p: p.mkdir()), FileFormatError, "regular file",
    ),
    "config is a FIFO": (_replace("config.json", os.mkfifo), FileFormatError, "regular file"),
    "config leads outside": (
        _replace("config.json", lambda p: p.symlink_to("../elsewhere")), FileFormatError, "leaves",
    ),
    "config leads nowhere": (
        _replace("config.json", lambda p: p.symlink_to("nothing")), FileFormatError, "reached",
    ),
    "config leads to itself": (
        _replace("config.json", lambda p: p.symlink_to("config.json")), FileFormatError, "reached",
    ),
    "weights lead outside": (
        _replace("model.safetensors", lambda p: p.symlink_to("../elsewhere")),
        FileFormatError, "leaves",
    ),
    "weights: a device": (
        _replace("model.safetensors", lambda p: p.symlink_to("/dev/zero")),
        FileFormatError, "leaves",
    ),
    "weights are a pointer": (_bytes("model.safetensors", LFS), FileFormatError, "git lfs pull"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileFormatError, "found neither"),
    "pickle": (lambda f: _renamed(f, "pytorch_model.bin"), UnsupportedError, "pickled"),
    "pickled parts": (
        lambda f: _renamed(f, "pytorch_model-00001-of-00002.bin"), UnsupportedError, "pickled",
    ),
    "pt": (lambda f: _renamed(f, "weights.pt"), UnsupportedError, "convert"),
    "ckpt": (lambda f: _renamed(f, "last.ckpt"), UnsupportedError, "convert"),
    "other width": (_config(intermediate_size=73), SpecError, "shape [72, 40]"),
    "other vocabulary": (_config(vocab_size=326), SpecError, "asks for [326, 40]"),
    "more layers": (_config(num_hidden_layers=4), SpecError, "missing 'model.layers.3"),
    "fewer layers": (_config(num_hidden_layers=2), SpecError, "unknown 'model.layers.2"),
    "no head": (_config(tie_word_embeddings=False), SpecError, "missing 'lm_head.weight'"),
    "tensor missing": (_weights(lambda w: w.__delitem__(EMBED)), SpecError, f"missing '{EMBED}'"),
    "tensor unknown": (
        _weights(lambda w: w.update({"model.bias": np.ones(3)})), SpecError, "unknown 'model.bias'",
    ),
    "two heads": (
        _weights(lambda w: w.update({"lm_head.weight": w[EMBED] * 1.01})), SpecError, "differs",
    ),
    "head of another shape": (
        _weights(lambda w: w.update({"lm_head.weight": w[EMBED][1:]})), SpecError, "[324, 40]",
    ),
    "index and file": (
        _bytes("model.safetensors.index.json", b"{}"), FileFormatError, "remove the one",
    ),
    "index without map": (_index(None), FileFormatError, "weight_map"),
    "index empty": (_index({}), FileFormatError, "weight_map"),
    "index of numbers": (_index({"a": 1}), FileFormatError, "file names"),
    "shard missing": (_index({"*": "model-2.safetensors"}), FileFormatError, "which is missing"),
    "shard above": (_index({"*": "../model.safetensors"}), FileFormatError, "plain file name"),
    "shard absolute": (_index({"*": "/etc/passwd"}), FileFormatError, "plain file name"),
    "shard with NUL": (_index({"*": "model\0"}), FileFormatError, "plain file name"),
    "shard ..": (_index({"*": ".."}), FileFormatError, "plain file name"),
    "shard empty": (_index({"*": ""}), FileFormatError, "plain file name"),
    "shard backslash": (_index({"*": "..\\x"}), FileFormatError, "plain file name"),
    "shard drive": (_index({"*": "C:x"}), FileFormatError, "plain file name"),
    "shard long": (_index({"*": "x" * 300}), FileFormatError, "cannot be reached"),
    "shard surrogate": (_index({"*": "\ud800"}), FileFormatError, "is missing"),
    "shard is config": (_index({"*": "config.json"}), FileFormatError, "config.json"),
    "index lacks tensors": (
        _index({EMBED: "model-1.safetensors"}), FileFormatError, "disagree: missing there none",
    ),
    "index names too much": (
        _index({"x": "model-1.safetensors"}), FileFormatError, "missing there 'x'",
    ),
    "one tensor in two shards": (
        lambda f: _twice(f), FileFormatError, "not in the index 'model.embed_tokens.weight'",
    ),
}  # fmt: skip


def _twice(folder: Path) -> None:
    weights = tiny_weights(SPEC)
    _index({"*": "model-1.safetensors"})(folder)
    write_safetensors(
        folder / "b.safetensors",
        {EMBED: weights[EMBED], "model.norm.weight": weights["model.norm.weight"]},
    )
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "b.safetensors"
    path.write_text(json.dumps(index))
    del weights["model.norm.weight"]
    write_safetensors(folder / "model-1.safetensors", weights)


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_faults_of_the_folder(tmp_path: Path, name: str) -> None:
    fault, kind, part = FOLDER_FAULTS[name]
    folder = write_tiny_checkpoint(tmp_path / "m", SPEC)
    open_checkpoint(folder).close()  # it is good before
    fault(folder)
    with pytest.raises(kind, match=re.escape(part)) as error:
        open_checkpoint(folder)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
