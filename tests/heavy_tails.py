"""A synth model whose activations have heavy tails, as those of trained models do.

The weights of `plm-edge synth` meet activations that are normal: each value of a block of 32 is
about as large as the others, and rounding a block to 8 bits costs little. In trained models a few
channels are tens of times larger than the rest (arXiv 2208.07339, section 4; arXiv 2211.10438,
figure 4), and squares of ReLUs are spread over orders of magnitude. Here every vector that meets a
matrix gets log-normal gains g by channel: what enters q and kv_a, the latent, the heads' outputs,
what enters ffn_up, and the units. The columns of the matrix behind are multiplied by k / sqrt(g),
with k such that its outputs keep their variance: half of a gain is taken back, so that a large
channel both counts for more and leaves coarser steps to its neighbours. This is SmoothQuant's
identity with its middle setting (arXiv 2211.10438, equation 4, alpha 0.5) the other way round.

The gains are part of the weights before anything is quantized: every engine gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge import devices
from plm_edge.bundle import MODEL_FILE
from plm_edge.exporters import write_bundle
from plm_edge.exporters.source import Source, quantizing
from plm_edge.exporters.synth_vocabulary import made_up_vocabulary
from plm_edge.exporters.synth_weights import CONSTANT, SynthWeights
from plm_edge.plan import make_plan
from plm_edge.spec import ModelSpec
from plm_edge.tokenizer import Tokenizer

Float32 = NDArray[np.float32]

# PLM's head and latent widths. Merges of the vocabulary: 256 bytes and 3 specials fill the rest.
SPEC = ModelSpec(
    layers=4,
    d_model=512,
    heads=4,
    d_ffn=2048,
    nope=128,
    rope=64,
    v_head=128,
    rank=512,
    vocab=2048,
    n_ctx_train=512,
    rope_theta=1e5,
    eps=1e-6,
    latent_eps=1e-6,
    tied=True,
)
MERGES = 1700
ZEROS = 0.88  # asked of synth; the gains leave some 0.75 of the feed-forward units idle
SPREAD = 1.4  # standard deviation of log g: the largest of 512 is some 70 times the middle one


class HeavyTails:
    """Reads like a checkpoint."""

    def __init__(self, spec: ModelSpec = SPEC, seed: int = 0) -> None:
        self.spec = spec
        self._plain = SynthWeights(spec, ZEROS, seed)
        self._seed = seed

    def gains(self, layer: str, place: str) -> Float32:
        """Of the channels that enter `place` in `layer` ("blk.3"): attn_q, attn_kv_b, ..."""
        spec = self.spec
        n = {
            "attn_q": spec.d_model,  # and attn_kv_a_mqa
            "attn_kv_b": spec.rank,
            "attn_output": spec.heads * spec.v_head,
            "ffn_up": spec.d_model,
            "ffn_down": spec.d_ffn,
        }[place]
        rng = np.random.default_rng([self._seed, *f"{layer} {place}".encode()])
        gains = np.exp(SPREAD * rng.standard_normal(n)).astype(np.float32)
        if n == spec.d_model and place != "attn_output":
            gains[:CONSTANT] = 1.0  # what sets the share of idle units
        return gains

    def read(self, name: str) -> Float32:
        """A whole tensor in its shape."""
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        x = self._plain.read(name)
        if kind in _NORMS:
            return x * self.gains(layer, _NORMS[kind])
        if kind not in _COLUMNS:
            return x
        x = x * _taken_back(self.gains(layer, _COLUMNS[kind]))
        if kind == "ffn_up":  # a unit is a square
            x *= np.sqrt(self.gains(layer, "ffn_down"))[:, None]
        if kind == "attn_kv_b":  # per head [keys: nope | values: v_head]
            by_head = x.reshape(self.spec.heads, -1, self.spec.rank)
            values = by_head[:, self.spec.nope :]
            values *= self.gains(layer, "attn_output").reshape(self.spec.heads, -1, 1)
        return x

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of a matrix."""
        return self.read(name)[start:stop]


_NORMS: Mapping[str, str] = {
    "attn_norm": "attn_q",
    "attn_kv_a_norm": "attn_kv_b",
    "ffn_norm": "ffn_up",
}
_COLUMNS: Mapping[str, str] = {
    "attn_q": "attn_q",
    "attn_kv_a_mqa": "attn_q",
    "attn_kv_b": "attn_kv_b",
    "attn_output": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
}


def _taken_back(gains: Float32) -> Float32:
    """For each gain k / sqrt(gain), with k such that a product with them keeps its variance."""
    back: Float32 = np.sqrt(len(gains) / gains.sum(dtype=np.float64) / gains).astype(np.float32)
    return back


def write_heavy_tails(out: Path, quant: str, spec: ModelSpec = SPEC, seed: int = 0) -> Path:
    """A bundle in layout latent; its model file."""
    tokenizer = Tokenizer(made_up_vocabulary(MERGES))
    source = Source(
        spec,
        {"name": "heavy-tails", "seed": seed},
        tokenizer.to_gguf(spec.vocab),
        quantizing(HeavyTails(spec, seed)),
        lambda: None,
    )
    write_bundle(source, make_plan(spec, devices.detect(), quant), out)
    return out / MODEL_FILE
