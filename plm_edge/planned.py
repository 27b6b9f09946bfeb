"""What was planned, as values: the plan of a model on a device, and the memory it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plm_edge.errors import FileFormatError


@dataclass(frozen=True)
class Budget:
    """Bytes a running session takes. Weights, cache and scratch are exact, runtime is measured."""

    weights: int  # the data section of the file, mapped
    cache: int  # rows of all layers for the whole context
    scratch: int  # the session's buffers, plm_edge/workspace.py
    runtime: int  # interpreter, imports, tokenizer

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.scratch + self.runtime

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {mib(value)}" for name, value in asdict(self).items())
        return f"{mib(self.total)} ({parts})"


@dataclass(frozen=True)
class Plan:
    """One model on one device. Layout, quant and formats are the file's, the rest the session's."""

    target: str  # name of the device profile
    layout: str
    quant: str
    formats: Mapping[str, str]  # canonical tensor name -> format
    n_ctx: int  # tokens
    cache_type: str
    threads: int
    isa: str
    backend: str
    prefill_chunk: int  # tokens
    budget: Budget

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {**asdict(self), "formats": dict(self.formats)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Plan:
        """Raises FileFormatError naming the key that is missing, unknown or wrong."""
        kinds: dict[str, type] = {
            **dict.fromkeys(("target", "layout", "quant", "cache_type", "isa", "backend"), str),
            **dict.fromkeys(("n_ctx", "threads", "prefill_chunk"), int),
            **dict.fromkeys(("formats", "budget"), dict),
        }
        _check_kinds("plan", d, kinds)
        budget = d["budget"]
        _check_kinds("plan.budget", budget, dict.fromkeys(Budget.__annotations__, int))
        _check_kinds("plan.formats", d["formats"], dict.fromkeys(d["formats"], str))
        return cls(**{**d, "budget": Budget(**budget)})


def _check_kinds(where: str, d: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for key in sorted(set(d) ^ set(kinds)):
        state = "missing from" if key in kinds else "unknown in"
        raise FileFormatError(f"{key!r} is {state} {where} of the manifest; export the model again")
    for key, kind in kinds.items():
        if type(d[key]) is not kind:
            raise FileFormatError(
                f"{where}.{key} of the manifest is {d[key]!r}, expected {kind.__name__}"
            )


def mib(nbytes: int) -> str:
    """As people read it."""
    return f"{nbytes / 2**20:,.0f} MiB"
