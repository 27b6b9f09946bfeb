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


def test_the_rival_computes_the_same(bundle: Path, tmp_path: Path) -> None:
    relayout(bundle / MODEL_FILE, "plm", tmp_path / "plm")
    with plm_edge.load(bundle) as session:
        session.prefill(IDS[:6])
        want = session.step(IDS[6])
        other = session.step(IDS[7])
    rival = LlamaCpp(str(tmp_path / "plm" / MODEL_FILE), n_ctx=32, cache_type="f16", threads=2)
    for _ in range(2):  # truncated in between, as between two runs
        rival.keep(0)
        rival.extend(IDS[:6])
        rival.set_threads(1)
        rival.step(IDS[6])
        row = api.llama_get_logits_ith(rival._context, -1)
        got = np.ctypeslib.as_array(row, shape=want.shape)
        close(got, want, 5e-2)  # its activations have 8 bits: tests/peers/test_native.py
        assert relative_error(got, other) > 0.2
    file = GgufFile.open(tmp_path / "plm" / MODEL_FILE)
    assert file.metadata["general.architecture"] == "plm"
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
        assert (ours["layout"], theirs["layout"]) == ("latent", "plm")
        assert theirs["test"] == ours["test"]
        assert theirs["threads"] in (1, 2)
        ratios = [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
        assert theirs["ratio"] == pytest.approx(statistics.median(ratios), rel=1e-2)
        assert theirs["ratio_least"] <= theirs["ratio"] <= theirs["ratio_most"]
        assert ours["ratio"] is None
        # a context of 256, to which llama.cpp rounds up; 192 keys and 128 values a head
        key = {"f16": 2 * 192, "q8_0": 34 * 192 // 32}[theirs["cache_type"]]
        assert theirs["cache_bytes"] == 256 * 2 * 2 * (key + 2 * 128)
    (folder,) = (tmp_path / "plm-edge").iterdir()  # the layout plm, written once
    before = (folder / MODEL_FILE).stat().st_mtime_ns
    again = run(
        tmp_path, bundle, "-p", "0", "-n", "2", "-d", "0", "-t", "1", "-r", "1", "-o", "csv"
    )
    rows = csv.DictReader(io.StringIO(again))
    assert [row["engine"] for row in rows] == ["plm-edge", "llama.cpp"]
    assert (folder / MODEL_FILE).stat().st_mtime_ns == before
