"""plm-edge inspect: what is in a model file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from plm_edge.cli.options import ModelOrOnnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plm_edge.inspection import Inspection
    from plm_edge.spec import ModelSpec

_RUNS = {
    "latent": "runs in the native session",
    "plm": "runs in llama.cpp (flash attention off; its cache is expanded) and natively",
    "deepseek2": "runs in llama.cpp, its cache latent there",
}


def command(
    ctx: typer.Context,
    model: ModelOrOnnx,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Every key of the file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all of it.")] = False,
) -> None:
    """Show what a model file holds, its cache, and what each device would need."""
    from plm_edge.bundle import MODEL_FILE, read_bundle
    from plm_edge.cli.inspect_onnx import lines as onnx_lines
    from plm_edge.cli.prepare import prepare
    from plm_edge.cli.progress import Progress
    from plm_edge.inspection import inspect
    from plm_edge.onnx_inspection import inspect_onnx

    with Progress(f"export {model} for this machine") as progress:
        found = prepare(model, progress, ctx.obj)
    onnx = None
    if found.is_dir():
        read_bundle(found)
        onnx = inspect_onnx(found)
        found = found / MODEL_FILE
    shown = None if onnx is not None and not found.exists() else inspect(found)
    if as_json:
        files = {} if shown is None else shown.to_dict()
        print(json.dumps(files | ({} if onnx is None else {"onnx": onnx.to_dict()}), indent=2))
        return
    if shown is not None:
        for line in (*_lines(shown), *_details(shown, tensors, keys)):
            print(line)
    if onnx is not None:
        if shown is None:
            print(f"model    {_model(onnx.spec)}")
        for line in onnx_lines(onnx, tensors, keys):
            print(line)


def _lines(shown: Inspection) -> Iterator[str]:
    yield f"file     {shown.path}, {shown.nbytes:,} bytes"
    yield f"name     {shown.name or 'not stated'}, licence {shown.licence or 'not stated'}"
    yield f"layout   {_layout(shown)}"
    if shown.spec is not None:
        yield f"model    {_model(shown.spec)}"
    for label, rows in (("formats", shown.by_format()), ("tensors", shown.by_kind())):
        width = max(len(name) for name in rows)
        for name, (count, values, nbytes) in rows.items():
            bits = 8 * nbytes / values
            sizes = f"{count:>5}  {values:>13,} values  {nbytes:>13,} bytes  {bits:6.3f} bits each"
            yield f"{label:9}{name:{width}}{sizes}"
            label = ""
    label = "cache"
    for name, nbytes in shown.cache().items():
        whose = " (f16 keys and values, as llama.cpp has for plm)" if name == "expanded" else ""
        yield f"{label:9}{name:9}{nbytes:>9,} bytes a token{whose}"
        label = ""
    if (cost := shown.deepseek2_cost()) is not None:
        more, even = cost
        yield f"cost     {more:,} bytes more than layout plm: ffn_up twice, W_uk in F16"
        yield f"         in llama.cpp less memory than plm above {even:,} tokens of context"
    yield from _targets(shown)


def _layout(shown: Inspection) -> str:
    if shown.layout is None:
        return f"architecture {shown.architecture}; it does not run here: {shown.refusal}"
    runs = f": {_RUNS[shown.layout]}" if shown.layout in _RUNS else ""
    return f"{shown.layout} (architecture {shown.architecture}){runs}"


def _model(spec: ModelSpec) -> str:
    return (
        f"{spec.layers} layers of {spec.d_model}, {spec.heads} heads ({spec.nope} + {spec.rope} "
        f"rotated, values {spec.v_head}), latent {spec.rank}, {spec.d_ffn:,} units, "
        f"vocabulary {spec.vocab:,}{', head tied' if spec.tied else ''}, "
        f"context {spec.n_ctx_train:,}"
    )


def _targets(shown: Inspection) -> Iterator[str]:
    from plm_edge.plan import Plan
    from plm_edge.planned import mib

    label = "needs"
    width = max((len(name) for name, _ in shown.targets), default=0) + 1
    for name, plan in shown.targets:
        said = f"does not fit: {plan}"
        if isinstance(plan, Plan):
            budget = plan.budget
            said = (
                f"{mib(budget.total)} with a context of {plan.n_ctx:,}: weights "
                f"{mib(budget.weights)}, cache {mib(budget.cache)}, scratch {mib(budget.scratch)}"
            )
        yield f"{label:9}{name:{width}}{said}"
        label = ""


def _details(shown: Inspection, tensors: bool, keys: bool) -> Iterator[str]:
    if tensors:
        for tensor in shown.to_dict()["tensors"]:
            shape = " x ".join(map(str, tensor["shape"]))
            yield f"{tensor['bytes']:>13,} {tensor['format']:6} {shape:>16}  {tensor['name']}"
    if keys:
        for key, value in shown.keys.items():
            yield f"{key} = {value}"
