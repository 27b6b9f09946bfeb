"""The same model as ONNX exporters write it: keys and values of every head are cached.

For benchmarks/onnx_speed.py. All blocks but attention, and all weights but kv_b, are those of
exporters/onnx; kv_b is one product, from latents to keys and values, rounded as in the GGUF file.

    past_key_values.3.key   (B, H, past, nope + rope) ─► Concat ─► present.3.key
    past_key_values.3.value (B, H, past, v_head)      ─► Concat ─► present.3.value
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, helper

from plm_edge import onnx_names as names
from plm_edge.exporters.onnx import arrays, model
from plm_edge.exporters.onnx.caches import Frame, Halves
from plm_edge.exporters.onnx.graph import Graph
from plm_edge.exporters.onnx.products import Products
from plm_edge.exporters.onnx.store import Store
from plm_edge.exporters.source import PackedRows
from plm_edge.kinds.mla import softmax_scale

KV_B = "kv_b.data"


class ExpandedStore(Store):
    """A store whose kv_b is one matrix a layer, in a file beside the others."""

    def __init__(self, store: Store, fmt: str) -> None:
        super().__init__(store.spec, store.formats, store.standard)
        spec, self.fmt = store.spec, fmt
        rows = spec.heads * (spec.nope + spec.v_head)
        wanted = [
            array
            for name in map(kv_b, range(spec.layers))
            for array in arrays.matrix(name, fmt, rows, spec.rank, store.standard)
        ]
        self.extra = {array.name: array for array in arrays.place(wanted)}
        self.arrays |= self.extra
        self.formats = {**store.formats, **{kv_b(i): fmt for i in range(spec.layers)}}

    def initializer(self, name: str) -> TensorProto:
        tensor = super().initializer(name)
        if name in self.extra:
            tensor.external_data[0].value = KV_B
        return tensor

    def write_kv_b(self, path: Path, packed_rows: PackedRows) -> None:
        with path.open("wb") as file:
            for i in range(self.spec.layers):
                rows = self.spec.heads * (self.spec.nope + self.spec.v_head)
                packed = packed_rows(kv_b(i), self.fmt, 0, rows)
                parts = {kv_b(i): packed}
                if self.fmt in arrays.BITS:
                    q, scales = arrays.integers(self.fmt, packed, self.standard)
                    parts = {f"{kv_b(i)}.q": q, f"{kv_b(i)}.scales": scales}
                for name, data in parts.items():
                    file.seek(self.arrays[name].offset)
                    file.write(np.ascontiguousarray(data).data)


def kv_b(layer: int) -> str:
    return f"blk.{layer}.attn_kv_b.weight"


def write_expanded(
    store: Store, fmt: str, bundle: Path, out: Path, packed_rows: PackedRows
) -> Path:
    """The expanded graph beside the weights of a bundle; returns its path."""
    expanded = ExpandedStore(store, fmt)
    os.link(bundle / names.DATA, out / names.DATA)
    expanded.write_kv_b(out / KV_B, packed_rows)
    path = out / "expanded.onnx"
    path.write_bytes(build(expanded).SerializeToString())
    return path


def build(store: ExpandedStore) -> ModelProto:
    spec, g = store.spec, Graph()
    p, halves = Products(g, store), Halves(store.spec)
    with g.scope("frame"):
        frame = halves.frame(g)
        mask = g.op("Transpose", frame.mask, name="mask_by_head", perm=[0, 2, 1, 3])
        batch, count = (
            g.op("Shape", names.IDS, name=f"size.{k}", start=k, end=k + 1) for k in (0, 1)
        )
        heads = g.ints(spec.heads)
        shapes = Shapes(
            g.op("Concat", batch, count, heads, g.ints(-1), name="by_head", axis=0),
            g.op("Concat", batch, heads, count, g.ints(spec.rope), name="spread", axis=0),
        )
    x = model.embedding(p)
    for i in range(spec.layers):
        with g.scope(f"layers.{i}"):
            x = _attention(p, frame, mask, shapes, i, x)
            x = model.feed_forward(p, i, x)
    model.head(p, halves, frame, x)
    widths = spec.nope + spec.rope, spec.v_head

    def rows(ends: object, length: str) -> list[object]:
        return [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["batch", spec.heads, length, width]
            )
            for i in range(spec.layers)
            for name, width in zip(ends(i), widths, strict=True)
        ]

    initializers = [*g.constants.values(), *(store.initializer(name) for name in g.used)]
    inputs, outputs = halves.inputs()[:3], halves.outputs()[:1]
    graph = helper.make_graph(
        g.nodes, "expanded", [*inputs, *rows(names.past, "past")],
        [*outputs, *rows(names.present, "total")], initializers, value_info=g.noted,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", model.OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


class Shapes(NamedTuple):
    by_head: str  # (B, T, H, -1)
    spread: str  # (B, H, T, rope)


def _attention(p: Products, frame: Frame, mask: str, shapes: Shapes, i: int, x: str) -> str:
    g, spec, blk = p.g, p.store.spec, f"blk.{i}."
    with g.scope("attention"):
        h = model.norm(g, x, blk + "attn_norm.weight", spec.eps, "norm")
        parts = model.project(p, frame, blk, h)
        query = _query(p, shapes, parts)  # (B, H, T, nope + rope)
        key, value = _keys_and_values(p, shapes, blk, parts)
        cached = [
            g.op("Concat", before, fresh, name=after, output=after, axis=2)
            for before, fresh, after in zip(
                names.past(i), (key, value), names.present(i), strict=True
            )
        ]
        turned = g.op("Transpose", cached[0], name="keys", perm=[0, 1, 3, 2])
        scores = g.op("MatMul", query, turned, name="scores")  # (B, H, T, S)
        weights = g.op("Softmax", g.op("Add", scores, mask, name="masked"), name="softmax", axis=-1)
        mixed = g.op("MatMul", weights, cached[1], name="mixed")  # (B, H, T, v_head)
        by_token = g.op("Transpose", mixed, name="mixed_by_token", perm=[0, 2, 1, 3])
        joined = g.op("Reshape", by_token, g.ints(-1, spec.heads * spec.v_head), name="heads")
        return g.op("Add", x, p.linear(blk + "attn_output.weight", joined, "output"), name="sum")


def _query(p: Products, shapes: Shapes, parts: model.Projected) -> str:
    g, spec = p.g, p.store.spec
    nope = g.op("Reshape", parts.nope, shapes.by_head, name="nope")
    rope = g.op("Reshape", parts.rope, shapes.by_head, name="rope")
    both = g.op("Concat", nope, rope, name="q", axis=3)
    query = g.op("Transpose", both, name="query", perm=[0, 2, 1, 3])
    return g.op("Mul", query, g.number(softmax_scale(spec)), name="query_scaled")


def _keys_and_values(
    p: Products, shapes: Shapes, blk: str, parts: model.Projected
) -> tuple[str, str]:
    g, spec = p.g, p.store.spec
    latent = g.op("Reshape", parts.latent, g.ints(-1, spec.rank), name="latent")
    kv = p.linear(blk + "attn_kv_b.weight", latent, "kv_b")
    by_token = g.op("Reshape", kv, shapes.by_head, name="kv_by_token")
    by_head = g.op("Transpose", by_token, name="kv_by_head", perm=[0, 2, 1, 3])
    plain, value = g.split(by_head, (spec.nope, spec.v_head), 3, "kv_parts")
    shared = g.op("Unsqueeze", parts.key, g.ints(1), name="key_shared")
    spread = g.op("Expand", shared, shapes.spread, name="key_spread")
    return g.op("Concat", plain, spread, name="key", axis=3), value
