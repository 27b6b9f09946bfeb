"""A checkpoint is read as it stands, or refused with one line that says what is wrong."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tiny import TINY_SHAPES, tiny_weights, write_safetensors, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.files import locate, parse_json_object
from plm_edge.errors import (
    FileFormatError,
    PlmEdgeError,
    SpecError,
    UnsupportedError,
    UsageError,
)
from plm_edge.tensors import tensor_table

SPEC = TINY_SHAPES["odd"]
EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", ["odd", "untied", "blocks"])
def test_values_come_back(tmp_path: Path, shape: str, dtype: str, shards: int) -> None:
    spec = TINY_SHAPES[shape]
    folder = write_tiny_checkpoint(tmp_path / "m", spec, 3, dtype=dtype, shards=shards)
    weights = tiny_weights(spec, 3, dtype)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.spec == spec
        for name, info in tensor_table(spec).items():
            got = checkpoint.read(name)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, weights[info.hf_name])
        part = checkpoint.read_rows("token_embd.weight", 7, 19)
        np.testing.assert_array_equal(part, weights[EMBED][7:19])
        assert checkpoint.read_rows("token_embd.weight", 5, 5).shape == (0, spec.d_model)
        with pytest.raises(ValueError, match="rows"):
            checkpoint.read_rows("token_embd.weight", 0, spec.vocab + 1)
        checkpoint.assert_unchanged()


def test_the_builder_writes_what_the_safetensors_package_reads(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC, dtype="F16")
    theirs = safetensors.numpy.load_file(folder / "model.safetensors")
    ours = tiny_weights(SPEC, dtype="F16")
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(theirs[name].astype(np.float32), ours[name])


# ---- faults of the folder, each: what to do to a good checkpoint, the class, a part of the line

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


@pytest.mark.parametrize(
    ("bad", "row"), [(np.nan, 0), (np.inf, 7), (-np.inf, 324)], ids=["nan", "inf", "-inf"]
)
def test_nan_and_infinity_are_named(tmp_path: Path, bad: float, row: int) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC)
    weights = tiny_weights(SPEC)
    weights[EMBED][row, 11] = bad
    weights["model.norm.weight"][3] = bad
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(FileFormatError, match=rf"token_embd.weight .* row {row};"):
            checkpoint.read("token_embd.weight")
        with pytest.raises(FileFormatError, match=r"output_norm.weight .* row 3;"):
            checkpoint.read("output_norm.weight")
        with pytest.raises(FileFormatError, match=rf"row {row};"):
            checkpoint.read_rows("token_embd.weight", row, row + 1)
        checkpoint.read_rows("token_embd.weight", row + 1, SPEC.vocab)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_pieces_join_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Pieces of 7 values, rows of 40: the values and the row that is named stay the same."""
    monkeypatch.setattr("plm_edge.checkpoint._PIECE", 7)
    folder = write_tiny_checkpoint(tmp_path, SPEC, dtype=dtype)
    weights = tiny_weights(SPEC, dtype=dtype)
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("token_embd.weight"), weights[EMBED])
    weights[EMBED][9, 39] = np.nan
    write_safetensors(folder / "model.safetensors", weights, dtype)
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(FileFormatError, match="in row 9;"),
    ):
        checkpoint.read_rows("token_embd.weight", 3, 12)


def test_neutral_extras(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC)
    weights = tiny_weights(SPEC)
    weights["lm_head.weight"] = weights[EMBED]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    open_checkpoint(folder).close()


def test_a_checkpoint_stored_as_float64_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC)
    weights = {name: x.astype(np.float64) for name, x in tiny_weights(SPEC).items()}
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    with pytest.raises(SpecError, match="stored as F64"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_change_during_the_export_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC)
    with open_checkpoint(folder) as checkpoint:
        checkpoint.assert_unchanged()
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(FileFormatError, match=f"{name} changed"):
            checkpoint.assert_unchanged()
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
        with pytest.raises(FileFormatError, match=f"{name} changed"):
            checkpoint.assert_unchanged()


def test_truncation_while_open_is_an_error_not_a_crash(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC)
    with open_checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 2000)
        with pytest.raises(FileFormatError, match="too early"):
            checkpoint.read("blk.2.ffn_down.weight")


def test_reading_rows_needs_memory_for_rows_only(tmp_path: Path) -> None:
    spec = TINY_SHAPES["plm"]
    with open_checkpoint(write_tiny_checkpoint(tmp_path, spec, dtype="BF16")) as checkpoint:
        tracemalloc.start()
        checkpoint.read_rows("token_embd.weight", 0, 4)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * 4 * spec.d_model + 4096


# ---- where it came from


def _hub_cache(root: Path, folder: Path) -> Path:
    """The folder as huggingface_hub caches it: blobs, and a snapshot of links to them."""
    repo = root / "models--some-org--tiny--model"
    snapshot = repo / "snapshots" / "0123abcd"
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(repo / "blobs" / f"blob{k}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{k}")
    return snapshot


def test_the_hugging_face_cache_of_links_works(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m", SPEC, shards=2)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    snapshot = _hub_cache(tmp_path / "hub", folder)
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.source["name"] == "some-org/tiny--model"
        assert checkpoint.source["revision"] == "0123abcd"
        assert checkpoint.source["licence"] == "apache-2.0"
        assert len(checkpoint.source["config_sha256"] or "") == 64
    (tmp_path / "link").symlink_to(snapshot)
    open_checkpoint(tmp_path / "link").close()
    secret = tmp_path / "hub" / "secret"
    secret.write_text("x")
    (snapshot / "vocab.json").symlink_to(secret)
    with pytest.raises(FileFormatError, match="leaves the model folder"):
        open_checkpoint(snapshot)


def test_a_plain_folder_as_source(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "süß 模型", SPEC)
    (folder / "README.md").write_text("no front matter\nlicense: mit\n")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.source["name"] == "süß 模型"
        assert checkpoint.source["revision"] is checkpoint.source["licence"] is None
        assert str(tmp_path) not in json.dumps(checkpoint.source)


def test_nothing_is_imported_from_the_folder(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, SPEC)
    (folder / "modeling_plm.py").write_text("raise SystemExit('imported')")
    open_checkpoint(folder).close()


def test_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, found in ((tmp_path / "file", "a file"), (tmp_path / "x", "nothing")):
        with pytest.raises(UsageError, match=f"found {found}"):
            open_checkpoint(path)


def test_locate_returns_none_for_nothing(tmp_path: Path) -> None:
    assert locate(tmp_path, "config.json") is None


def test_json_depth_of_64_is_allowed() -> None:
    text = b'{"a":' * 64 + b"1" + b"}" * 64
    assert "a" in parse_json_object(text, "x")
    with pytest.raises(FileFormatError, match="deeper"):
        parse_json_object(b'{"a":' + text + b"}", "x")
