"""The process of one engine: a line of JSON on stdin is a request, a line on stdout its answer.

Processes of their own keep apart what is measured: each has its own peak memory, no thread of one
spins while the other runs, and an engine that aborts takes nobody with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from plm_edge.errors import DoesNotFit, PlmEdgeError

SETTLE_S = 0.05  # before a run: threads of the engine that ran last spin for milliseconds


class Engine(Protocol):
    """What is measured."""

    facts: dict[str, Any]

    def keep(self, n: int) -> None: ...
    def extend(self, ids: list[int]) -> None: ...
    def step(self, token: int) -> None: ...
    def bytes_read(self) -> int | None: ...
    def kernel_s(self) -> float | None: ...
    def set_threads(self, threads: int) -> None: ...


class Worker:
    """Answers requests: each public method is one."""

    _engine: Engine
    _ids: list[int]  # the text that is fed

    def open_native(self, ids: list[int], **settings: Any) -> dict[str, Any]:
        """Load our session; what it turned out to be."""
        from plm_edge.runtime.bench.native import Native

        self._engine, self._ids = Native(**settings), ids
        return self._engine.facts

    def open_llama(self, ids: list[int], **settings: Any) -> dict[str, Any]:
        """Load llama.cpp."""
        from plm_edge.runtime.bench.rival import LlamaCpp

        self._engine, self._ids = LlamaCpp(**settings), ids
        return self._engine.facts

    def open_reader(self, nbytes: int) -> dict[str, Any]:
        """Take a buffer to read."""
        from plm_edge.native.bandwidth import Reader

        self._reader = Reader(nbytes)
        return {}

    def read(self, threads: int) -> dict[str, Any]:
        """Bytes per second of a plain read."""
        return {"bytes_per_s": self._reader.bytes_per_s(threads)}

    def fill(self, n: int) -> dict[str, Any]:
        """The first n ids, and nothing else, in the cache."""
        self._engine.keep(0)
        if n:
            self._engine.extend(self._ids[:n])
        return {}

    def threads(self, n: int) -> dict[str, Any]:
        """Run on n threads from now on."""
        self._engine.set_threads(n)
        return {}

    def pp(self, tokens: int, depth: int) -> dict[str, Any]:
        """One run: read a prompt behind `depth` tokens."""
        return self._timed(self._engine.extend, tokens, depth)

    def tg(self, tokens: int, depth: int) -> dict[str, Any]:
        """One run: decode token by token behind `depth` tokens."""

        def run(ids: list[int]) -> None:
            for i in ids:
                self._engine.step(i)

        return self._timed(run, tokens, depth)

    def count(self, tokens: int, depth: int) -> dict[str, Any]:
        """The same without a clock: bytes read per token."""
        self._engine.keep(depth)
        total = 0
        for i in self._ids[depth : depth + tokens]:
            self._engine.step(i)
            read = self._engine.bytes_read()
            if read is None:
                return {"bytes_per_token": None}
            total += read
        return {"bytes_per_token": total / tokens}

    def peak(self) -> dict[str, Any]:
        """Most bytes of memory this process ever had; None where the system does not say."""
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return {"bytes": None}
        line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        return {"bytes": None if line is None else int(line.split()[1]) * 1024}

    def _timed(self, run: Callable[[list[int]], None], tokens: int, depth: int) -> dict[str, Any]:
        self._engine.keep(depth)
        ids = self._ids[depth : depth + tokens]
        time.sleep(SETTLE_S)
        before = self._engine.kernel_s()
        started = time.perf_counter()
        run(ids)
        seconds = time.perf_counter() - started
        after = self._engine.kernel_s()
        inside = None if before is None or after is None else after - before
        return {"seconds": seconds, "kernel_s": inside}


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the program that asks
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no answer
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except PlmEdgeError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except MemoryError:
            message = "the memory of this machine is used up"
            answer = {"error": DoesNotFit.__name__, "message": message}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
