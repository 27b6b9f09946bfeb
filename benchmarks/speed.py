"""The runs behind the README's figures: `plm-edge bench` on models of PLM-1.8B's shape.

    python benchmarks/speed.py [RUN ...] [--repetitions 5]

Without a RUN: `alone`. Runs named `beside...` need the extra `llama` (`make test-peers` sets it up
in .venv-peers). The models have random weights in Q4_0, the head too, and are made once, in the
cache folder; `zeros` is the share of their feed-forward units that are idle.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import plm_edge
from plm_edge.bundle import MANIFEST
from plm_edge.cli.prepare import cache_folder, in_layout
from plm_edge.exporters.synth import synth

PREFILL = "-p 512 -n 0 -d 0 -t 2"
DECODE = "-p 0 -n 32 -d 64,1024 -t 2"
DEEP = "-p 0 -n 32 -d 4096 -t 2"  # each setting of llama.cpp fills its cache first
# Name -> zeros, layout that our session reads, options of `plm-edge bench`.
RUNS = {
    "alone": [(0.8, "latent", PREFILL), (0.8, "latent", DECODE)],
    "beside": [
        (0.8, "latent", f"{PREFILL} --vs llama.cpp"),
        (0.8, "latent", f"{DECODE} --vs llama.cpp"),
    ],
    "beside-deep": [(0.8, "latent", f"{DEEP} --vs llama.cpp")],
    "beside-zeros": [
        (0.7, "latent", f"{DECODE} --vs llama.cpp"),
        (0.9, "latent", f"{DECODE} --vs llama.cpp"),
    ],
    # Each step by itself: plain rows without skipping, tiles with it, the cache, the head, bytes.
    "steps": [
        (0.8, "plm", DECODE),
        (0.8, "latent", DECODE),
        (0.8, "latent", f"{DECODE} -ctk q8_0"),
        (0.8, "latent", f"{DECODE} --head screened"),
        (0.8, "latent", f"{DECODE} --activations int8"),
        (0.8, "latent", f"{PREFILL} --activations int8"),
    ],
    "long": [(0.8, "latent", "-p 0 -n 32 -d 64,16384 -t 2 -ctk q8_0")],
    "threads": [(0.8, "latent", "-p 512 -n 32 -d 64 -t 1,2")],
}


def model(zeros: float = 0.8) -> Path:
    """The bundle to measure, made now if it is not there yet; it carries a screened head too."""
    made = cache_folder() / f"synth-plm-1.8b-Q4_0-{zeros:g}-{plm_edge.__version__}"
    if not (made / MANIFEST).exists():
        print(f"making a model of PLM-1.8B's shape, {zeros:.0%} zeros, once", file=sys.stderr)
        made.parent.mkdir(parents=True, exist_ok=True)
        synth("plm-1.8b", made, quant="Q4_0", zeros=zeros, pure=True, screen=True, force=True)
    return made


def read_anew() -> None:
    """Let the system forget the models: read again, they lie in memory as after a restart."""
    for path in cache_folder().rglob("*.gguf"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Print the table of each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--repetitions", default="5")
    args = parser.parse_args()
    if unknown := sorted(set(args.runs) - RUNS.keys()):
        parser.error(f"expected runs of {', '.join(RUNS)}, found {', '.join(unknown)}")
    for run in args.runs or ["alone"]:
        for zeros, layout, options in RUNS[run]:
            made = model(zeros)
            # The folder, a bundle of that layout: a bare file would be laid out for this machine.
            path = made if layout == "latent" else in_layout(made, layout).parent
            for other in ("plm", "deepseek2") if "--vs" in options else ():
                in_layout(made, other)
            read_anew()
            words = [*options.split(), "-r", args.repetitions]
            print(f"\n{run}: {zeros:.0%} zeros, plm-edge bench {' '.join(words)}\n", flush=True)
            program = [sys.executable, "-c", "from plm_edge.cli import main; main()"]
            subprocess.run([*program, "bench", str(path), *words], check=True)


if __name__ == "__main__":
    main()
