"""What the two graphs do differently: how cached rows come in, what is hidden, what goes out.

Below, B is batch, T the tokens of this call, S = past + T, W the row (rank + rope), H heads, N =
B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from plm_edge import onnx_names as names
from plm_edge.exporters.onnx.graph import Graph
from plm_edge.kinds.mla import softmax_scale
from plm_edge.spec import ModelSpec

HIDDEN = float(np.finfo(np.float32).min)  # added to the score of a row that must not be seen


@dataclass(frozen=True)
class Frame:
    """Values that are computed once for all layers."""

    tokens: str  # shape (B, T, -1)
    queries: tuple[str, ...]  # shape of a query, or of its halves: (B, ..., T * H, width)
    scores: str  # shape (B, T, H, S)
    weights: str  # shape (B, ..., T * H, S)
    mask: str  # (B, T, 1, S), 0 or HIDDEN
    places: str  # (B, T, 2) text and position of each new row; model_in_place.onnx


class Cache(Protocol):
    """How one of the graphs keeps rows."""

    file: str

    def inputs(self) -> list[ValueInfoProto]:
        """Of the graph."""
        ...

    def outputs(self) -> list[ValueInfoProto]:
        """Of the graph."""
        ...

    def frame(self, g: Graph) -> Frame:
        """Shapes and mask, from the inputs."""
        ...

    def append(self, g: Graph, layer: int, rows: str, frame: Frame) -> list[str]:
        """New rows (B, T, W) behind the past ones; what `scores` and `mixed` then read."""
        ...

    def scores(self, g: Graph, cached: list[str], query: str, frame: Frame) -> str:
        """Query (N, H, W) -> its scaled products with each row (B, T, H, S)."""
        ...

    def mixed(self, g: Graph, cached: list[str], weights: str, frame: Frame) -> str:
        """Weights (B, T, H, S) -> weighted sums of latents (N, H, rank)."""
        ...

    def asked(self, g: Graph, x: str) -> str:
        """Hidden states (N, d_model) -> those whose logits are asked for."""
        ...

    def answer(self, g: Graph, logits: str, frame: Frame) -> None:
        """Logits of those, as the output."""
        ...


def _value(name: str, kind: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _up_to(g: Graph, count: str, name: str) -> str:
    """Count (1,) -> 0, 1, ... count - 1."""
    end = g.op("Squeeze", count, g.ints(0), name=f"{name}_end")
    return g.op("Range", g.integer(0), end, g.integer(1), name=name)


def _mask(g: Graph, seen: str) -> str:
    """Seen (B, T, S) -> what is added to scores (B, T, 1, S)."""
    hidden = g.op("Where", seen, g.number(0.0), g.number(HIDDEN), name="hidden")
    return g.op("Unsqueeze", hidden, g.ints(2), name="mask")


def _scaled_product(g: Graph, queries: str, rows: str, spec: ModelSpec, name: str) -> str:
    """Scores, scaled for the softmax; as two nodes in a row, which onnxruntime makes one."""
    products = g.op("MatMul", queries, rows, name=name)
    return g.op("Mul", products, g.number(softmax_scale(spec)), name=f"{name}_scaled")


class InPlace:
    """model_in_place.onnx: input and output of a layer are one buffer, and nothing is copied.

        cache.3 (B, S, W): past rows, and room for T more
            └─► ScatterND at position_ids ◄── new rows (B, T, W)
                    └─► cache_out.3 (B, S, W), bound to the same memory; attention reads it

    Logits only of the tokens that `logit_rows` names: of a prompt, the last.
    """

    file = names.IN_PLACE

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.width = spec, spec.rank + spec.rope

    def inputs(self) -> list[ValueInfoProto]:
        ids = [
            _value(n, TensorProto.INT64, "batch", "tokens") for n in (names.IDS, names.POSITIONS)
        ]
        return [*ids, _value(names.LOGIT_ROWS, TensorProto.INT64, "rows"), *self._rows(0)]

    def outputs(self) -> list[ValueInfoProto]:
        logits = _value(names.LOGITS, TensorProto.FLOAT, "rows", self.spec.vocab)
        return [logits, *self._rows(1)]

    def frame(self, g: Graph) -> Frame:
        """A row is seen by the tokens at its own position and behind it."""
        tokens = g.op("Shape", names.IDS, name="tokens")
        batch = g.op("Shape", names.IDS, name="batch", start=0, end=1)
        total = g.op("Shape", names.rows(0)[0], name="total", start=1, end=2)
        at = g.op("Unsqueeze", names.POSITIONS, g.ints(2), name="at")  # (B, T, 1)
        seen = g.op("LessOrEqual", _up_to(g, total, "rows"), at, name="seen")  # (B, T, S)
        texts = g.op("Unsqueeze", _up_to(g, batch, "texts"), g.ints(1, 2), name="text")
        text = g.op(
            "Expand", texts, g.op("Shape", at, name="at_shape"), name="text_of"
        )  # (B, T, 1)
        join = "Concat"
        return Frame(
            tokens=g.op(join, tokens, g.ints(-1), name="by_token", axis=0),
            queries=(g.op(join, batch, g.ints(-1, self.width), name="queries", axis=0),),
            scores=g.op(join, tokens, g.ints(self.spec.heads), total, name="scores", axis=0),
            weights=g.op(join, batch, g.ints(-1), total, name="weights", axis=0),
            mask=_mask(g, seen),
            places=g.op(join, text, at, name="places_of", axis=2),
        )

    def append(self, g: Graph, layer: int, rows: str, frame: Frame) -> list[str]:
        before, after = names.rows(layer)
        return [g.op("ScatterND", before, frame.places, rows, name="cache", output=after)]

    def scores(self, g: Graph, cached: list[str], query: str, frame: Frame) -> str:
        by_row = g.op("Reshape", query, frame.queries[0], name="query_rows")  # (B, T * H, W)
        turned = g.op("Transpose", cached[0], name="cache_turned", perm=[0, 2, 1])
        products = _scaled_product(g, by_row, turned, self.spec, "products")  # (B, T * H, S)
        return g.op("Reshape", products, frame.scores, name="scores")

    def mixed(self, g: Graph, cached: list[str], weights: str, frame: Frame) -> str:
        by_row = g.op("Reshape", weights, frame.weights, name="weight_rows")  # (B, T * H, S)
        sums = g.op("MatMul", by_row, cached[0], name="sums")  # (B, T * H, W), rope values too
        latents = g.op("Slice", sums, g.ints(0), g.ints(self.spec.rank), g.ints(2), name="latents")
        return g.op("Reshape", latents, g.ints(-1, self.spec.heads, self.spec.rank), name="mixed")

    def asked(self, g: Graph, x: str) -> str:
        return g.op("Gather", x, names.LOGIT_ROWS, name="asked", axis=0)

    def answer(self, g: Graph, logits: str, frame: Frame) -> None:
        g.op("Identity", logits, name="answer", output=names.LOGITS)

    def _rows(self, end: int) -> list[ValueInfoProto]:
        return [
            _value(names.rows(i)[end], TensorProto.FLOAT, "batch", "total", self.width)
            for i in range(self.spec.layers)
        ]


class Halves:
    """model.onnx: past rows in, all rows out, each cut in two; with the names of the ecosystem.

        past_key_values.3.key   (B, 1, past, W / 2) ─► Concat ─► present.3.key   (B, 1, S, W / 2)
        past_key_values.3.value (B, 1, past, W / 2) ─► Concat ─► present.3.value (B, 1, S, W / 2)

    q . row = q[first half] . key + q[second half] . value, so the halves are never joined. In a
    batch shorter texts are padded at the front: `attention_mask` is 0 there.
    """

    file = names.MODEL

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.widths = spec, names.halves(spec.rank + spec.rope)

    def inputs(self) -> list[ValueInfoProto]:
        return [
            _value(names.IDS, TensorProto.INT64, "batch", "tokens"),
            _value(names.MASK, TensorProto.INT64, "batch", "total"),
            _value(names.POSITIONS, TensorProto.INT64, "batch", "tokens"),
            *self._rows(names.past, "past"),
        ]

    def outputs(self) -> list[ValueInfoProto]:
        shape = ("batch", "tokens", self.spec.vocab)
        return [
            _value(names.LOGITS, TensorProto.FLOAT, *shape),
            *self._rows(names.present, "total"),
        ]

    def frame(self, g: Graph) -> Frame:
        """A row is seen by its own token and those behind it, unless it is padding."""
        tokens = g.op("Shape", names.IDS, name="tokens")
        batch = g.op("Shape", names.IDS, name="batch", start=0, end=1)
        count = g.op("Shape", names.IDS, name="count", start=1, end=2)
        total = g.op("Shape", names.MASK, name="total", start=1, end=2)
        places = _up_to(g, total, "rows")
        past = g.op("Sub", total, count, name="past")
        own = g.op("Slice", places, past, total, g.ints(0), name="own")  # (T,)
        at = g.op("Unsqueeze", own, g.ints(1), name="at")  # (T, 1)
        causal = g.op("LessOrEqual", places, at, name="causal")  # (T, S)
        kept = g.op("Cast", names.MASK, name="kept", to=TensorProto.BOOL)
        kept = g.op("Unsqueeze", kept, g.ints(1), name="kept_rows")  # (B, 1, S)
        seen = g.op("And", causal, kept, name="seen")  # (B, T, S)
        join = "Concat"
        return Frame(
            tokens=g.op(join, tokens, g.ints(-1), name="by_token", axis=0),
            queries=tuple(
                g.op(join, batch, g.ints(1, -1, width), name=f"queries.{k}", axis=0)
                for k, width in enumerate(self.widths)
            ),
            scores=g.op(join, tokens, g.ints(self.spec.heads), total, name="scores", axis=0),
            weights=g.op(join, batch, g.ints(1, -1), total, name="weights", axis=0),
            mask=_mask(g, seen),
            places="",
        )

    def append(self, g: Graph, layer: int, rows: str, frame: Frame) -> list[str]:
        fresh = g.op("Unsqueeze", rows, g.ints(1), name="fresh")  # (B, 1, T, W)
        parts = g.split(fresh, self.widths, 3, "halves")
        ends = zip(names.past(layer), parts, names.present(layer), strict=True)
        return [
            g.op("Concat", before, part, name=after.rpartition(".")[2], output=after, axis=2)
            for before, part, after in ends
        ]

    def scores(self, g: Graph, cached: list[str], query: str, frame: Frame) -> str:
        parts = g.split(query, self.widths, 2, "query_halves")
        made = []
        for k, (part, half, shape) in enumerate(zip(parts, cached, frame.queries, strict=True)):
            by_row = g.op("Reshape", part, shape, name=f"query_rows.{k}")  # (B, 1, T * H, W / 2)
            turned = g.op("Transpose", half, name=f"cache_turned.{k}", perm=[0, 1, 3, 2])
            made.append(_scaled_product(g, by_row, turned, self.spec, f"products.{k}"))
        both = g.op("Add", *made, name="products")
        return g.op("Reshape", both, frame.scores, name="scores")

    def mixed(self, g: Graph, cached: list[str], weights: str, frame: Frame) -> str:
        rank = self.spec.rank
        by_row = g.op("Reshape", weights, frame.weights, name="weight_rows")  # (B, 1, T * H, S)
        sums = [g.op("MatMul", by_row, half, name=f"sums.{k}") for k, half in enumerate(cached)]
        both = g.op("Concat", *sums, name="sums", axis=3)  # (B, 1, T * H, W), rope values too
        latents = g.op("Slice", both, g.ints(0), g.ints(rank), g.ints(3), name="latents")
        return g.op("Reshape", latents, g.ints(-1, self.spec.heads, rank), name="mixed")

    def asked(self, g: Graph, x: str) -> str:
        return x

    def answer(self, g: Graph, logits: str, frame: Frame) -> None:
        g.op("Reshape", logits, frame.tokens, name="answer", output=names.LOGITS)

    def _rows(self, name: object, length: str) -> list[ValueInfoProto]:
        assert callable(name)
        return [
            _value(half, TensorProto.FLOAT, "batch", 1, length, width)
            for i in range(self.spec.layers)
            for half, width in zip(name(i), self.widths, strict=True)
        ]
