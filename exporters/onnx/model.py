"""The forward pass as a graph: one function a block, in the order of plm_edge/reference.py.

Attention is absorbed (plm_edge/kinds/mla.py): no key and no value of a head is ever built. Hidden
states are (N, d_model), N = batch * tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto, helper

import plm_edge
from plm_edge import onnx_names as names
from plm_edge.exporters.onnx.caches import Cache, Frame
from plm_edge.exporters.onnx.graph import CONTRIB, Graph
from plm_edge.exporters.onnx.products import Products
from plm_edge.exporters.onnx.store import COSINES, SINES, Store
from plm_edge.tensors import TENSORS_GLOBAL, head_name

OPSET = 23  # the first with RMSNormalization and RotaryEmbedding
_EMBEDDING, _LAST_NORM = (row.name for row in TENSORS_GLOBAL)


def build(store: Store, cache: Cache) -> ModelProto:
    """The graph of a store's weights with one of the caches; weights stay outside."""
    spec, g = store.spec, Graph()
    products = Products(g, store)
    with g.scope("frame"):
        frame = cache.frame(g)
    x = embedding(products)
    for i in range(spec.layers):
        with g.scope(f"layers.{i}"):
            x = attention(products, cache, frame, i, x)
            x = feed_forward(products, i, x)
    head(products, cache, frame, x)
    return _model(g, store, cache)


def embedding(p: Products) -> str:
    """input_ids (B, T) -> x (N, d_model)."""
    ids = p.g.op("Reshape", names.IDS, p.g.ints(-1), name="ids")
    return p.look_up(_EMBEDDING, ids, "embedding")


def attention(p: Products, cache: Cache, frame: Frame, i: int, x: str) -> str:
    """Attention of one layer, added to x.

    x ─► norm ─► W_kv_a, W_q ─┬─► latent ─► norm ───────────┬─► row ─► cache (B, S, W) ───┐
                              ├─► rope key, rope ─► turn ─┬─┘            │                │
                              └─► nope ─► W_uk^T ─────────┴─► query ─► scores ─► mask ─► softmax
                                                            (N, H, W)                     │
    x + ◄─ W_o ◄─ W_uv per head ◄─ latents (N, H, rank) ◄─────────── weighted sum of rows ┘
    """
    g, spec, blk = p.g, p.store.spec, f"blk.{i}."
    with g.scope("attention"):
        h = norm(g, x, blk + "attn_norm.weight", spec.eps, "norm")
        parts = project(p, frame, blk, h)
        row = g.op("Concat", parts.latent, parts.key, name="row", axis=2)  # (B, T, W)
        cached = cache.append(g, i, row, frame)
        scores = cache.scores(g, cached, _query(p, blk, parts), frame)  # (B, T, H, S)
        masked = g.op("Add", scores, frame.mask, name="masked")
        weights = g.op("Softmax", masked, name="softmax", axis=-1)
        latents = cache.mixed(g, cached, weights, frame)
        shape = (spec.heads, spec.rank, spec.v_head)
        values = p.per_head(blk + "attn_v_b.weight", latents, shape, "v_b")
        joined = g.op("Reshape", values, g.ints(-1, spec.heads * spec.v_head), name="heads")
        out = p.linear(blk + "attn_output.weight", joined, "output")
        return g.op("Add", x, out, name="sum")


class Projected(NamedTuple):
    """What attention makes of each token first, (B, T, width)."""

    latent: str  # normed, rank
    key: str  # turned, rope
    nope: str  # of each head's query, heads * nope
    rope: str  # turned, heads * rope


def project(p: Products, frame: Frame, blk: str, h: str) -> Projected:
    """W_kv_a and W_q of h (N, d_model); all that turns lies side by side and turns at once."""
    g, spec = p.g, p.store.spec
    made = [p.linear(name, h, name.split(".")[2]) for name in p.store.projections(blk)]
    both = made[0] if len(made) == 1 else g.op("Concat", *made, name="projected", axis=1)
    by_token = g.op("Reshape", both, frame.tokens, name="by_token")
    widths = spec.rank, (1 + spec.heads) * spec.rope, spec.heads * spec.nope
    latent, pairs, nope = g.split(by_token, widths, 2, "parts")
    turned = g.op(
        "RotaryEmbedding", pairs, g.stored(COSINES), g.stored(SINES), names.POSITIONS,
        name="turned", interleaved=1, num_heads=1 + spec.heads,
    )  # fmt: skip
    key, rope = g.split(turned, (spec.rope, spec.heads * spec.rope), 2, "turned_parts")
    latent = norm(g, latent, blk + "attn_kv_a_norm.weight", spec.latent_eps, "latent_norm")
    return Projected(latent, key, nope, rope)


def _query(p: Products, blk: str, parts: Projected) -> str:
    """What meets a cached row (N, H, W)."""
    g, spec = p.g, p.store.spec
    nope = g.op("Reshape", parts.nope, g.ints(-1, spec.heads, spec.nope), name="nope")
    absorbed = p.per_head(blk + "attn_k_b.weight", nope, (spec.heads, spec.nope, spec.rank), "k_b")
    rope = g.op("Reshape", parts.rope, g.ints(-1, spec.heads, spec.rope), name="rope")
    return g.op("Concat", absorbed, rope, name="query", axis=2)


def feed_forward(p: Products, i: int, x: str) -> str:
    """Feed-forward of layer i: x + W_down . max(0, W_up . norm(x))^2.

    x ─► norm ─► W_up ─► relu ─► squared ─► W_down ─► + x
    """
    g, spec, blk = p.g, p.store.spec, f"blk.{i}."
    with g.scope("ffn"):
        h = norm(g, x, blk + "ffn_norm.weight", spec.eps, "norm")
        active = g.op("Relu", p.linear(blk + "ffn_up.weight", h, "up"), name="relu")
        units = g.op("Mul", active, active, name="squared")
        down = p.linear(blk + "ffn_down.weight", units, "down")
        return g.op("Add", x, down, name="sum")


def head(p: Products, cache: Cache, frame: Frame, x: str) -> None:
    """The logits of the tokens that are asked for."""
    g, spec = p.g, p.store.spec
    with g.scope("head"):
        h = norm(g, cache.asked(g, x), _LAST_NORM, spec.eps, "norm")
        cache.answer(g, p.linear(head_name(spec), h, "logits"), frame)


def norm(g: Graph, x: str, weight: str, eps: float, name: str) -> str:
    """RMSNorm over the last axis."""
    return g.op("RMSNormalization", x, g.stored(weight), name=name, axis=-1, epsilon=eps)


def _model(g: Graph, store: Store, cache: Cache) -> ModelProto:
    initializers = [*g.constants.values(), *(store.initializer(name) for name in g.used)]
    graph = helper.make_graph(
        g.nodes, "plm", cache.inputs(), cache.outputs(), initializers, _DOC, g.noted
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == CONTRIB for node in g.nodes):
        opsets.append(helper.make_opsetid(CONTRIB, 1))
    return helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
        producer_name="plm-edge",
        producer_version=plm_edge.__version__,
    )


_DOC = "A PLM-style language model; cached rows are [latent | rope key], one a token and layer."
