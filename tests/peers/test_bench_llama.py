"""plm-edge bench beside llama.cpp: the same blocks, the same ids, the same answers, then ratios."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_peer import MISSING
from metrics import close, relative_error
from tiny import TINY_SHAPES, write_tiny_checkpoint

import plm_edge
from plm_edge.bundle import MODEL_FILE
from plm_edge.exporters.relayout import relayout
from plm_edge.gguf_file import GgufFile
from plm_edge.llama_cpp import cache_bytes
from plm_edge.runtime.bench.rival import LlamaCpp

api = pytest.importorskip("llama_cpp", reason=MISSING)

PROGRAM = str(Path(sys.executable).with_name("plm-edge"))
IDS = [5, 9, 33, 301, 7, 8, 90, 12]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent export of PLM's head widths in Q8_0."""
    root = tmp_path_factory.mktemp("bench")
    checkpoint = write_tiny_checkpoint(root / "hf", TINY_SHAPES["plm"])
    plm_edge.export(str(checkpoint), out=root / "latent", quant="Q8_0")
    return root / "latent"


@pytest.mark.parametrize(
    ("layout", "flash"), [("plm", False), ("deepseek2", False), ("deepseek2", True)]
)
def test_the_rival_computes_the_same(
    bundle: Path, tmp_path: Path, layout: str, flash: bool
) -> None:
    relayout(bundle / MODEL_FILE, layout, tmp_path / "out")
    with plm_edge.load(bundle) as session:
        session.prefill(IDS[:6])
        want = session.step(IDS[6])
        other = session.step(IDS[7])
    path = tmp_path / "out" / MODEL_FILE
    rival = LlamaCpp(str(path), layout, n_ctx=32, cache_type="f16", threads=2, flash=flash)
    for _ in range(2):  # truncated in between, as between two runs
        rival.keep(0)
        rival.extend(IDS[:6])
        rival.set_threads(1)
        rival.step(IDS[6])
        row = api.llama_get_logits_ith(rival._context._handle, -1)
        got = np.ctypeslib.as_array(row, shape=want.shape)
        close(got, want, 5e-2)  # its activations have 8 bits: tests/peers/test_native.py
        assert relative_error(got, other) > 0.2
    file = GgufFile.open(path)
    assert file.metadata["general.architecture"] == layout
    file.close()


def run(folder: Path, *arguments: object) -> str:
    env = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    command = [PROGRAM, "bench", *map(str, arguments), "--vs", "llama.cpp"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ratios_are_of_the_same_rounds(bundle: Path, tmp_path: Path) -> None:
    short = ["-p", "6", "-n", "3", "-d", "0,40", "-t", "2", "-r", "3"]
    said = json.loads(run(tmp_path, bundle, *short, "-o", "json"))
    assert said["llama_cpp"] == api.__version__
    pairs = list(zip(said["results"][::2], said["results"][1::2], strict=True))
    assert [ours["test"] for ours, _ in pairs] == ["pp6", "tg3", "pp6 @ d40", "tg3 @ d40"]
    for ours, theirs in pairs:
        assert (ours["engine"], theirs["engine"]) == ("plm-edge", "llama.cpp")
        assert ours["layout"] == "latent"
        assert ours["flash_attention"] is None
        assert (theirs["layout"], theirs["flash_attention"]) in (
            ("plm", False), ("deepseek2", False), ("deepseek2", True),
        )  # fmt: skip
        assert theirs["test"] == ours["test"]
        assert theirs["threads"] in (1, 2)
        ratios = [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
        assert theirs["ratio"] == pytest.approx(statistics.median(ratios), rel=1e-2)
        assert theirs["ratio_least"] <= theirs["ratio"] <= theirs["ratio_most"]
        assert ours["ratio"] is None
        spec = TINY_SHAPES["plm"]
        want = cache_bytes(theirs["layout"], spec, theirs["cache_type"], 256)
        assert theirs["cache_bytes"] == want
    # both layouts, written once
    files = sorted((tmp_path / "plm-edge").glob(f"*/{MODEL_FILE}"))
    assert [path.parent.name.rpartition("-")[2] for path in files] in (
        ["deepseek2", "plm"], ["plm", "deepseek2"],
    )  # fmt: skip
    before = [path.stat().st_mtime_ns for path in files]
    again = run(
        tmp_path, bundle, "-p", "0", "-n", "2", "-d", "0", "-t", "1", "-r", "1", "-o", "csv"
    )
    rows = csv.DictReader(io.StringIO(again))
    assert [row["engine"] for row in rows] == ["plm-edge", "llama.cpp"]
    assert [path.stat().st_mtime_ns for path in files] == before


def test_every_setting_is_tried_and_what_llama_cpp_refuses_is_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from plm_edge.cli.prepare import in_layout
    from plm_edge.runtime.bench.measure import Task, measure

    said: list[str] = []
    files = {layout: in_layout(bundle, layout) for layout in ("plm", "deepseek2")}
    task = Task(bundle, "latent", IDS, 0, 2, (2,), (1,), 1, rivals=files)
    ours, theirs = measure(task, said.append)
    filled = [line for line in said if "fill the cache of" in line]
    assert len(filled) == 6
    left_out = [line for line in said if line.startswith("left out")]
    assert len(left_out) == 1  # a quantized cache of deepseek2 wants flash attention
    assert "deepseek2 -t 1 -ctk q8_0 -fa off" in left_out[0]
    assert ours.setting.flash is None
    assert theirs.setting.flash is not None
