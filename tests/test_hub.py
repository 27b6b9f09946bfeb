"""From what the user typed to a model: paths, hub ids, and what happens without a network."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
from command_line import Run
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.bundle import read_bundle
from plm_edge.checkpoint import hub
from plm_edge.checkpoint.hub import choose_gguf, resolve_model
from plm_edge.cli import prepare
from plm_edge.errors import DoesNotFit, FileFormatError, OutputError, UnsupportedError, UsageError
from plm_edge.spec import ModelSpec


@pytest.mark.parametrize(
    "model",
    ["./missing", "a/b/c", "missing.gguf", "", "~nobody-here/x", "\0", "x" * 5000, "org/m.gguf"],
)
def test_what_is_no_model(model: str) -> None:
    with pytest.raises(UsageError, match="found no file or folder"):
        resolve_model(model, offline=True)


def test_an_existing_path_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_named_demo_is_not_the_demo_model(inside: Run, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "demo", TINY_SHAPES["plain"])
    assert inside("export", "./demo", "--target", "host", "-o", "out").code == 0
    in_cache = prepare.prepare(Path("demo"))  # a Path forgets the dot; never the demo model either
    for bundle in (tmp_path / "out", in_cache):
        assert read_bundle(bundle).spec == TINY_SHAPES["plain"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub client in place of the user's."""
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cached(cache: Path, repo: str, *names: str) -> Path:
    """The snapshot folder of a repository of which these files were downloaded."""
    home = cache / ("models--" + repo.replace("/", "--"))
    snapshot = home / "snapshots" / ("0" * 40)
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    for name in names:
        (home / "blobs" / name).write_text("x")
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    return snapshot


def test_what_the_cache_holds_works_offline(cache: Path) -> None:
    snapshot = cached(cache, "some-org/model", "config.json", "model.safetensors")
    assert resolve_model("some-org/model", offline=True) == snapshot
    snapshot = cached(cache, "some-org/files", "m-Q4_0.gguf", "m-Q8_0.gguf")
    assert resolve_model("some-org/files:q8_0", offline=True) == snapshot / "m-Q8_0.gguf"
    with pytest.raises(UsageError, match=r"name one: some-org/files:Q8_0"):
        resolve_model("some-org/files", offline=True)


def test_a_hub_id_is_told_from_files_and_paths(tmp_path: Path) -> None:
    assert hub.is_hub_id("some-org/model")
    assert not hub.is_hub_id("some-org/model:Q8_0")
    assert not hub.is_hub_id("demo")
    (tmp_path / "some-org").mkdir()
    assert not hub.is_hub_id(str(tmp_path / "some-org"))


def test_what_does_not_fit_is_told_before_weights_are_downloaded(
    cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_tiny_checkpoint(tmp_path_factory.mktemp("hf"), TINY_SHAPES["plain"])
    snapshot = cached(cache, "some-org/model", "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_bytes((made / "config.json").read_bytes())
    asked = []
    real = hub.resolve_model

    def watched(model: str, offline: bool = False, config_only: bool = False) -> Path:
        asked.append(config_only)
        return real(model, offline, config_only)

    monkeypatch.setattr(hub, "resolve_model", watched)

    def check(spec: ModelSpec) -> None:
        raise DoesNotFit(f"{spec.layers} layers")

    with pytest.raises(DoesNotFit, match="layers"):
        prepare.find("some-org/model", True, check)
    assert asked == [True]
    assert prepare.to_plan("some-org/model", True)[0].layers == TINY_SHAPES["plain"].layers
    assert asked == [True, True]


def test_offline_says_what_to_do(cache: Path) -> None:
    for model in ("some-org/nothing", "some-org/nothing:Q8_0"):
        with pytest.raises(OutputError, match="run once without --offline"):
            resolve_model(model, offline=True)


def test_a_fresh_download_is_hashed(tmp_path: Path) -> None:
    """The cache names large files by their sha256; the same size alone is not enough."""
    blob = tmp_path / hashlib.sha256(b"right").hexdigest()
    blob.write_bytes(b"right")
    hub._check_fresh_blob(blob, started=0.0)
    blob.write_bytes(b"wrong")
    with pytest.raises(FileFormatError, match=r"remove .* and try again"):
        hub._check_fresh_blob(blob, started=0.0)
    os.utime(blob, (1, 1))  # older than this run: not read again
    hub._check_fresh_blob(blob, started=100.0)


def test_a_broken_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "_DEMO", tmp_path / "demo")
    with pytest.raises(UnsupportedError, match="demo model is not installed"):
        resolve_model("demo")
    (tmp_path / "demo").mkdir()
    assert resolve_model("demo") == tmp_path / "demo"


def test_a_hub_id_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=re.escape("pip install 'plm-edge[hub]'")):
        resolve_model("some-org/model")


def test_the_gguf_file_of_a_quantization() -> None:
    files = ["README.md", "m-Q8_0.gguf", "m-Q4_0.gguf", "m.Q4_K_M.gguf", "F16-00001-of-00002.gguf"]
    assert choose_gguf(files, "r", "q8_0") == "m-Q8_0.gguf"
    assert choose_gguf(files, "r", "Q4_K_M") == "m.Q4_K_M.gguf"
    for quant in ("F16", "K_0", "Q4"):
        with pytest.raises(UsageError, match="expected one"):
            choose_gguf(files, "r", quant)
