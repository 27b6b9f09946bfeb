"""Progress of long work on stderr: a bar on a terminal, one line at the end elsewhere."""

from __future__ import annotations

import sys
import time

WIDTH = 30  # characters of the bar
INTERVAL_S = 0.1


CLEAR = "\r\x1b[K"


class Progress:
    """Call it with bytes done and bytes of all; the end of its block ends the line."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._tty = sys.stderr.isatty()
        self._started = time.monotonic()
        self._last = 0.0
        self._total = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._total = total
        if not self._tty or (now - self._last < INTERVAL_S and done < total):
            return
        self._last = now
        share = done / total if total else 1.0
        bar = "#" * round(share * WIDTH)
        sizes = f"{done / 2**20:,.0f} of {total / 2**20:,.0f} MiB"
        line = f"\r{self._label} [{bar:<{WIDTH}}] {share:4.0%} {sizes}"
        print(line, end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """One last line, after an error none; nothing if nothing was done."""
        if not self._total:
            return
        seconds = time.monotonic() - self._started
        last = f"{self._label}: {self._total / 2**20:,.1f} MiB in {seconds:.1f} s\n"
        print(
            (CLEAR if self._tty else "") + (last if error is None else ""),
            end="",
            file=sys.stderr,
            flush=True,
        )


class Steps:
    """Call it with what is done now: one line that changes on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()

    def __call__(self, step: str) -> None:
        start, end = (CLEAR, "") if self._tty else ("", "\n")
        print(f"{start}{step}", end=end, file=sys.stderr, flush=True)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tty:
            print(CLEAR, end="", file=sys.stderr, flush=True)
