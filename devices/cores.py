"""Cores of a CPU by kind, as a profile writes them: "4 x Cortex-A76 at 2.4 GHz"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_FORM = re.compile(r"(\d+) x (\S.*?)(?: at (\d+(?:\.\d+)?) GHz)?")
_MOST = 4096  # cores of one kind; more is a slip of the keyboard


@dataclass(frozen=True)
class CoreKind:
    """Equal cores; the clock is the highest one, None where it is not known."""

    count: int
    name: str
    hz: float | None = None

    def __str__(self) -> str:
        clock = "" if self.hz is None else f" at {self.hz / 1e9:.4g} GHz"
        return f"{self.count} x {self.name}{clock}"


def parse_cores(value: Any) -> tuple[CoreKind, ...]:
    """The kinds of a list of texts; ValueError says what was expected."""
    expected = 'expected a list such as ["4 x Cortex-A76 at 2.4 GHz", "4 x Cortex-A55"]'
    if not isinstance(value, list) or not value:
        raise ValueError(expected)
    kinds = []
    for text in value:
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None or not 1 <= int(match[1]) <= _MOST:
            raise ValueError(expected)
        if match[3] is None and re.search(r" at \d", match[2]):
            raise ValueError(f"{text!r} has no unit of its clock: GHz")
        kinds.append(CoreKind(int(match[1]), match[2], float(match[3]) * 1e9 if match[3] else None))
    return tuple(kinds)
