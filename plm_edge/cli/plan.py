"""plm-edge plan: what a model would become on a device, whether it fits, how fast it would be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plm_edge.cli.options import Json, Layout, MaybeCacheType, MaybeQuant, ModelOrShape, Pure
from plm_edge.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from plm_edge.devices import DeviceProfile
    from plm_edge.planned import Plan
    from plm_edge.spec import ModelSpec


def command(
    ctx: typer.Context,
    model: ModelOrShape,
    target: Annotated[
        str | None, typer.Option("--target", help="A device; a table of all of them if none.")
    ] = None,
    n_ctx: Annotated[int | None, typer.Option("-c", "--ctx", help="Tokens of context.")] = None,
    quant: MaybeQuant = None,
    pure: Pure = False,
    layout: Layout = None,
    cache_type: MaybeCacheType = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads")] = None,
    isa: Annotated[str | None, typer.Option(help="Kernel set.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every number's reason.")] = False,
    as_json: Json = False,
) -> None:
    """Plan a model on a device from its config alone; nothing is written."""
    from plm_edge import devices
    from plm_edge.cli.measure import measured
    from plm_edge.cli.prepare import to_plan
    from plm_edge.explain import level, report
    from plm_edge.plan import make_plan

    if isa is not None and target is None:
        raise UsageError(
            f"--isa {isa}: expected one device to plan for, found the table of all; name one with "
            "--target"
        )
    spec, formats = to_plan(model, ctx.obj)
    chosen = {
        "quant": quant,
        "formats": formats,
        "layout": layout,
        "context": n_ctx,
        "cache": cache_type,
        "threads": threads,
        "kernels": isa,
    }
    asked = {name for name, value in chosen.items() if value is not None}

    def plan_on(profile: DeviceProfile) -> Plan:
        wishes = quant, layout, n_ctx, cache_type, threads, isa, pure
        return make_plan(spec, profile, *wishes, formats=None if quant else formats)

    if target is None:
        rows = [
            _row(name, model, spec, plan_on) for name in devices.names() if name != devices.HOST
        ]
        print(json.dumps(rows, indent=2) if as_json else "\n".join(_table(rows)))
        return
    profile = devices.load(target)
    plan = plan_on(profile)
    if target == devices.HOST:
        profile = measured(profile, spec, [plan])
    choices = report(plan, spec, profile, asked)
    if as_json:
        facts = {"fits": level(plan, profile), **_speed(plan, spec, profile)}
        reasons = {"reasons": {c.name: [c.value, *c.why] for c in choices}} if explain else {}
        print(json.dumps({**plan.to_dict(), **facts, **reasons}, indent=2))
        return
    for choice in choices:
        print("\n".join(choice.lines(explain)))
    print(f"{'file':10}{_file(model, target)}, {plan.budget.weights:,} bytes of weights")


def _file(model: str, target: str) -> str:
    """Where an export would put the model."""
    from plm_edge.bundle import MODEL_FILE
    from plm_edge.exporters import default_folder

    return str(default_folder({"name": model.rstrip("/")}, target) / MODEL_FILE)


def _row(name: str, model: str, spec: ModelSpec, plan_on: Any) -> dict[str, Any]:
    """One device of the table in plain values; what does not fit has its message."""
    from plm_edge import devices
    from plm_edge.explain import expanded_bytes, level

    profile = devices.load(name)
    row: dict[str, Any] = {
        "device": name,
        "ram_bytes": profile.ram_bytes,
        "usable_bytes": profile.usable_bytes,
    }
    try:
        plan = plan_on(profile)
    except DoesNotFit as why:
        return row | {"fits": "too tight", "why": str(why)}
    return row | {
        "fits": level(plan, profile),
        "total_bytes": plan.budget.total,
        "quant": plan.quant,
        "n_ctx": plan.n_ctx,
        "cache_type": plan.cache_type,
        "cache_bytes": plan.budget.cache,
        **_speed(plan, spec, profile),
        "expanded_bytes": expanded_bytes(plan, spec),
        "file": _file(model, name),
    }


def _speed(plan: Plan, spec: ModelSpec, profile: DeviceProfile) -> dict[str, Any]:
    """The estimate in plain values, or why there is none."""
    from plm_edge.speed import estimate, why_unknown

    speed = estimate(plan, spec, profile)
    if speed is None:
        return {"speed": None, "speed_unknown": why_unknown(plan, spec)}
    return {"speed": asdict(speed)}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as people read it."""
    from plm_edge.planned import mib
    from plm_edge.speed import Range

    usable, speed = row["usable_bytes"], row.get("speed")
    cells = {
        "device": row["device"],
        "memory": f"{usable >> 20:,} of {mib(row['ram_bytes'])}",
        "fits": row["fits"],
    }
    if "why" in row:
        return cells
    expanded = row["expanded_bytes"]
    return cells | {
        "takes": mib(row["total_bytes"]),
        "quant": row["quant"],
        "context": f"{row['n_ctx']:,}",
        "cache": f"{row['cache_type']}, {mib(row['cache_bytes'])}",
        "tokens/s": "unknown" if speed is None else str(Range(**speed["empty"])),
        "full context": "unknown" if speed is None else str(Range(**speed["full"])),
        "expanded": mib(expanded) + (", too tight" if expanded > usable else ""),
        "file": row["file"],
    }


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown; what does not fit has empty cells, and its reason below."""
    shown = [_cells(row) for row in rows]
    columns = list(dict.fromkeys(column for cells in shown for column in cells))
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for cells in shown:
        yield "| " + " | ".join(cells.get(column, "") for column in columns) + " |"
    yield ""
    yield "tokens/s: estimates of decode speed, at first and behind a full context."
    yield "expanded: the weights, and keys and values of every head in F16 as llama.cpp keeps them."
    for why in dict.fromkeys(row["speed_unknown"] for row in rows if "speed_unknown" in row):
        yield f"unknown: {why}."
    for row in rows:
        if "why" in row:
            yield f"{row['device']}: {row['why']}"
