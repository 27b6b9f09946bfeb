"""What is known about one machine, and the strict reader and writer of the TOML files that say it.

`FIELDS` is the whole format: a file has these sections and keys, each with its unit, and in every
section a source, for the section (`source = "..."`) or key by key (`source = { total = "..." }`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plm_edge.devices import units
from plm_edge.devices.cores import CoreKind, parse_cores
from plm_edge.errors import FileFormatError, OutputError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Kernel sets by the name they are chosen with, the plainest first.
X86_ISAS = ("scalar", "avx2", "avx-vnni", "avx512-vnni")
ARM_ISAS = ("scalar", "neon", "neon-dotprod", "neon-i8mm")
ISAS = tuple(dict.fromkeys(X86_ISAS + ARM_ISAS))
GPU_APIS = ("cuda", "vulkan", "metal")

HALF = "not known: half of the memory, by rule"


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One machine with one memory size. Unknown is None; every number has its source.

    Of a graphics card the memory and bandwidth are the card's own; the CPU beside it is not known.
    """

    name: str
    isa: str | None = None  # one of ISAS
    core_kinds: tuple[CoreKind, ...] = ()
    performance_cores: int | None = None  # the fast ones; as many threads are used
    ram_bytes: int  # as sold
    usable_bytes: int  # what a program finds free under the usual system
    nominal_bytes_per_s: float | None = None  # of the memory: bus width times transfer rate
    read_bytes_per_s: float | None = None  # a plain read by all fast cores, measured
    copy_bytes_per_s: float | None = None  # one thread's memcpy, bytes copied, measured
    # Least and most that an engine was seen to read while it decoded on the CPU.
    decode_bytes_per_s: tuple[float, float] | None = None
    f32_flop_per_s: float | None = None  # by all cores or the GPU, measured
    f16_flop_per_s: float | None = None
    gpu: str | None = None  # name
    gpu_api: str | None = None  # one of GPU_APIS
    gpu_decode_bytes_per_s: tuple[float, float] | None = None  # as above, on the GPU
    onnx_providers: tuple[str, ...] = ()  # of ONNX Runtime, best first
    # What this package's kernels reach on this machine, measured (runtime/probe.py): bytes of
    # weights a second while decoding without a context, by quantization; products a second in
    # attention over cached rows, by cache type.
    step_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    attend_mac_per_s: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # by the name of the attribute

    @property
    def cores(self) -> int | None:
        """All of them; None where the CPU is not known."""
        return sum(kind.count for kind in self.core_kinds) or None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; unknown numbers are absent."""
        known = {key: value for key, value in asdict(self).items() if value not in (None, (), {})}
        return {key: value for key, value in known.items() if key != "sources"} | {
            "source": dict(self.sources)
        }


@dataclass(frozen=True)
class Field:
    """One key of a profile. `kind` is a kind of quantity in units.py, or what `_value` knows."""

    section: str
    key: str
    attribute: str
    kind: str

    @property
    def place(self) -> str:
        """As errors name it."""
        return f"{self.section}.{self.key}"


FIELDS = (
    Field("cpu", "isa", "isa", "isa"),
    Field("cpu", "cores", "core_kinds", "cores"),
    Field("cpu", "performance_cores", "performance_cores", "count"),
    Field("memory", "total", "ram_bytes", "bytes"),
    Field("memory", "usable", "usable_bytes", "bytes"),
    Field("bandwidth", "nominal", "nominal_bytes_per_s", "bytes/s"),
    Field("bandwidth", "read", "read_bytes_per_s", "bytes/s"),
    Field("bandwidth", "copy", "copy_bytes_per_s", "bytes/s"),
    Field("bandwidth", "decode", "decode_bytes_per_s", "bytes/s range"),
    Field("compute", "f32", "f32_flop_per_s", "FLOP/s"),
    Field("compute", "f16", "f16_flop_per_s", "FLOP/s"),
    Field("gpu", "name", "gpu", "text"),
    Field("gpu", "api", "gpu_api", "api"),
    Field("gpu", "decode", "gpu_decode_bytes_per_s", "bytes/s range"),
    Field("onnx", "providers", "onnx_providers", "texts"),
    Field("kernels", "decode", "step_bytes_per_s", "bytes/s table"),
    Field("kernels", "attend", "attend_mac_per_s", "MAC/s table"),
)
SECTIONS = tuple(dict.fromkeys(one.section for one in FIELDS))


def read_profile(path: Path, shipped: Path | None = None) -> DeviceProfile:
    """Read a profile; an unknown key, a missing unit or source, an impossible value: all by name.

    `like = "NAME"` takes the sections that the file does not have from the profile of that name in
    the folder `shipped`.
    """
    table = _table(path)
    if "like" in table:
        table = _completed(path, table, shipped)
    _check_keys(path, table)
    values: dict[str, Any] = {"name": table["name"]}
    sources: dict[str, str] = {}
    for one in FIELDS:
        section = table.get(one.section, {})
        if one.key not in section:
            continue
        try:
            values[one.attribute] = _value(section[one.key], one.kind)
        except ValueError as why:
            raise FileFormatError(f"{path}: {one.place} is {section[one.key]!r}: {why}") from None
        sources[one.attribute] = _source(path, one, section.get("source"))
    if "usable_bytes" not in values:
        values["usable_bytes"] = values["ram_bytes"] // 2
        sources["usable_bytes"] = HALF
    profile = DeviceProfile(**values, sources=sources)
    _check_possible(path, profile)
    return profile


def write_profile(profile: DeviceProfile) -> str:
    """The text of a file that `read_profile` reads to the same profile."""
    lines = [f"name = {_quoted(profile.name)}"]
    for section in SECTIONS:
        known = [
            one
            for one in FIELDS
            if one.section == section
            and getattr(profile, one.attribute) not in (None, (), {})
            and profile.sources.get(one.attribute) != HALF
        ]
        if not known:
            continue
        lines += ["", f"[{section}]"]
        lines += [
            f"{one.key} = {_text(getattr(profile, one.attribute), one.kind)}" for one in known
        ]
        lines += ["", f"[{section}.source]"]
        lines += [f"{one.key} = {_quoted(profile.sources[one.attribute])}" for one in known]
    return "\n".join(lines) + "\n"


def show_value(value: Any, kind: str) -> str:
    """One value for people: what the file says, without its quotes."""
    if kind == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return _text(value, kind).replace('"', "").strip("[]{} ")


def _table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            table: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"found no profile {str(path)!r}; check its name") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: not a TOML file: {error}") from None
    return table


def _completed(path: Path, table: dict[str, Any], shipped: Path | None) -> dict[str, Any]:
    like = table.pop("like")
    known = sorted(file.stem for file in shipped.glob("*.toml")) if shipped else []
    if like not in known:
        raise FileFormatError(f"{path}: like is {like!r}, expected one of {', '.join(known)}")
    assert shipped is not None
    base = _table(shipped / f"{like}.toml")
    if "like" in base:
        raise FileFormatError(
            f"{path}: like is {like!r}, which is itself like {base['like']!r}; name that one"
        )
    return base | table


def _check_keys(path: Path, table: dict[str, Any]) -> None:
    keys: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for one in FIELDS:
        keys[one.section].append(one.key)
    for name, section in table.items():
        if name == "name" and isinstance(section, str):
            continue
        if name == "name":
            raise FileFormatError(f"{path}: name is {section!r}, expected a string")
        if name not in keys:
            known = ", ".join(("name", "like", *(f"[{known}]" for known in SECTIONS)))
            raise FileFormatError(f"{path}: unknown key {name!r}; known are {known}")
        if not isinstance(section, dict):
            raise FileFormatError(f"{path}: {name} is {section!r}, expected a section [{name}]")
        for key in section:
            if key not in (*keys[name], "source"):
                known = ", ".join((*keys[name], "source"))
                raise FileFormatError(f"{path}: unknown key '{name}.{key}'; known are {known}")
    for place, there in (
        ("name", "name" in table),
        ("memory.total", "total" in table.get("memory", {})),
    ):
        if not there:
            raise FileFormatError(f"{path}: {place} is missing; a profile needs it")
    for name in table.keys() - {"name"}:
        _check_sources(path, name, table[name])


def _check_sources(path: Path, name: str, section: dict[str, Any]) -> None:
    source = section.get("source")
    texts = list(source.values()) if isinstance(source, dict) else [source]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise FileFormatError(
            f"{path}: {name}.source is {source!r}, expected where the numbers come from: a text, "
            "or a text for each key"
        )
    extra = sorted(source.keys() - section.keys()) if isinstance(source, dict) else []
    if extra:
        raise FileFormatError(f"{path}: {name}.{extra[0]} has a source but no value")


def _source(path: Path, one: Field, source: Any) -> str:
    text = source.get(one.key) if isinstance(source, dict) else source
    if text is None:
        raise FileFormatError(
            f"{path}: {one.place} has no source; add it to [{one.section}.source]"
        )
    return str(text)


def _value(value: Any, kind: str) -> Any:
    """The checked value; ValueError says what was expected."""
    quantity, _, shape = kind.partition(" ")
    if quantity in units.UNITS:
        if shape == "range":
            if not isinstance(value, list) or len(value) != 2:
                raise ValueError('expected the least and the most, such as ["8 GB/s", "11 GB/s"]')
            return tuple(units.parse(one, quantity) for one in value)
        if shape == "table":
            if not isinstance(value, dict) or not value:
                raise ValueError("expected a table of numbers with their units")
            return {str(key): units.parse(one, quantity) for key, one in value.items()}
        parsed = units.parse(value, quantity)
        return int(parsed) if quantity == "bytes" else parsed
    if kind == "cores":
        return parse_cores(value)
    if kind == "count":
        if type(value) is not int or value < 1:
            raise ValueError("expected a whole number above 0")
        return value
    if kind == "texts":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError("expected a list of texts")
        return tuple(value)
    choices = {"isa": ISAS, "api": GPU_APIS}.get(kind)
    if choices is not None and value not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}")
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


def _check_possible(path: Path, profile: DeviceProfile) -> None:
    """What contradicts itself is a mistake in the file."""
    decode = profile.decode_bytes_per_s or (None, None)
    on_gpu = profile.gpu_decode_bytes_per_s or (None, None)
    nominal = profile.nominal_bytes_per_s
    pairs = (
        ("memory.usable", profile.usable_bytes, "memory.total", profile.ram_bytes, "bytes"),
        ("cpu.performance_cores", profile.performance_cores, "cpu.cores", profile.cores, ""),
        ("bandwidth.decode", decode[0], "bandwidth.decode's second", decode[1], "bytes/s"),
        ("gpu.decode", on_gpu[0], "gpu.decode's second", on_gpu[1], "bytes/s"),
        ("bandwidth.read", profile.read_bytes_per_s, "bandwidth.nominal", nominal, "bytes/s"),
        ("bandwidth.copy", profile.copy_bytes_per_s, "bandwidth.nominal", nominal, "bytes/s"),
        ("bandwidth.decode", decode[1], "bandwidth.nominal", nominal, "bytes/s"),
        ("gpu.decode", on_gpu[1], "bandwidth.nominal", nominal, "bytes/s"),
    )
    for small, low, large, high, kind in pairs:
        if low is not None and high is not None and low > high:
            shown = [units.show(value, kind) if kind else str(value) for value in (low, high)]
            raise FileFormatError(f"{path}: {small} is {shown[0]}, more than {large} ({shown[1]})")
    if profile.performance_cores is not None and profile.cores is None:
        raise FileFormatError(f"{path}: cpu.cores is missing beside cpu.performance_cores")


def _text(value: Any, kind: str) -> str:
    """The value as TOML."""
    quantity, _, shape = kind.partition(" ")
    if shape == "range":
        return "[" + ", ".join(_quoted(units.show(one, quantity)) for one in value) + "]"
    if shape == "table":
        rows = (f"{key} = {_quoted(units.show(one, quantity))}" for key, one in value.items())
        return "{ " + ", ".join(rows) + " }"
    if quantity in units.UNITS:
        return _quoted(units.show(value, quantity))
    if kind == "count":
        return str(value)
    if kind in ("cores", "texts"):
        return "[" + ", ".join(_quoted(str(one)) for one in value) + "]"
    return _quoted(value)


def _quoted(text: str) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
