"""Another layout of the same blocks: byte for byte what an export into it writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Run

from plm_edge import devices
from plm_edge.bundle import MODEL_FILE
from plm_edge.cli.prepare import in_layout, laid_out
from plm_edge.errors import UnsupportedError
from plm_edge.exporters.relayout import relayout
from plm_edge.gguf_file import GgufFile

Bundles = Callable[..., Path]


def tensors(path: Path) -> dict[str, bytes]:
    file = GgufFile.open(path)
    try:
        return {name: file.data(name).tobytes() for name in file.tensors}
    finally:
        file.close()


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("old", "new"), [("latent", "plm"), ("plm", "latent")])
def test_the_blocks_are_those_of_an_export(
    bundle_of: Bundles, tmp_path: Path, quant: str, old: str, new: str
) -> None:
    relayout(bundle_of("plm", quant, old) / MODEL_FILE, new, tmp_path / "out")
    want = tensors(bundle_of("plm", quant, new) / MODEL_FILE)
    assert tensors(tmp_path / "out" / MODEL_FILE) == want
    assert tensors(bundle_of("plm", quant, old) / MODEL_FILE) != want


def test_the_file_is_the_one_of_an_export(bundle_of: Bundles, tmp_path: Path) -> None:
    """Keys, vocabulary and order too."""
    relayout(bundle_of("plm", "Q4_0") / MODEL_FILE, "plm", tmp_path / "out")
    want = (bundle_of("plm", "Q4_0", "plm") / MODEL_FILE).read_bytes()
    assert (tmp_path / "out" / MODEL_FILE).read_bytes() == want


def test_a_file_in_the_layout_is_taken_as_it_is(
    bundle_of: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = bundle_of("plm", "Q4_0", "plm")
    assert in_layout(folder, "plm") == in_layout(folder / MODEL_FILE, "plm") == folder / MODEL_FILE
    assert not list(tmp_path.iterdir())
    made = in_layout(bundle_of("plm", "Q4_0"), "plm")
    before = made.stat().st_mtime_ns
    assert in_layout(bundle_of("plm", "Q4_0"), "plm") == made
    assert made.stat().st_mtime_ns == before


def test_what_the_layout_cannot_say_is_refused(bundle_of: Bundles, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="a head of its own"):
        relayout(bundle_of("untied") / MODEL_FILE, "plm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stock(bundle_of: Bundles, tmp_path: Path) -> Path:
    """A file in layout `plm`, as it is downloaded, in a folder that is the user's home."""
    return Path(shutil.copy(bundle_of("blocks", "Q4_0", "plm") / MODEL_FILE, tmp_path / "st.gguf"))


def test_a_file_of_plain_rows_is_laid_out_once(inside: Run, stock: Path, tmp_path: Path) -> None:
    said = "export st.gguf for this machine: "
    chat = ("chat", "st.gguf", "-p", "a", "-n", 4, "--temp", 0)
    first = inside(*chat)
    assert first.code == 0, first.err
    assert said in first.err
    (folder,) = (tmp_path / ".cache/plm-edge").iterdir()
    assert "blk.0.ffn_up.weight.tile16x4" in tensors(folder / MODEL_FILE)
    again = inside(*chat)
    assert said not in again.err
    assert again.out == first.out

    bench = inside("bench", "st.gguf", "-p", 0, "-n", 1, "-d", 0, "-r", 1, "-o", "json")
    assert json.loads(bench.out)["model"]["layout"] == "latent"
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a house by the sea " * 8)
    judged = [inside("eval", file, "-f", text, "-c", 32).out for file in ("st.gguf", folder)]
    assert judged[0] == judged[1] != ""
    assert list((tmp_path / ".cache/plm-edge").iterdir()) == [folder]


def test_without_room_it_is_taken_as_it_is(
    inside: Run, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "plm-edge: st.gguf as it is, more slowly: "
    chat = ("chat", "st.gguf", "-p", "a", "-n", 1)
    with monkeypatch.context() as patch:
        full = shutil.disk_usage("/")._replace(free=1000)
        patch.setattr("plm_edge.atomic.shutil.disk_usage", lambda folder: full)
        ran = inside(*chat)
    assert ran.code == 0
    assert [line for line in ran.err.splitlines() if line.startswith(said)] != []
    assert not list((tmp_path / ".cache/plm-edge").iterdir())
    shutil.rmtree(tmp_path / ".cache")
    (tmp_path / ".cache").write_text("not a folder")
    ran = inside(*chat)
    assert ran.code == 0
    assert said in ran.err


def test_what_was_chosen_stays(inside: Run, bundle_of: Bundles, tmp_path: Path) -> None:
    assert inside("chat", bundle_of("blocks", "Q4_0", "plm"), "-p", "a", "-n", 1).code == 0
    assert inside("chat", bundle_of("blocks", "Q4_0") / MODEL_FILE, "-p", "a", "-n", 1).code == 0
    assert not (tmp_path / ".cache").exists()


def test_what_does_not_fit_is_not_copied(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = replace(devices.detect(), usable_bytes=stock.stat().st_size - 1)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "detect", lambda: small)
        assert laid_out(stock, "auto") == stock
    assert laid_out(stock, "llama") == stock
    assert laid_out(stock, "native") != stock
