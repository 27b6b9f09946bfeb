"""One row of the tensor table; the kinds of layers and the global table both write these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorRow:
    """A weight in the words of the spec; `{i}` stands for the layer.

    `shape` is "rows, cols" or "n"; each dimension is a sum of products of ModelSpec fields, such as
    "heads*nope + heads*v_head, rank".
    """

    hf: str  # name in the Hugging Face checkpoint
    name: str  # canonical name: llama.cpp's (gguf-py, tensor_mapping.py)
    shape: str
    quantize: bool  # may be stored in a block format; norms never are
