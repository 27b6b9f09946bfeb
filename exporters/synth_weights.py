"""Seeded weights of true shape whose feed-forward units are zero in a chosen share.

How the share comes about. The first 32 values of every embedding row are 1, and no layer writes
to them: the residual stream carries a constant. All other values of an embedding row are normal,
and what the layers add is normal and nearly independent of it. So for one unit of `ffn_up`, whose
row is

    [ -offset, ... 32 times | normal values of variance 1 / d_model ]

the input of the squared ReLU is  spread * g - shift  with g standard normal over the units, and a
share `zeros` of the units is not positive if shift = spread * quantile(zeros). Spread and shift
depend on the length of the stream in that layer, which is known beforehand: each attention and each
feed-forward adds a fixed share of variance. Which units fire is drawn anew by each token.

The constant takes whole blocks of 32, so Q8_0 and Q4_0 hold it (and the zero rows that keep it
constant) almost exactly and the share survives quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import UsageError
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

Float32 = NDArray[np.float32]

CONSTANT = 32  # leading values of the stream that are 1 in every token and layer
BLOCK_ROWS = 256  # rows drawn from one state of the generator
NORM_SPREAD = 0.1  # standard deviation of norm weights around 1
# Variance that all layers together add to a stream of variance 1.
ATTENTION_VARIANCE = 0.5  # were each token to attend to itself alone
FFN_VARIANCE = 1.0
# What is left of the first when values are averaged over some tens of tokens, as scores of standard
# deviation 2 do (measured with the shape plm-1.8b at 64 tokens).
ATTENTION_KEPT = 0.3
SCORE_SPREAD = 2.0  # standard deviation of attention scores
LOGIT_SPREAD = 3.0  # standard deviation of logits


@dataclass(frozen=True)
class _FfnScale:
    """How one layer's feed-forward is scaled."""

    offset: float  # minus the leading values of an ffn_up row
    down: float  # standard deviation of ffn_down


class SynthWeights:
    """Reads like a checkpoint; a row block depends on seed, tensor name and row numbers only."""

    def __init__(self, spec: ModelSpec, zeros: float, seed: int) -> None:
        if not 0.0 < zeros < 1.0:
            raise UsageError(f"--zeros is {zeros}, expected a share between 0 and 1")
        if seed < 0:
            raise UsageError(f"--seed is {seed}, expected 0 or more")
        if spec.d_model <= CONSTANT or not spec.tied:
            raise UsageError(f"a shape for synth is tied and wider than {CONSTANT}")
        self.spec = spec
        self._seed = seed
        self._table = tensor_table(spec)
        self._ffn = [_ffn_scale(spec, zeros, layer) for layer in range(spec.layers)]

    def read(self, name: str) -> Float32:
        """A whole tensor in its shape: (n,) or (rows, cols)."""
        shape = self._table[name].shape
        return self.read_rows(name, 0, shape[0]) if len(shape) == 2 else self._norm(name, *shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of a matrix: (stop - start, cols)."""
        rows, cols = self._table[name].shape
        if not 0 <= start <= stop <= rows:
            raise UsageError(f"{name} has rows 0..{rows - 1}, asked for {start}..{stop - 1}")
        out = np.empty((stop - start, cols), np.float32)
        for first in range(start - start % BLOCK_ROWS, stop, BLOCK_ROWS):
            block = self._block(name, first, min(BLOCK_ROWS, rows - first), cols)
            low, high = max(start, first), min(stop, first + len(block))
            out[low - start : high - start] = block[low - first : high - first]
        return out

    def _norm(self, name: str, n: int) -> Float32:
        drawn: Float32 = self._normal(name, 0, (1, n))[0]
        weight: Float32
        if name == "output_norm.weight":
            # Random signs, so that the tied head does not always find the last token again.
            scale = LOGIT_SPREAD / math.sqrt(self.spec.d_model - CONSTANT)
            weight = np.where(drawn < 0.0, -scale, scale).astype(np.float32)
            weight[:CONSTANT] = 0.0
            return weight
        weight = np.float32(1.0) + np.float32(NORM_SPREAD) * drawn
        if name.endswith("ffn_norm.weight"):
            weight[:CONSTANT] = 1.0
        return weight

    def _block(self, name: str, first: int, rows: int, cols: int) -> Float32:
        kind, layer = _kind_and_layer(name)
        block = self._normal(name, first, (rows, cols))
        block *= np.float32(self._spread(kind, layer))
        if kind == "token_embd":
            block[:, :CONSTANT] = 1.0
        elif kind == "ffn_up":
            block[:, :CONSTANT] = -self._ffn[layer].offset
        elif kind in ("attn_output", "ffn_down"):
            block[: max(0, CONSTANT - first)] = 0.0
        return block

    def _spread(self, kind: str, layer: int) -> float:
        """Standard deviation of a matrix' values."""
        spec = self.spec
        if kind == "token_embd":
            return 1.0
        if kind == "attn_output":
            return math.sqrt(ATTENTION_VARIANCE / spec.layers / (spec.heads * spec.v_head))
        if kind == "ffn_down":
            return self._ffn[layer].down
        unit = 1.0 / math.sqrt(self._table[f"blk.{layer}.{kind}.weight"].shape[1])
        return SCORE_SPREAD * unit if kind == "attn_q" else unit

    def _normal(self, name: str, first: int, shape: tuple[int, int]) -> Float32:
        state = np.random.SFC64([self._seed, first, *name.encode()])
        return np.random.Generator(state).standard_normal(shape, dtype=np.float32)


def _kind_and_layer(name: str) -> tuple[str, int]:
    """("ffn_up", 3) of "blk.3.ffn_up.weight"; layer -1 outside the layers."""
    parts = name.split(".")
    return (parts[2], int(parts[1])) if parts[0] == "blk" else (parts[0], -1)


def _ffn_scale(spec: ModelSpec, zeros: float, layer: int) -> _FfnScale:
    """The formulas of the text above."""
    free = spec.d_model - CONSTANT  # values of the stream that differ between tokens
    norm = 1.0 + NORM_SPREAD**2  # mean square of the ffn_norm weights
    attention = ATTENTION_KEPT * ATTENTION_VARIANCE * (layer + 1) / spec.layers
    variance = 1.0 + attention + FFN_VARIANCE * layer / spec.layers
    rms = math.sqrt((CONSTANT + free * variance) / spec.d_model)
    spread = math.sqrt(norm * free / spec.d_model * variance) / rms
    t = NormalDist().inv_cdf(zeros)
    offset = t * spread * rms / CONSTANT
    # Fourth moment of what a standard normal g has above t: the mean square of relu(g - t)^2.
    above = 1.0 - NormalDist().cdf(t)
    fourth = (t**4 + 6 * t**2 + 3) * above - (t**3 + 5 * t) * NormalDist().pdf(t)
    unit = spread**2 * math.sqrt(fourth * spec.d_ffn)
    return _FfnScale(offset, math.sqrt(FFN_VARIANCE / spec.layers) / unit)
