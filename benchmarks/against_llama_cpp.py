"""Our native session beside llama.cpp on the same weights, run by run in turn.

    .venv-peers/bin/python benchmarks/against_llama_cpp.py [--contexts 64,1024,4096] [--repeat 5]

Needs the extra `llama` (`make test-peers` sets it up). The model has PLM-1.8B's shape, Q4_0 with a
Q8_0 head, 80 % idle units; it is made once in each layout, in the cache folder: `latent` for us,
`plm` for llama.cpp, with flash attention off, since it aborts on `plm` files otherwise. Each
figure is the median of the runs; the ratio is the median of the ratios of neighbouring runs. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from decode import model
from llama_cpp import Llama

import plm_edge
from plm_edge.bundle import MODEL_FILE

STEPS = 8  # tokens decoded in a run


class Ours:
    """The native session as this benchmark drives it."""

    def __init__(self, bundle: Path, n_ctx: int, threads: int) -> None:
        self.session = plm_edge.load(bundle, n_ctx=n_ctx, threads=threads)

    def fill(self, ids: list[int]) -> None:
        """The ids, and nothing else, in the cache."""
        self.session.reset()
        self.session.prefill(ids)

    def truncate(self, n: int) -> None:
        """Keep the first n."""
        self.session.truncate(n)

    def step(self, token: int) -> None:
        """One decode step, logits included."""
        self.session.step(token)


class LlamaCpp:
    """The same through llama-cpp-python."""

    def __init__(self, file: Path, n_ctx: int, threads: int) -> None:
        self.llama = Llama(
            str(file), n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def fill(self, ids: list[int]) -> None:
        """As in Ours."""
        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        self.llama.eval(ids)

    def truncate(self, n: int) -> None:
        """As in Ours."""
        self.llama._ctx.kv_cache_seq_rm(-1, n, -1)
        self.llama.n_tokens = n

    def step(self, token: int) -> None:
        """As in Ours."""
        self.llama.eval([token])


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(pair: list[Callable[[], None]], tokens: int, repeat: int) -> dict[str, float]:
    """Tokens per second of both and how many times as fast ours is, after a run of each."""
    for run in pair:
        run()
    times = [[seconds(run) for run in pair] for _ in range(repeat)]
    ours, theirs = (tokens / statistics.median(side) for side in zip(*times, strict=True))
    ratios = [b / a for a, b in times]
    return {
        "plm_edge": round(ours, 2),
        "llama_cpp": round(theirs, 2),
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }


def decode_runs(sides: list[Ours | LlamaCpp], ids: list[int], n: int) -> list[Callable[[], None]]:
    """For each side: STEPS tokens after n."""

    def run(side: Ours | LlamaCpp) -> None:
        side.truncate(n)
        for token in ids[n : n + STEPS]:
            side.step(token)

    return [lambda side=side: run(side) for side in sides]  # type: ignore[misc]


def main() -> None:
    """Measure prefill and decode at each context; print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", default="64,1024,4080")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    contexts = [int(c) for c in args.contexts.split(",")]
    n_ctx = 4096
    sides: list[Ours | LlamaCpp] = [
        Ours(model(None, "latent"), n_ctx, args.threads),
        LlamaCpp(model(None, "plm") / MODEL_FILE, n_ctx, args.threads),
    ]
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 150_000, max(contexts) + STEPS)]
    rows = {}
    fills = [lambda side=side: side.fill(ids[:256]) for side in sides]
    rows["prefill 256"] = in_turn(fills, 256, max(2, args.repeat // 2))  # type: ignore[arg-type]
    for context in contexts:
        for side in sides:
            side.fill(ids[:context])
        rows[f"decode @{context}"] = in_turn(decode_runs(sides, ids, context), STEPS, args.repeat)
    print("| test | plm-edge, tokens/s | llama.cpp, tokens/s | ratio (least to most) |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        spread = f"{row['ratio']} ({row['least']} to {row['most']})"
        print(f"| {name} | {row['plm_edge']} | {row['llama_cpp']} | {spread} |")
    print(json.dumps({"threads": args.threads, "results": rows}))


if __name__ == "__main__":
    main()
