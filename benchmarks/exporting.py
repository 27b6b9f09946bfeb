"""Time and memory of an export of PLM-1.8B to Q4_0, beside llama.cpp's quantizer.

    python benchmarks/exporting.py [--shape plm-1.8b] [--rounds 3] [--folder DIR]

Ours goes from a checkpoint in bf16 safetensors to a bundle in layout plm, hashed and on the disk;
llama.cpp's from the F16 GGUF file of the same weights to a GGUF file. Both in processes of their
own, in turn, all matrices in Q4_0 (--pure), with whatever threads they take by themselves, then
llama.cpp on one. Memory is VmHWM, which for mapped files counts the pages that were touched. The
weights are seeded (`plm-edge synth`). The last line is JSON. Needs llama-cpp-python (`make
test-peers` sets it up in .venv-peers) and 10 GB of disk for PLM-1.8B.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "peers")]  # checkpoints and the peer

from llama_quantizer import llama_quantize  # noqa: E402
from tiny import config_of, write_tokenizer  # noqa: E402

import plm_edge  # noqa: E402
from plm_edge.bundle import MODEL_FILE  # noqa: E402
from plm_edge.exporters.synth import SHAPES  # noqa: E402
from plm_edge.exporters.synth_vocabulary import made_up_vocabulary  # noqa: E402
from plm_edge.exporters.synth_weights import SynthWeights  # noqa: E402
from plm_edge.tensors import tensor_table  # noqa: E402

_ROWS = 4096  # of a matrix at a time


def write_checkpoint(shape: str, folder: Path, zeros: float = 0.8, seed: int = 0) -> None:
    """A checkpoint of synth's weights as Hugging Face writes them, in bf16, row by row."""
    folder.mkdir(parents=True)
    weights = SynthWeights(SHAPES[shape].spec, zeros, seed)
    table = tensor_table(weights.spec)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for info in table.values():
        end = at + 2 * int(np.prod(info.shape))
        header[info.hf_name] = {"dtype": "BF16", "shape": info.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, info in table.items():
            if len(info.shape) == 1:
                file.write(_bf16(weights.read(name)))
                continue
            for start in range(0, info.shape[0], _ROWS):
                stop = min(start + _ROWS, info.shape[0])
                file.write(_bf16(weights.read_rows(name, start, stop)))
    (folder / "config.json").write_text(json.dumps(config_of(weights.spec)))
    merges = made_up_vocabulary(SHAPES[shape].merges).merges
    pairs = [merges[i].split(" ") for i in range(len(merges))]
    write_tokenizer(folder, [(left, right) for left, right in pairs])


def _bf16(x: NDArray[np.float32]) -> bytes:
    """Rounded to nearest, ties to even."""
    bits = x.view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return bits.astype("<u2").tobytes()


def child(kind: str, source: Path, out: Path) -> None:
    """One export; prints its seconds and its peak memory in bytes."""
    started = time.perf_counter()
    if kind == "ours":
        plm_edge.export(source, out=out, quant="Q4_0", layout="plm", pure=True)
    else:
        threads = 0 if kind == "llama.cpp" else 1  # 0: as many as there are
        llama_quantize(source, out, "Q4_0", threads=threads, pure=True)
    seconds = time.perf_counter() - started
    peak = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    print(json.dumps({"seconds": seconds, "peak": int(peak) * 1024}))


def run(kind: str, source: Path, out: Path) -> dict[str, Any]:
    """The same in a process of its own, with the time that starting it takes."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--child", kind, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"kind": kind, **found, "seconds": time.perf_counter() - started}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="plm-1.8b", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models lie, kept for the next run")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        checkpoint, floats = folder / "checkpoint", folder / "f16"
        if not checkpoint.exists():
            write_checkpoint(args.shape, checkpoint)
        if not floats.exists():
            plm_edge.export(checkpoint, out=floats, quant="F16", layout="plm")
        runs = [
            run(kind, source, Path(made) / f"{kind}-{number}")
            for number in range(args.rounds)
            for kind, source in _turn(number, checkpoint, floats / MODEL_FILE)
        ]
    _report(runs)


def _turn(number: int, checkpoint: Path, floats: Path) -> list[tuple[str, Path]]:
    """Who runs in this round; who begins changes."""
    kinds = [("ours", checkpoint), ("llama.cpp", floats), ("llama.cpp, 1 thread", floats)]
    return kinds[number % 3 :] + kinds[: number % 3]


def _report(runs: list[dict[str, Any]]) -> None:
    def of(kind: str, key: str, of_all: Callable[[list[float]], float]) -> float:
        return of_all([run[key] for run in runs if run["kind"] == kind])

    print("| | seconds, median (least to most) | peak memory, MB |\n|---|---|---|")
    for kind in dict.fromkeys(run["kind"] for run in runs):
        middle, least, most = (of(kind, "seconds", how) for how in (statistics.median, min, max))
        peak = of(kind, "peak", max) / 1e6
        print(f"| {kind} | {middle:.1f} ({least:.1f} to {most:.1f}) | {peak:,.0f} |")
    rivals = [kind for kind in dict.fromkeys(run["kind"] for run in runs) if kind != "ours"]
    ratios = {
        kind: of(kind, "seconds", statistics.median) / of("ours", "seconds", statistics.median)
        for kind in rivals
    }
    print(json.dumps({"runs": runs, "times_as_fast_as": ratios}))


if __name__ == "__main__":
    main()
