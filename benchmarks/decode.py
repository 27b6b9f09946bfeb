"""Speed of the native session on a model of PLM-1.8B's shape; the last line is JSON.

    python benchmarks/decode.py [--model BUNDLE] [--contexts 64,1024] [--threads 2] [--repeat 5]

Without --model one of PLM-1.8B's shape (Q4_0, 80 % idle units) is made once, in the cache folder.
Each figure is the median of the runs, with the fastest and slowest beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import plm_edge
from plm_edge.bundle import MANIFEST
from plm_edge.cli.prepare import cache_folder
from plm_edge.exporters.synth import synth
from plm_edge.runtime import Session


def model(asked: str | None, layout: str = "latent") -> Path:
    """The bundle to measure, made now if it is not there yet."""
    if asked:
        return Path(asked)
    made = cache_folder() / f"synth-plm-1.8b-Q4_0-{layout}-{plm_edge.__version__}"
    if not (made / MANIFEST).exists():
        print("making a model of PLM-1.8B's shape, once", file=sys.stderr)
        made.parent.mkdir(parents=True, exist_ok=True)
        synth("plm-1.8b", made, quant="Q4_0", layout=layout, zeros=0.8, force=True)
    return made


def seconds(run: Callable[[], object], repeat: int) -> list[float]:
    """Wall time of each of `repeat` runs, after one that does not count."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def figure(name: str, tokens: int, times: list[float]) -> dict[str, object]:
    """A row: tokens per second, median, slowest and fastest run."""
    rates = sorted(tokens / t for t in times)
    row = {"test": name, "tokens_per_s": round(statistics.median(rates), 2)}
    print(f"{name:16} {row['tokens_per_s']:8} tokens/s  ({rates[0]:.2f} to {rates[-1]:.2f})")
    return {**row, "slowest": round(rates[0], 2), "fastest": round(rates[-1], 2)}


def measure(session: Session, contexts: list[int], repeat: int) -> list[dict[str, object]]:
    """Prefill of 128 tokens, and decode steps after each context."""
    rng = np.random.default_rng(0)
    ids = [int(i) for i in rng.integers(0, session.tokenizer.n_tokens, max(contexts) + 16)]

    def prefill() -> None:
        session.reset()
        session.prefill(ids[:128])

    rows = [figure("prefill 128", 128, seconds(prefill, max(1, repeat // 2)))]
    for context in contexts:
        session.reset()
        session.prefill(ids[:context])

        def decode(context: int = context) -> None:
            session.truncate(context)
            for i in ids[context : context + 8]:
                session.step(i)

        rows.append(figure(f"decode @{context}", 8, seconds(decode, repeat)))
    return rows


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--contexts", default="64,1024")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    bundle = model(args.model)
    start = time.perf_counter()
    session = plm_edge.load(bundle, threads=args.threads, isa=args.isa)
    loaded = time.perf_counter() - start
    print(f"loaded in {loaded:.2f} s; {session.threads} threads, {session.isa}")
    rows = measure(session, [int(c) for c in args.contexts.split(",")], args.repeat)
    result = {
        "model": bundle.name,
        "machine": platform.machine(),
        "threads": session.threads,
        "isa": session.isa,
        "version": plm_edge.__version__,
        "load_s": round(loaded, 2),
        "weight_bytes": session.model.weight_bytes,
        "cache_bytes": session.cache_bytes,
        "workspace_bytes": session.workspace_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "results": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
