"""Another layout of the same blocks: byte for byte what an export into it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plm_edge.bundle import MODEL_FILE
from plm_edge.cli.prepare import in_layout
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
