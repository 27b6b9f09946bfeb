"""plm-edge plan: what a model would become on a device, and whether it fits."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from plm_edge.cli.options import CacheType, Layout, MaybeQuant, Pure


def command(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Hugging Face folder, hub id, bundle, .gguf, demo.")],
    target: Annotated[str, typer.Option("--target", help="A device: see plm-edge devices.")],
    n_ctx: Annotated[int | None, typer.Option("-c", "--ctx", help="Tokens of context.")] = None,
    quant: MaybeQuant = None,
    pure: Pure = False,
    layout: Layout = None,
    cache_type: CacheType = "f16",
    threads: Annotated[int | None, typer.Option("-t", "--threads")] = None,
    isa: Annotated[str | None, typer.Option(help="Kernel set.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every number's reason.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a model on a device; nothing is written."""
    from plm_edge import devices
    from plm_edge.cli.prepare import find, spec_of
    from plm_edge.plan import make_plan

    profile = devices.load(target)
    spec = spec_of(find(model, ctx.obj))
    plan = make_plan(spec, profile, quant, layout, n_ctx, cache_type, threads, isa, pure)
    if as_json:
        reasons = {"reasons": plan.reasons} if explain else {}
        print(json.dumps({**plan.to_dict(), **reasons}, indent=2))
        return
    for line in plan.explain():
        if explain or not line.startswith("because"):
            print(line)
