"""The two graphs of a bundle in plain onnxruntime, without our session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from plm_edge import onnx_names as names
from plm_edge.bundle import read_bundle
from plm_edge.exporters.onnx import arrays
from plm_edge.formats import dequantize, quantize
from plm_edge.reference import Reference
from plm_edge.spec import ModelSpec

Array = np.ndarray[Any, Any]


def inference(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Growing:
    """model.onnx: what comes out as present goes in as past."""

    FILE = names.MODEL

    def __init__(self, folder: Path, batch: int = 1) -> None:
        self.spec, self.batch, self.length = read_bundle(folder).spec, batch, 0
        self._run = inference(folder / names.MODEL).run
        widths = names.halves(self.spec.rank + self.spec.rope)
        self.past = [
            np.zeros((batch, 1, 0, width), np.float32)
            for _ in range(self.spec.layers)
            for width in widths
        ]

    def feed(self, ids: Array, mask: Array | None = None, positions: Array | None = None) -> Array:
        """Ids (batch, tokens) -> logits (batch, tokens, vocab)."""
        self.length += ids.shape[1]
        places = np.arange(self.length - ids.shape[1], self.length)
        given = {
            names.IDS: ids,
            names.MASK: np.ones((self.batch, self.length), np.int64) if mask is None else mask,
            names.POSITIONS: np.tile(places, (self.batch, 1)) if positions is None else positions,
        }
        keys = [key for layer in range(self.spec.layers) for key in names.past(layer)]
        logits, *self.past = self._run(None, given | dict(zip(keys, self.past, strict=True)))
        return logits


class InPlace:
    """model_in_place.onnx on buffers that are handed in whole."""

    FILE = names.IN_PLACE

    def __init__(self, folder: Path, batch: int, total: int) -> None:
        self.spec, self.batch, self.length = read_bundle(folder).spec, batch, 0
        self._run = inference(folder / names.IN_PLACE).run
        row = self.spec.rank + self.spec.rope
        self.rows = [np.zeros((batch, total, row), np.float32) for _ in range(self.spec.layers)]

    def feed(self, ids: Array) -> Array:
        """Ids (batch, tokens) -> logits (batch, tokens, vocab)."""
        batch, tokens = ids.shape
        places = np.arange(self.length, self.length + tokens)
        self.length += tokens
        given = {
            names.IDS: ids,
            names.POSITIONS: np.tile(places, (batch, 1)),
            names.LOGIT_ROWS: np.arange(batch * tokens),
        }
        given |= {names.rows(k)[0]: rows for k, rows in enumerate(self.rows)}
        logits, *self.rows = self._run(None, given)
        return np.reshape(logits, (batch, tokens, -1))


def in_pieces(run: Any, ids: Array, ends: Sequence[int]) -> Array:
    """Logits of ids (batch, tokens), fed in pieces that end at `ends`."""
    starts = [0, *ends[:-1]]
    return np.concatenate([run.feed(ids[:, a:b]) for a, b in zip(starts, ends, strict=True)], 1)


def stored_weights(weights: dict[str, Array], spec: ModelSpec, folder: Path) -> Reference:
    """The reference on the weights as a bundle's ONNX file stores them."""
    formats, stored = read_bundle(folder).plan["formats"], {}
    for name, values in weights.items():
        if not name.endswith("attn_kv_b.weight"):
            stored[name] = rounded(formats[name], values)
            continue
        k_b, v_b = arrays.heads_of(spec, values)  # (heads, in, out)
        parts = [
            rounded(formats[name.replace("attn_kv_b", part)], product.transpose(0, 2, 1))
            for part, product in (("attn_k_b", k_b), ("attn_v_b", v_b))
        ]  # (heads, out, in): blocks run along what is summed over
        both = np.concatenate([parts[0].transpose(0, 2, 1), parts[1]], axis=1)
        stored[name] = both.reshape(values.shape)
    return Reference(spec, stored)


def rounded(fmt: str, values: Array) -> Array:
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    return dequantize(fmt, quantize(fmt, rows), rows.shape[1]).reshape(values.shape)
