"""What was measured as a table, as JSON, as CSV."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from plm_edge.native.kernels import kernels_of
from plm_edge.runtime.bench.case import Result, Setting

FORMATS = ("md", "json", "csv")


def report(form: str, facts: Mapping[str, Any], results: Sequence[Result]) -> str:
    """`facts` say what model and machine this was; they stand in md and json."""
    return {"md": _markdown, "json": _json, "csv": _csv}[form](facts, results)


def _json(facts: Mapping[str, Any], results: Sequence[Result]) -> str:
    rows = [{**r.row(), "seconds": [round(s, 6) for s in r.seconds]} for r in results]
    return json.dumps({**facts, "results": rows}, indent=1)


def _csv(_facts: Mapping[str, Any], results: Sequence[Result]) -> str:
    text = io.StringIO()
    rows = [result.row() for result in results]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _markdown(facts: Mapping[str, Any], results: Sequence[Result]) -> str:
    compared = any(result.ratios for result in results)
    heads = [*_HEADS, "plm-edge / this (least to most)"] if compared else list(_HEADS)
    rows = [heads, *(_cells(result)[: len(heads)] for result in results)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join([*lines, "", _sentence(facts, results)])


_HEADS = (
    "engine",
    "test",
    "threads, cache",
    "tokens/s (least to most)",
    "ms/token",
    "MB read/token",
    "GB/s",
    "GB/s, plain read",
    "peak MiB",
    "cache MiB",
)


def _cells(result: Result) -> list[str]:
    rates, setting = result.rates, result.setting
    cells = [
        setting.engine,
        result.case.name,
        _how(setting),
        f"{result.rate:.2f} ({min(rates):.2f} to {max(rates):.2f})",
        f"{1e3 / result.rate:.2f}",
        _number(result.bytes_per_token, 1e6, 1),
        _number(result.bytes_per_s, 1e9, 1),
        _number(result.read_bytes_per_s, 1e9, 1),
        _number(result.peak_bytes, 2**20, 0),
        _number(result.cache_bytes, 2**20, 1),
    ]
    ratios = result.ratios
    if not ratios:
        return [*cells, ""]
    spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
    return [*cells, f"{statistics.median(ratios):.2f} {spread}"]


def _how(setting: Setting) -> str:
    """Such as "2, q8_0, deepseek2 -fa on"; our own layout stands below the table."""
    how = f"{setting.threads}, {setting.cache_type}"
    if setting.flash is None:
        return how
    return f"{how}, {setting.layout} -fa {'on' if setting.flash else 'off'}"


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _sentence(facts: Mapping[str, Any], results: Sequence[Result]) -> str:
    model, machine = facts["model"], facts["machine"]
    isa, formats = results[0].setting.isa, model["formats"].replace(", head ", " ").split()
    kernels = kernels_of(isa, formats) if isa else "unknown"
    parts = [
        f"{model['name']}: {model['formats']}, layout {model['layout']}, "
        f"{model['weight_bytes'] / 2**20:,.0f} MiB",
        f"{machine['cpu']}, {machine['cores']} cores, kernels {kernels}",
        f"plm-edge {facts['plm_edge']}",
        *([f"llama-cpp-python {facts['llama_cpp']}"] if facts["llama_cpp"] else []),
        f"medians of {len(results[0].seconds)} runs",
    ]
    return "; ".join(parts)
