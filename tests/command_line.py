"""The command line in tests: what a run of it gives, and what a user's mistake looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("plm-edge"))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]  # the fixtures `run` and `inside`


def one_line(ran: Ran, code: int, part: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert part in ran.err
    assert ran.err.startswith("plm-edge: ")
    assert ran.err.count("\n") == 1
