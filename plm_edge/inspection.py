"""What a GGUF file holds, as plain values: its numbers, its cache, what each device would need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from plm_edge import devices
from plm_edge.cache_layout import CACHE_TYPES
from plm_edge.errors import DoesNotFit, PlmEdgeError, UnsupportedError, short
from plm_edge.ggml_types import ggml_type
from plm_edge.gguf_file import GgufFile, GgufTensor
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.gguf_tensors import formats_of, tensors_of
from plm_edge.plan import Plan, cache_layout, plan_of_file, replan_for_load
from plm_edge.spec import ModelSpec


@dataclass(frozen=True)
class Inspection:
    """One file. What only a model that runs here has is None or empty for others."""

    path: str
    nbytes: int
    architecture: str
    name: str | None
    licence: str | None
    keys: dict[str, str]  # as people read them
    tensors: tuple[GgufTensor, ...]
    layout: str | None
    spec: ModelSpec | None
    refusal: str | None  # why it does not run here
    targets: tuple[tuple[str, Plan | str], ...]  # name, and the plan or why it does not fit

    def by_format(self) -> dict[str, tuple[int, int, int]]:
        """Format -> (tensors, values, bytes), the most bytes first."""
        return _summed((_format(tensor), tensor) for tensor in self.tensors)

    def by_kind(self) -> dict[str, tuple[int, int, int]]:
        """("ffn_up Q4_0") -> (tensors, values, bytes), in the order of the file."""
        found = _summed((f"{_kind(t.name)} {_format(t)}", t) for t in self.tensors)
        return dict(sorted(found.items(), key=lambda item: list(self._kinds()).index(item[0])))

    def _kinds(self) -> dict[str, None]:
        return dict.fromkeys(f"{_kind(t.name)} {_format(t)}" for t in self.tensors)

    def cache(self) -> dict[str, int]:
        """Cache type -> bytes of one token in all layers; "expanded": f16 keys and values."""
        if self.spec is None:
            return {}
        spec = self.spec
        found: dict[str, int] = {}
        for name in CACHE_TYPES:
            with suppress(UnsupportedError):  # q8_0 of a latent that is no whole blocks
                found[name] = cache_layout(spec, name).bytes(1, spec.layers)
        values = spec.heads * (spec.nope + spec.rope + spec.v_head)
        return found | {"expanded": 2 * values * spec.layers}

    def deepseek2_cost(self) -> tuple[int, int] | None:
        """Bytes more than in layout plm, and above how many tokens llama.cpp's caches outweigh it.

        None in other layouts.
        """
        if self.layout != "deepseek2" or self.spec is None:
            return None
        by_kind = Counter[str]()
        for tensor in self.tensors:
            by_kind[_kind(tensor.name)] += tensor.nbytes
        as_blocks = by_kind["attn_v_b.weight"] * self.spec.nope // self.spec.v_head
        more = by_kind["ffn_gate.weight"] + by_kind["attn_k_b.weight"] - as_blocks
        cache = self.cache()
        less = cache["expanded"] - cache["f16"]
        return more, more // less if less > 0 else self.spec.n_ctx_train

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": self.path,
            "bytes": self.nbytes,
            "architecture": self.architecture,
            "name": self.name,
            "licence": self.licence,
            "layout": self.layout,
            "spec": self.spec.to_dict() if self.spec else None,
            "refusal": self.refusal,
            "formats": {
                name: {"tensors": n, "values": values, "bytes": nbytes}
                for name, (n, values, nbytes) in self.by_format().items()
            },
            "cache_bytes_per_token": self.cache(),
            "targets": {
                name: plan.to_dict()["budget"] | {"n_ctx": plan.n_ctx}
                if isinstance(plan, Plan)
                else {"refusal": plan}
                for name, plan in self.targets
            },
            "keys": self.keys,
            "tensors": [
                {"name": t.name, "format": _format(t), "shape": list(t.shape), "bytes": t.nbytes}
                for t in self.tensors
            ],
        }


def inspect(path: Path) -> Inspection:
    """Read the header of a GGUF file of any model; FileFormatError where it is none."""
    file = GgufFile.open(path)
    try:
        tensors = tuple(file.tensors.values())
        layout = spec = refusal = None
        targets: list[tuple[str, Plan | str]] = []
        try:
            spec = spec_from_gguf(file)
            found, stored = tensors_of(file, spec)
            layout = found.name
            formats = formats_of(stored)
            weights = sum(tensor.nbytes for tensor in stored.values())
            targets = [
                (name, _on(spec, name, layout, formats, weights)) for name in devices.names()
            ]
        except PlmEdgeError as why:
            refusal = str(why)
        metadata = file.metadata
        return Inspection(
            path=str(path),
            nbytes=path.stat().st_size,
            architecture=_text(metadata.get("general.architecture")) or "none",
            name=_text(metadata.get("general.name")),
            licence=_text(metadata.get("general.license")),
            keys={key: _shown(value) for key, value in metadata.items()},
            tensors=tensors,
            layout=layout,
            spec=spec,
            refusal=refusal,
            targets=tuple(targets),
        )
    finally:
        file.close()


def _on(
    spec: ModelSpec, target: str, layout: str, formats: dict[str, str], weights: int
) -> Plan | str:
    """The plan of the file on a device, its context shortened to what fits there."""
    profile = devices.load(target)
    try:
        plan, _ = replan_for_load(
            spec, plan_of_file(spec, profile, layout, formats, weights), profile
        )
    except DoesNotFit as why:
        return str(why)
    return plan


def _summed(named: Iterable[tuple[str, GgufTensor]]) -> dict[str, tuple[int, int, int]]:
    sums: dict[str, tuple[int, int, int]] = {}
    for name, tensor in named:
        n, values, nbytes = sums.get(name, (0, 0, 0))
        sums[name] = (n + 1, values + prod(tensor.shape), nbytes + tensor.nbytes)
    return dict(sorted(sums.items(), key=lambda item: -item[1][2]))


def _kind(name: str) -> str:
    """Without its layer: "blk.3.ffn_up.weight" is one of "ffn_up.weight"."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blk" and len(parts) > 2 else name


def _format(tensor: GgufTensor) -> str:
    return ggml_type(tensor.ggml_type, tensor.name)[0]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _shown(value: Any) -> str:
    """A number or text; of an array its length, so that a vocabulary stays a line."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        return f"{len(value):,} values"
    return value if isinstance(value, str) and len(value) <= 80 else short(value)
