"""What is measured, and what came out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Literal

OURS, THEIRS = "plm-edge", "llama.cpp"


@dataclass(frozen=True)
class Case:
    """Reading a prompt (pp) or decoding (tg) so many tokens, with `depth` others in the cache.

    The names are those of llama-bench: pp512, tg128 @ d1024.
    """

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        """As in tables."""
        return f"{self.kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Setting:
    """How one engine runs: what of it is written beside its figures."""

    engine: str
    layout: str  # of the file
    cache_type: str  # of the cached rows; llama.cpp's keys
    threads: int
    isa: str | None = None  # kernel set; None: the engine does not say
    head: str = "full"
    activations: str = "int16"
    flash: bool | None = None  # flash attention, of llama.cpp

    @property
    def name(self) -> str:
        """As in messages."""
        flash = "" if self.flash is None else f" -fa {'on' if self.flash else 'off'}"
        return f"{self.engine} {self.layout} -t {self.threads} -ctk {self.cache_type}{flash}"


@dataclass(frozen=True)
class Result:
    """One engine in one case. None: this machine or engine does not tell."""

    case: Case
    setting: Setting
    seconds: tuple[float, ...]  # of each run
    read_bytes_per_s: float | None  # of memory, by as many threads, in the same rounds: median
    bytes_per_token: float | None  # weights and cached rows read, mean of the decoded tokens
    peak_bytes: int | None  # VmHWM of the engine's process
    cache_bytes: int  # of the whole context of this case
    outside_share: float | None  # of the time: Python around the kernels
    ratios: tuple[float, ...] = ()  # how many times as fast ours was, round by round

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second of each run."""
        return tuple(self.case.tokens / seconds for seconds in self.seconds)

    @property
    def rate(self) -> float:
        """Their median."""
        return statistics.median(self.rates)

    @property
    def bytes_per_s(self) -> float | None:
        """What was read over the time it took."""
        return None if self.bytes_per_token is None else self.bytes_per_token * self.rate

    def row(self) -> dict[str, Any]:
        """Flat values, the same keys for every result."""
        ratios = self.ratios
        return {
            "engine": self.setting.engine,
            "test": self.case.name,
            "depth": self.case.depth,
            "threads": self.setting.threads,
            "cache_type": self.setting.cache_type,
            "layout": self.setting.layout,
            "isa": self.setting.isa,
            "head": self.setting.head,
            "activations": self.setting.activations,
            "flash_attention": self.setting.flash,
            "tokens_per_s": round(self.rate, 3),
            "least": round(min(self.rates), 3),
            "most": round(max(self.rates), 3),
            "ms_per_token": round(1e3 / self.rate, 4),
            "bytes_per_token": _rounded(self.bytes_per_token, 0),
            "gb_per_s": _rounded(self.bytes_per_s, 3, 1e9),
            "read_gb_per_s": _rounded(self.read_bytes_per_s, 3, 1e9),
            "peak_bytes": self.peak_bytes,
            "cache_bytes": self.cache_bytes,
            "outside_share": _rounded(self.outside_share, 4),
            "ratio": round(statistics.median(ratios), 3) if ratios else None,
            "ratio_least": round(min(ratios), 3) if ratios else None,
            "ratio_most": round(max(ratios), 3) if ratios else None,
        }


def _rounded(value: float | None, digits: int, unit: float = 1) -> float | int | None:
    if value is None:
        return None
    return round(value / unit, digits) if digits else round(value / unit)
