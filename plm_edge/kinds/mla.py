"""Multi-head latent attention: a cached token is one latent and one rotary key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.kinds.norm import rms_norm
from plm_edge.kinds.recorder import CacheRows, Recorder, Weight
from plm_edge.kinds.seen import Seen, unseen
from plm_edge.spec import ModelSpec
from plm_edge.tensor_row import TensorRow

Array = NDArray[Any]
Float64 = NDArray[np.float64]

_HF = "model.layers.{i}.self_attn."
_OURS = "blk.{i}."

# Rows of attn_q: per head [nope | rope]. Rows of attn_kv_a_mqa: [latent: rank | shared key: rope].
# Rows of attn_kv_b: per head [key without rotation: nope | value: v_head].
TENSORS = (
    TensorRow(
        "model.layers.{i}.input_layernorm.weight", _OURS + "attn_norm.weight", "d_model", False
    ),
    TensorRow(
        _HF + "q_proj.weight", _OURS + "attn_q.weight", "heads*nope + heads*rope, d_model", True
    ),
    TensorRow(
        _HF + "kv_a_proj_with_mqa.weight",
        _OURS + "attn_kv_a_mqa.weight",
        "rank + rope, d_model",
        True,
    ),
    TensorRow(_HF + "kv_a_layernorm.weight", _OURS + "attn_kv_a_norm.weight", "rank", False),
    TensorRow(
        _HF + "kv_b_proj.weight",
        _OURS + "attn_kv_b.weight",
        "heads*nope + heads*v_head, rank",
        True,
    ),
    TensorRow(_HF + "o_proj.weight", _OURS + "attn_output.weight", "d_model, heads*v_head", True),
)


# ---------------------------------------------------------------- reference: float64 numpy

# Multi-head latent attention as DeepSeek-V2 writes it (arXiv 2405.04434, section 2.1, appendix C),
# without the low-rank query, which PLM does not have: q = W^Q h. The paper's c^KV is `latent` here,
# k^R `rope_key`, W^UK and W^UV are rows of attn_kv_b. In each function x is (T, d_model), the
# normed input of tokens 0..T-1, and `w` maps "attn_q", "attn_kv_a_mqa", "attn_kv_a_norm",
# "attn_kv_b" and "attn_output" to the weights of one layer; `seen` is told what each multiplies.


def rope_interleaved(x: Array, theta: float) -> Float64:
    """Rotate x (T, rope) by its row number: pair i holds values 2i and 2i + 1.

    Row t turns pair i by t * theta^(-2i / rope) (arXiv 2104.09864, eq. 15).
    """
    tokens, width = x.shape
    frequency = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)  # (rope / 2,)
    angle = np.arange(tokens)[:, None] * frequency  # (T, rope / 2)
    even, odd = x[:, 0::2], x[:, 1::2]
    turned = np.empty((tokens, width))
    turned[:, 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    turned[:, 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return turned


def softmax_scale(spec: ModelSpec) -> float:
    """1 / sqrt(width of a query head), its rotated part included."""
    return float((spec.nope + spec.rope) ** -0.5)


def causal_softmax(scores: Float64) -> Float64:
    """Scores (T, T) -> weights (T, T): row t over columns 0..t, each row sums to 1."""
    hidden = np.triu(np.ones(scores.shape, dtype=bool), k=1)
    masked = np.where(hidden, -np.inf, scores)
    weights = np.exp(masked - masked.max(axis=-1, keepdims=True))
    normed: Float64 = weights / weights.sum(axis=-1, keepdims=True)
    return normed


def cache_rows(x: Array, w: Mapping[str, Array], spec: ModelSpec) -> tuple[Float64, Float64]:
    """What is remembered of x: the normed latent (T, rank), the rotated key (T, rope)."""
    latent, rope_key = np.split(x @ w["attn_kv_a_mqa"].T, [spec.rank], axis=-1)
    latent = rms_norm(latent, w["attn_kv_a_norm"], spec.latent_eps)
    return latent, rope_interleaved(rope_key, spec.rope_theta)


def head_queries(
    x: Array, w: Mapping[str, Array], spec: ModelSpec
) -> Iterator[tuple[Float64, Float64]]:
    """For each head the queries of x: not rotated (T, nope), rotated (T, rope)."""
    for rows in np.split(w["attn_q"], spec.heads):  # (nope + rope, d_model)
        plain, rotary = np.split(x @ rows.T, [spec.nope], axis=-1)
        yield plain, rope_interleaved(rotary, spec.rope_theta)


def up_projections(w: Mapping[str, Array], spec: ModelSpec) -> Iterator[tuple[Array, Array]]:
    """For each head W_uk (nope, rank) and W_uv (v_head, rank)."""
    for rows in np.split(w["attn_kv_b"], spec.heads):  # (nope + v_head, rank)
        yield rows[: spec.nope], rows[spec.nope :]


def expanded(x: Array, w: Mapping[str, Array], spec: ModelSpec, seen: Seen = unseen) -> Float64:
    """Attention as trained -> (T, d_model): a key and a value are built for every head."""
    latent, rope_key = cache_rows(x, w, spec)
    for name, met in (("attn_q", x), ("attn_kv_a_mqa", x), ("attn_kv_b", latent)):
        seen(name, met)
    heads = []
    for (q_nope, q_rope), (w_uk, w_uv) in zip(
        head_queries(x, w, spec), up_projections(w, spec), strict=True
    ):
        query = np.concatenate([q_nope, q_rope], axis=-1)  # (T, nope + rope)
        key = np.concatenate([latent @ w_uk.T, rope_key], axis=-1)  # (T, nope + rope)
        value = latent @ w_uv.T  # (T, v_head)
        heads.append(causal_softmax(query @ key.T * softmax_scale(spec)) @ value)
    mixed = np.concatenate(heads, axis=-1)
    seen("attn_output", mixed)
    output: Float64 = mixed @ w["attn_output"].T
    return output


def absorbed(x: Array, w: Mapping[str, Array], spec: ModelSpec) -> Float64:
    """The same from the cached rows alone -> (T, d_model): no key, no value.

    q . (W_uk c) = (W_uk^T q) . c, and sum_t a_t (W_uv c_t) = W_uv (sum_t a_t c_t).
    """
    latent, rope_key = cache_rows(x, w, spec)
    heads = []
    for (q_nope, q_rope), (w_uk, w_uv) in zip(
        head_queries(x, w, spec), up_projections(w, spec), strict=True
    ):
        scores = (q_nope @ w_uk) @ latent.T + q_rope @ rope_key.T  # (T, T)
        mixed = causal_softmax(scores * softmax_scale(spec)) @ latent  # (T, rank)
        heads.append(mixed @ w_uv.T)  # (T, v_head)
    output: Float64 = np.concatenate(heads, axis=-1) @ w["attn_output"].T
    return output


# ---------------------------------------------------------------- kernel order


def record(k: Recorder, w: Mapping[str, Weight], cache: CacheRows, spec: ModelSpec) -> None:
    """One layer's attention as a list of kernels: x += W_o . attention(norm(x)).

    Names in quotes are buffers of the workspace; `w` maps "attn_q" and so on to this layer's
    weights. The running tokens' rows enter the cache first and are then read back like all others.
    """
    k.norm("x", w["attn_norm"], "h")
    k.product(w["attn_q"], "h", "q")
    k.product(w["attn_kv_a_mqa"], "h", "kv_a")
    k.rotate("q")
    k.remember("kv_a", w["attn_kv_a_norm"], cache)
    attend = k.expand if k.expanded else k.absorb
    attend(w["attn_kv_b"], cache, softmax_scale(spec))
    k.pack("heads")
    k.product(w["attn_output"], "heads", "x", add=True)


def turns(spec: ModelSpec, n_ctx: int) -> NDArray[np.float32]:
    """How far each pair is turned at each position: (n_ctx, rope), cosine and sine in turn."""
    frequency = spec.rope_theta ** (-np.arange(0, spec.rope, 2) / spec.rope)
    angle = np.outer(np.arange(n_ctx), frequency)
    pairs = np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # (n_ctx, rope / 2, 2)
    return pairs.reshape(n_ctx, spec.rope).astype(np.float32)


def expanding_pays(spec: ModelSpec, n_past: int, tokens: int) -> bool:
    """Whether building keys and values is less work than absorbing, counted in multiplications.

    For each head, expanding costs (nope + v_head) * rank for every cached row and nope + rope +
    v_head for every pair of token and row; absorbing costs (nope + v_head) * rank for every token
    and 2 * rank + rope for every pair.
    """
    rows, pairs = n_past + tokens, tokens * n_past + tokens * (tokens + 1) // 2
    both = (spec.nope + spec.v_head) * spec.rank
    expanded = rows * both + pairs * (spec.nope + spec.rope + spec.v_head)
    absorbed = tokens * both + pairs * (2 * spec.rank + spec.rope)
    return tokens > 1 and expanded < absorbed
