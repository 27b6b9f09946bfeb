"""A checkpoint is read as it stands, or refused with one line that says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from allocations import most_allocated
from tiny import TINY_SHAPES, tiny_weights, write_safetensors, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.files import locate, parse_json_object
from plm_edge.errors import (
    FileFormatError,
    SpecError,
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
    folder = write_tiny_checkpoint(tmp_path, spec, dtype="BF16")

    def read() -> None:
        with open_checkpoint(folder) as checkpoint:
            checkpoint.read_rows("token_embd.weight", 0, 4)

    opened, peak = most_allocated(lambda: open_checkpoint(folder).close()), most_allocated(read)
    assert peak < opened + 16 * 4 * spec.d_model + 4096


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
