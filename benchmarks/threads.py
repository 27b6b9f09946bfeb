"""Decode with 1 to N threads, alone and beside a busy process, and what an empty op costs.

    python benchmarks/threads.py [--model BUNDLE] [--threads 1,2,3,4] [--context 64] [--repeat 7]

The numbers of threads take turns, each run of 8 tokens alone and then beside one process that
never sleeps, so that all see the same machine; figures are medians of the runs. Without --model
one of PLM-1.8B's shape is made once, in the cache folder. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int, pointer

import numpy as np
from speed import model

import plm_edge
from plm_edge.native import kernels
from plm_edge.runtime import Session

STEPS = 8  # tokens decoded in a run
OPS = 2000  # empty ops in a list


@contextmanager
def busy_process() -> Iterator[None]:
    """Another program that wants a whole core."""
    code = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield
        finally:
            other.kill()


def tokens_per_s(session: Session, ids: list[int], context: int) -> float:
    """Decode STEPS tokens after `context`."""
    session.truncate(context)
    start = time.perf_counter()
    for token in ids[context : context + STEPS]:
        session.step(token)
    return STEPS / (time.perf_counter() - start)


def decode(sessions: dict[int, Session], context: int, repeat: int) -> list[dict[str, object]]:
    """A row for each number of threads: tokens per second alone and beside a busy process."""
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 150_000, context + STEPS)]
    for session in sessions.values():
        session.prefill(ids[:context])
        tokens_per_s(session, ids, context)
    alone: dict[int, list[float]] = {threads: [] for threads in sessions}
    beside: dict[int, list[float]] = {threads: [] for threads in sessions}
    for _ in range(repeat):
        for threads, session in sessions.items():
            alone[threads].append(tokens_per_s(session, ids, context))
        with busy_process():
            for threads, session in sessions.items():
                beside[threads].append(tokens_per_s(session, ids, context))
    return [
        {
            "threads": threads,
            "alone": round(statistics.median(alone[threads]), 2),
            "beside_busy": round(statistics.median(beside[threads]), 2),
        }
        for threads in sessions
    ]


def ns_per_op(threads: list[int], items: int, repeat: int) -> dict[int, float]:
    """Threads -> nanoseconds of an op of `items` items that do nothing: tokens of no heads."""
    step, cancel = kernels.Step(n_tokens=items), c_int(0)
    args = kernels.Rotate(step=pointer(step), heads=0)
    ops = kernels.op_array([kernels.op("rotate", args)] * OPS)
    pools = {n: kernels.Pool(n) for n in threads}
    times: dict[int, list[float]] = {n: [] for n in threads}
    for _ in range(repeat):
        for n, pool in pools.items():
            pool.run(ops, 0, OPS // 10, cancel)  # wakes the threads
            start = time.perf_counter()
            pool.run(ops, 0, OPS, cancel)
            times[n].append((time.perf_counter() - start) / OPS * 1e9)
    for pool in pools.values():
        pool.close()
    return {n: round(statistics.median(each), 1) for n, each in times.items()}


def main() -> None:
    """Measure, print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--threads", default="1,2,3,4")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    threads = [int(n) for n in args.threads.split(",")]
    one, two = (ns_per_op(threads, items, 5 * args.repeat) for items in (1, 2))
    first = plm_edge.load(args.model or model(), threads=threads[0], n_ctx=args.context + STEPS)
    more = {n: first.model.session(n_ctx=first.n_ctx, threads=n) for n in threads[1:]}
    rows = decode({threads[0]: first, **more}, args.context, args.repeat)
    print(f"{os.cpu_count()} cores; decode @{args.context}, tokens/s; empty ops, ns")
    print("| threads | alone | beside a busy process | op of 1 item | op of 2 items |")
    print("|---|---|---|---|---|")
    for row, n in zip(rows, threads, strict=True):
        row.update(ns_per_op_of_1=one[n], ns_per_op_of_2=two[n])
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps({"cores": os.cpu_count(), "context": args.context, "results": rows}))


if __name__ == "__main__":
    main()
