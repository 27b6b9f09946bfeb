"""What the two ONNX graphs of a bundle call their files, inputs and outputs.

    model.onnx            for every runtime: past rows in, past and new rows out
    model_in_place.onnx   for a session: rows are written into a buffer with room for them
    model.onnx.data       the weights of both

A cached row is [latent | rope key], as everywhere (plm_edge/cache_layout.py), of float32. In
model.onnx it is cut into two halves, which its names call key and value, as programs expect them:
those that know one head size for both take it for one head of half the width.
"""

from __future__ import annotations

MODEL, IN_PLACE, DATA = "model.onnx", "model_in_place.onnx", "model.onnx.data"

IDS = "input_ids"  # (batch, tokens) int64
POSITIONS = "position_ids"  # (batch, tokens) int64; in model_in_place.onnx also the row's place
MASK = "attention_mask"  # (batch, past + tokens) int64, 0 where a row is padding; model.onnx
LOGIT_ROWS = "logit_rows"  # (rows,) int64, of batch * tokens; model_in_place.onnx
LOGITS = "logits"  # (batch, tokens, vocab), in model_in_place.onnx (rows, vocab) float32


def past(layer: int) -> tuple[str, str]:
    """Inputs (batch, 1, past, half a row) of model.onnx."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present(layer: int) -> tuple[str, str]:
    """Outputs (batch, 1, past + tokens, half a row) of model.onnx."""
    return f"present.{layer}.key", f"present.{layer}.value"


def rows(layer: int) -> tuple[str, str]:
    """Input and output (batch, past + tokens, row) of model_in_place.onnx, one buffer."""
    return f"cache.{layer}", f"cache_out.{layer}"


def halves(row: int) -> tuple[int, int]:
    """Values in the two halves of a row; equal where the row is even, as PLM's 576 are."""
    return (row + 1) // 2, row // 2
