"""Quantities as people write them: "4 GiB", "17.1 GB/s". A number without unit is refused."""

from __future__ import annotations

import math
import re

_SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {f"{prefix}B": factor for prefix, factor in _SI.items()} | {
    f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", start=1)
}

# Kind of quantity -> its units -> how much one of it is in the plainest one.
UNITS = {
    "bytes": _BYTES,
    "bytes/s": {f"{unit}/s": factor for unit, factor in _BYTES.items()},
    "FLOP/s": {f"{prefix}FLOP/s": factor for prefix, factor in _SI.items() if prefix},
    "MAC/s": {f"{prefix}MAC/s": factor for prefix, factor in _SI.items() if prefix},
}
_FORM = re.compile(r"(\d[\d,_]*(?:\.\d+)?) ?([A-Za-z/]+)")


def parse(text: object, kind: str) -> float:
    """The number in the plainest unit of its kind; ValueError says what was expected."""
    units = UNITS[kind]
    example = {"bytes": '"4 GiB"', "bytes/s": '"17.1 GB/s"'}.get(kind, f'"80 G{kind}"')
    expected = f"expected a number above 0 and its unit in quotes, such as {example}"
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(expected)
    number, unit = float(re.sub("[,_]", "", match[1])), match[2]
    if unit not in units:
        raise ValueError(f"unit {unit!r}, expected one of {', '.join(units)}")
    value = number * units[unit]
    if not (math.isfinite(value) and value > 0):
        raise ValueError(expected)
    return value


def show(value: float, kind: str) -> str:
    """The inverse: exact for whole bytes, else four digits."""
    if kind == "bytes":
        whole = [unit for unit in ("GiB", "MiB", "KiB") if not int(value) % UNITS[kind][unit]]
        unit = whole[0] if whole else "B"
        return f"{int(value / UNITS[kind][unit])} {unit}"
    prefix = max((p for p in "kMGT" if _SI[p] <= value), key=_SI.__getitem__, default="k")
    return f"{value / _SI[prefix]:.4g} {prefix}{'B/s' if kind == 'bytes/s' else kind}"
