"""What is known about one machine, and the strict reader of the TOML files that say it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm_edge.errors import FileFormatError, OutputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Kernel sets by the name they are chosen with, the plainest first.
ISAS = ("scalar", "avx2", "avx-vnni", "avx512-vnni", "neon", "neon-dotprod", "neon-i8mm")


@dataclass(frozen=True)
class DeviceProfile:
    """One machine with one memory size. Unknown is None; every number has its source."""

    name: str
    isa: str  # one of ISAS
    ram_bytes: int  # as sold
    usable_bytes: int  # what a program finds free under the usual system
    cores: int
    performance_cores: int  # the fast ones; as many threads are used
    read_bytes_per_s: int | None  # sustained reading by all cores; None: not known
    sources: Mapping[str, str]  # by the name of the number

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; unknown numbers are absent."""
        numbers = {key: getattr(self, key) for key in ("isa", *_NUMBERS)}
        known = {key: value for key, value in numbers.items() if value is not None}
        return {"name": self.name, **known, "source": dict(self.sources)}


_REQUIRED = ("ram_bytes", "usable_bytes", "cores", "performance_cores")
_NUMBERS = (*_REQUIRED, "read_bytes_per_s")


def read_profile(path: Path) -> DeviceProfile:
    """Read a profile; an unknown key, a wrong type, a number without source are refused by name."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: not a TOML file: {error}") from None
    sources = table.pop("source", None)
    _check_keys(path, table)
    if not isinstance(sources, dict) or not all(isinstance(s, str) for s in sources.values()):
        raise FileFormatError(f"{path}: expected a table [source] of strings; add one")
    facts = table.keys() - {"name"}
    if facts != sources.keys():
        one = sorted(facts ^ sources.keys())[0]
        what = "has no source" if one in facts else "has a source but no value"
        raise FileFormatError(f"{path}: {one} {what}; [source] needs one line for every value")
    _check_values(path, table)
    return DeviceProfile(
        name=table["name"],
        isa=table["isa"],
        ram_bytes=table["ram_bytes"],
        usable_bytes=table["usable_bytes"],
        cores=table["cores"],
        performance_cores=table["performance_cores"],
        read_bytes_per_s=table.get("read_bytes_per_s"),
        sources=sources,
    )


def _check_keys(path: Path, table: dict[str, Any]) -> None:
    required = ("name", "isa", *_REQUIRED)
    for key in table:
        if key not in ("name", "isa", *_NUMBERS):
            known = ", ".join(("name", "isa", *_NUMBERS, "[source]"))
            raise FileFormatError(f"{path}: unknown key {key!r}; known are {known}")
    for key in required:
        if key not in table:
            raise FileFormatError(
                f"{path}: {key} is missing; a profile needs {', '.join(required)}"
            )


def _check_values(path: Path, table: dict[str, Any]) -> None:
    for key in ("name", "isa"):
        if not isinstance(table[key], str):
            raise FileFormatError(f"{path}: {key} is {table[key]!r}, expected a string")
    if table["isa"] not in ISAS:
        raise FileFormatError(f"{path}: isa is {table['isa']!r}, expected one of {', '.join(ISAS)}")
    for key in _NUMBERS:
        value = table.get(key, 1)
        if type(value) is not int or value < 1:
            raise FileFormatError(f"{path}: {key} is {value!r}, expected a whole number above 0")
    for small, large in (("usable_bytes", "ram_bytes"), ("performance_cores", "cores")):
        if table[small] > table[large]:
            raise FileFormatError(
                f"{path}: {small} is {table[small]:,}, more than {large} ({table[large]:,})"
            )
