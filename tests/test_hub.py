"""From what the user typed to a model: paths, hub ids, and what happens without a network."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from plm_edge.checkpoint.hub import choose_gguf, resolve_model
from plm_edge.errors import OutputError, UnsupportedError, UsageError


@pytest.mark.parametrize(
    "model",
    ["./missing", "a/b/c", "missing.gguf", "", "~nobody-here/x", "\0", "x" * 5000, "org/m.gguf"],
)
def test_what_is_no_model(model: str) -> None:
    with pytest.raises(UsageError, match="found no file or folder"):
        resolve_model(model, offline=True)


def test_an_existing_path_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for model in ("some-org/nothing", "some-org/nothing:Q8_0"):
        with pytest.raises(OutputError, match="run once without --offline"):
            resolve_model(model, offline=True)


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
