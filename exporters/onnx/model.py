"""The forward pass as a graph: one function a block, in the order of plm_edge/reference.py.

Attention is absorbed (plm_edge/kinds/mla.py): no key and no value of a head is ever built. Hidden
states are (N, d_model), N = batch * tokens.
"""

from __future__ import annotations

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

    x ─► norm ─┬─► W_q ─► per head ─┬─► nope ─► W_uk^T ─┬─► query (N, H, W)
               │                    └─► rope ─► turn ───┘      │
               └─► W_kv_a ─┬─► latent ─► norm ─┬─► row ─► cache (B, S, W)
                           └─► rope ─► turn ───┘          │    │
                                                          │  scores ─► mask ─► softmax
                                                          └──────► weighted sum ◄┘
    x + ◄─ W_o ◄─ W_uv per head ◄─ latents (N, H, rank) ◄──────────────┘
    """
    g, spec, blk = p.g, p.store.spec, f"blk.{i}."
    with g.scope("attention"):
        h = norm(g, x, blk + "attn_norm.weight", spec.eps, "norm")
        query = _query(p, frame, blk, h)
        cached = cache.append(g, i, _rows(p, frame, blk, h), frame)
        scores = cache.scores(g, cached, query, frame)  # (B, T, H, S)
        masked = g.op("Add", scores, frame.mask, name="masked")
        weights = g.op("Softmax", masked, name="softmax", axis=-1)
        latents = cache.mixed(g, cached, weights, frame)
        shape = (spec.heads, spec.rank, spec.v_head)
        values = p.per_head(blk + "attn_v_b.weight", latents, shape, "v_b")
        joined = g.op("Reshape", values, g.ints(-1, spec.heads * spec.v_head), name="heads")
        out = p.linear(blk + "attn_output.weight", joined, "output")
        return g.op("Add", x, out, name="sum")


def _query(p: Products, frame: Frame, blk: str, h: str) -> str:
    """From h (N, d_model) what meets a cached row (N, H, W)."""
    g, spec = p.g, p.store.spec
    q = p.linear(blk + "attn_q.weight", h, "q")
    by_head = g.op("Reshape", q, g.ints(-1, spec.heads, spec.nope + spec.rope), name="q_heads")
    plain, rotary = g.split(by_head, (spec.nope, spec.rope), 2, "q_parts")
    absorbed = p.per_head(blk + "attn_k_b.weight", plain, (spec.heads, spec.nope, spec.rank), "k_b")
    turned = turn(g, frame, rotary, spec.heads, "q_rope")
    turned = g.op("Reshape", turned, g.ints(-1, spec.heads, spec.rope), name="q_turned")
    return g.op("Concat", absorbed, turned, name="query", axis=2)


def _rows(p: Products, frame: Frame, blk: str, h: str) -> str:
    """From h (N, d_model) the rows to remember (B, T, W)."""
    g, spec = p.g, p.store.spec
    kv_a = p.linear(blk + "attn_kv_a_mqa.weight", h, "kv_a")
    latent, key = g.split(kv_a, (spec.rank, spec.rope), 1, "kv_a_parts")
    latent = norm(g, latent, blk + "attn_kv_a_norm.weight", spec.latent_eps, "latent_norm")
    latent = g.op("Reshape", latent, frame.tokens, name="latent")  # (B, T, rank)
    return g.op("Concat", latent, turn(g, frame, key, 1, "key"), name="row", axis=2)


def turn(g: Graph, frame: Frame, x: str, heads: int, name: str) -> str:
    """Turn pairs (2i, 2i + 1) of x (N, [heads,] rope) by position: (B, T, heads * rope)."""
    by_token = g.op("Reshape", x, frame.tokens, name=f"{name}_tokens")
    return g.op(
        "RotaryEmbedding", by_token, g.stored(COSINES), g.stored(SINES), names.POSITIONS,
        name=f"{name}_turned", interleaved=1, num_heads=heads,
    )  # fmt: skip


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
