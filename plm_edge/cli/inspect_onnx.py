"""The lines of plm-edge inspect about the ONNX files of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plm_edge.onnx_file import OnnxFile, Value
    from plm_edge.onnx_inspection import OnnxInspection


def lines(shown: OnnxInspection, tensors: bool, keys: bool) -> Iterator[str]:
    """Graphs, weights and cache; with `tensors` every array, with `keys` inputs and outputs."""
    label = "graphs"
    for graph in shown.graphs:
        yield f"{label:9}{_graph(graph)}"
        label = ""
    yield f"weights  {shown.weight_bytes:,} bytes, for both graphs"
    label = "arrays"
    for dtype, (count, nbytes) in shown.by_type().items():
        yield f"{label:9}{dtype:9}{count:>5}  {nbytes:>13,} bytes"
        label = ""
    spec = shown.spec
    yield (
        f"cache    {shown.cache_row_bytes:,} bytes a token and layer: {spec.rank} + {spec.rope} "
        "values of float32"
    )
    if tensors:
        for array in shown.stored:
            shape = " x ".join(map(str, array.shape))
            yield f"{array.length:>13,} {array.dtype:9} {shape:>20}  {array.name}"
    if keys:
        for graph in shown.graphs:
            for way, values_ in (("in", graph.inputs), ("out", graph.outputs)):
                for value in values_:
                    yield f"{graph.path.name} {way:3} {_value(value)}"


def _graph(graph: OnnxFile) -> str:
    opsets = ", ".join(f"{domain or 'opset'} {version}" for domain, version in graph.opsets.items())
    common = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))[:3]
    said = ", ".join(f"{count} {kind.rpartition('.')[2]}" for kind, count in common)
    total = sum(graph.operators.values())
    return f"{graph.path.name}: {opsets}; {total:,} nodes, of them {said}"


def _value(value: Value) -> str:
    return f"{value.dtype} {value.name} ({', '.join(map(str, value.shape))})"
