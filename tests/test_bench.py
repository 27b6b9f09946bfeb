"""plm-edge bench: what it counts, what it prints, how it ends. No test looks at a clock."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from docs_text import table

import plm_edge
from plm_edge.bundle import MODEL_FILE
from plm_edge.cache_layout import CacheLayout
from plm_edge.cli import app
from plm_edge.errors import FileFormatError
from plm_edge.runtime.bench.case import Case, Result, Setting
from plm_edge.runtime.bench.plot import lines_of, ticks, write_plot
from plm_edge.runtime.bench.process import EngineDied, Process
from plm_edge.spec import ModelSpec

PROGRAM = str(Path(sys.executable).with_name("plm-edge"))
SHORT = ["-p", "6", "-n", "3", "-d", "0,20", "-t", "1", "-r", "3"]

Bundles = Callable[..., Path]


def bench(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    command = [PROGRAM, "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(("shape", "quant"), [("plain", "F32"), ("untied", "F32"), ("plm", "Q8_0")])
def test_a_step_reads_weights_and_cached_rows(bundle_of: Bundles, shape: str, quant: str) -> None:
    with plm_edge.load(bundle_of(shape, quant, "plm" if shape == "plain" else "latent")) as session:
        spec, weights = session.spec, session.model.weights
        session.prefill([5, 6, 7])
        session.step(8)
        embedding = weights["token_embd.weight"].data.nbytes
        row = embedding // spec.vocab
        layout = CacheLayout(spec.rank, spec.rope, "f16")
        most = session.model.weight_bytes + row - (0 if spec.tied else embedding)
        rows = int(session._buffers["unit_rows"].sum()) if shape != "plain" else units_of(spec)
        idle = units_of(spec) - rows
        unit_bytes = spec.d_model * (4 if quant == "F32" else 1)  # its scales are shared by 32
        assert session.bytes_read == most - idle * unit_bytes + layout.bytes(4, spec.layers)
        assert (idle > units_of(spec) // 4) == (shape != "plain")  # layout plm: nothing is skipped
        session.step(9)
        assert session.bytes_read >= most - units_of(spec) * unit_bytes + layout.bytes(
            5, spec.layers
        )


def units_of(spec: ModelSpec) -> int:
    return spec.layers * spec.d_ffn


# ---------------------------------------------------------------- what it prints


def test_json_says_everything(bundle_of: Bundles, tmp_path: Path) -> None:
    bundle = bundle_of("plm", "Q8_0")
    done = bench(tmp_path, bundle, *SHORT, "-ctk", "Q8_0", "--isa", "scalar", "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["plm_edge"] == plm_edge.__version__
    assert said["model"]["formats"] == "Q8_0, head Q8_0"
    assert said["machine"]["cores"] >= 1
    rows = said["results"]
    assert [row["test"] for row in rows] == ["pp6", "tg3", "pp6 @ d20", "tg3 @ d20"]
    for row in rows:
        rates = [tokens_of(row) / s for s in row["seconds"]]
        assert len(rates) == 3
        assert row["tokens_per_s"] == pytest.approx(statistics.median(rates), rel=1e-2)
        assert row["least"] <= row["tokens_per_s"] <= row["most"]
        assert (row["threads"], row["cache_type"], row["isa"]) == (1, "q8_0", "scalar")
        assert row["cache_bytes"] == CacheLayout(512, 64, "q8_0").bytes(row["depth"] + 6, 2)
        assert (row["bytes_per_token"] is None) == row["test"].startswith("pp")
        assert row["read_gb_per_s"] > 0
        assert sys.platform != "linux" or row["peak_bytes"] > said["model"]["weight_bytes"]
        assert 0 <= row["outside_share"] < 1
        assert row["ratio"] is None
    deeper = rows[3]["bytes_per_token"] - rows[1]["bytes_per_token"]
    cached = CacheLayout(512, 64, "q8_0").bytes(20, 2)
    units = 2 * 512 * 256  # bytes of all rows of ffn_down: other tokens, other units
    assert abs(deeper - cached) <= units


def test_depths_that_nobody_asked_for_end_where_the_training_did(
    bundle_of: Bundles, tmp_path: Path
) -> None:
    few = ("-n", "1", "-r", "1", "-t", "1", "-o", "json")
    done = bench(tmp_path, bundle_of("plain"), *few)
    tests = [row["test"] for row in json.loads(done.stdout)["results"]]
    assert tests == ["pp128", "tg1"]
    said = "plm-edge: -d 0: trained for 128 tokens; -d goes beyond\n"
    assert said in done.stderr
    done = bench(tmp_path, bundle_of("plain"), *few, "-p", "150", "-d", "0,200")
    tests = [row["test"] for row in json.loads(done.stdout)["results"]]
    assert tests == ["pp150", "tg1", "pp150 @ d200", "tg1 @ d200"]
    assert "trained" not in done.stderr


def tokens_of(row: dict[str, str]) -> int:
    return int(row["test"].split()[0][2:])


def test_md_and_csv_have_a_row_for_each_result(bundle_of: Bundles, tmp_path: Path) -> None:
    bundle = bundle_of("plain")
    done = bench(tmp_path, bundle, *SHORT, "-p", "0", "--plot", "drawn.svg")
    assert done.returncode == 0, done.stderr
    cells = table(done.stdout, "engine")
    assert [row[:3] for row in cells] == [
        ["plm-edge", "tg3", "1, f16"],
        ["plm-edge", "tg3 @ d20", "1, f16"],
    ]
    assert done.stdout.splitlines()[-1].endswith("medians of 3 runs")
    drawn = ET.parse(tmp_path / "drawn.svg").getroot()
    assert len(drawn.findall("{*}circle")) == 4
    done = bench(tmp_path, bundle, *SHORT, "-p", "0", "-o", "csv", "-r", "1")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["test"] for row in rows] == ["tg3", "tg3 @ d20"]
    assert all(float(row["bytes_per_token"]) > 0 for row in rows)
    assert len(done.stdout.splitlines()) == 3


def result(depth: int, engine: str = "plm-edge", threads: int = 2, rate: float = 4.0) -> Result:
    return Result(
        Case("tg", 8, depth), Setting(engine, "plm", "f16", threads), (8 / rate, 1.0, 100.0),
        2e9, 5e8, 2**20 * (100 + depth), 7, 0.01, (2.0, 1.0, 4.0) if engine != "plm-edge" else (),
    )  # fmt: skip


def test_a_row_has_medians_and_ends() -> None:
    row = result(64, "llama.cpp").row()
    assert (row["test"], row["least"], row["tokens_per_s"], row["most"]) == (
        "tg8 @ d64",
        0.08,
        4,
        8,
    )
    assert (row["ms_per_token"], row["gb_per_s"], row["read_gb_per_s"]) == (250, 2, 2)
    assert (row["ratio"], row["ratio_least"], row["ratio_most"]) == (2, 1, 4)
    assert result(64).row()["ratio"] is None
    assert Case("pp", 512, 0).name == "pp512"


def test_the_drawing_follows_threads_of_ours(tmp_path: Path) -> None:
    results = [
        make
        for threads in (1, 2)
        for depth in (0, 1024)
        for make in (result(depth, threads=threads), result(depth, "llama.cpp", threads=1))
    ]
    speed, memory = lines_of(results)
    assert list(speed) == [
        "plm-edge, -t 1", "llama.cpp, -t 1", "plm-edge, -t 2", "llama.cpp, -t 2",
    ]  # fmt: skip
    assert speed["plm-edge, -t 2"] == [(4.0, 4.0), (1028.0, 4.0)]
    assert memory["llama.cpp, -t 1"] == [(4.0, 100.0), (1028.0, 1124.0)]
    assert ticks(1234.0) == [0, 500, 1000]
    assert ticks(0.5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    write_plot(tmp_path / "a.svg", "<bent & broken>", results)
    drawn = ET.parse(tmp_path / "a.svg").getroot()
    assert len(drawn.findall("{*}polyline")) == 8
    assert [text.text for text in drawn.findall("{*}text")].count("tokens of context") == 2
    assert drawn.findall("{*}text")[0].text == "Decoding <bent & broken>"


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["-p", "-1"], 2, "-p: expected 0 to"),
        (["-n", "9999999"], 2, "-n: expected 0 to"),
        (["-p", "0", "-n", "0"], 2, "something to measure"),
        (["-r", "0"], 2, "-r: expected 1 to"),
        (["-d", "1,x"], 2, "-d: expected numbers"),
        (["-d", ""], 2, "-d: expected numbers"),
        (["-d", "-4"], 2, "-d: expected numbers"),
        (["-d", "9999999"], 2, "-d: expected 0 to"),
        (["-t", "0"], 2, "-t: expected 1 to"),
        (["-o", "xml"], 2, "-o: expected md or json or csv"),
        (["-ctk", "q9"], 2, "-ctk: expected f16"),
        (["--isa", "mmx"], 2, "unknown kernel set 'mmx'"),
        (["--vs", "vllm"], 2, "--vs: expected llama.cpp"),
        (["--plot", "a.png"], 2, ".svg"),
        (["--plot", "a.svg", "-n", "0"], 2, "tokens to decode"),
        (["--plot", "none/a.svg"], 4, "none"),
    ],
)
def test_a_wrong_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["plm-edge", "bench", "nothing-there", *arguments])
    assert app._exit_code() == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("plm-edge: ")
    assert part in err
    assert err.count("\n") == 1


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed")
def test_a_missing_llama_cpp_is_one_line(tmp_path: Path) -> None:
    done = bench(tmp_path, "--vs", "llama.cpp")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("plm-edge: --vs llama.cpp: expected the package")
    assert done.stderr.endswith("pip install 'plm-edge[llama]'\n")


def test_ctrl_c_ends_it_and_its_engines(bundle_of: Bundles, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [PROGRAM, "bench", str(bundle_of("plm")), "-n", "4", "-r", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while "run 2" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the engines as well
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "plm-edge: interrupted"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left


def test_errors_of_an_engine_come_up(tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF")
    settings = {
        "ids": [1],
        "n_ctx": 8,
        "cache_type": "f16",
        "threads": 1,
        "isa": None,
        "head": "full",
        "activations": "int16",
    }
    with Process("it") as process:
        with pytest.raises(FileFormatError, match=r"torn\.gguf"):
            process.ask("open_native", path=str(torn), **settings)
        with pytest.raises(EngineDied, match=r"it ended with exit code 1; .*no attribute 'paint'"):
            process.ask("paint")
        with pytest.raises(EngineDied):
            process.ask("peak")


def test_a_killed_engine_is_named(bundle_of: Bundles) -> None:
    with Process("it") as process:
        process.ask("peak")
        process._process.kill()
        with pytest.raises(EngineDied, match="it ended with SIGKILL; no word"):
            process.ask("peak")


def test_an_engine_whose_asker_is_gone_ends(bundle_of: Bundles) -> None:
    path = str(bundle_of("plain") / MODEL_FILE)
    with Process("it") as process:
        settings = {"n_ctx": 8, "cache_type": "f16", "threads": 1, "isa": None, "head": "full"}
        settings["activations"] = "int16"
        process.ask("open_native", path=path, ids=[1, 2, 3], **settings)
        assert process._process.stdin is not None
        process._process.stdin.close()
        assert process._process.wait(timeout=60) == 0
