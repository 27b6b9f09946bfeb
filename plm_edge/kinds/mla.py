"""Multi-head latent attention: a cached token is one latent and one rotary key."""

from __future__ import annotations

from plm_edge.tensor_row import TensorRow

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
