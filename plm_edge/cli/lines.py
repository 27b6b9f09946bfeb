'''What the user types: line editing, history, texts of several lines.

A line that begins with """ opens a text that ends with """; a line that ends with a backslash goes
on.
'''

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
HISTORY_LINES = 1000


def read_text(read: Callable[[str], str]) -> tuple[str, bool]:
    """The next text, and whether it is one plain line, which alone may be a command."""
    line = read(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip().removeprefix(QUOTES), read), False
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read(MORE))
    return "\n".join(lines), len(lines) == 1


def _quoted(line: str, read: Callable[[str], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read(MORE))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def read_line(prompt: str) -> str:
    """A line from the terminal; the prompt stays out of a stdout that goes elsewhere."""
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


class History:
    """Line editing with the lines of earlier runs, where a terminal and readline are there."""

    def __init__(self) -> None:
        self._readline: ModuleType | None = None

    def __enter__(self) -> None:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return
        with contextlib.suppress(ImportError):
            import readline

            self._readline = readline
            readline.set_history_length(HISTORY_LINES)
            with contextlib.suppress(OSError):
                readline.read_history_file(history_file())

    def __exit__(self, *_: object) -> None:
        if self._readline is None:
            return
        path = history_file()
        with contextlib.suppress(OSError):  # a home that cannot be written to is no reason to fail
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            self._readline.write_history_file(path)


def history_file() -> Path:
    """Where the lines are kept, readable by this user alone."""
    base = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return folder / "plm-edge" / "history"
