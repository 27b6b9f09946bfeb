"""Squared-ReLU feed-forward without a gate: down . relu(up . x)^2."""

from __future__ import annotations

from plm_edge.tensor_row import TensorRow

TENSORS = (
    TensorRow(
        "model.layers.{i}.post_attention_layernorm.weight",
        "blk.{i}.ffn_norm.weight",
        "d_model",
        False,
    ),
    TensorRow(
        "model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", "d_ffn, d_model", True
    ),
    TensorRow(
        "model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", "d_model, d_ffn", True
    ),
)
