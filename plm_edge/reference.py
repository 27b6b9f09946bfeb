"""The model in float64 numpy, slow and true: every faster path is compared with this one.

    x = embedding[ids]
    for each layer:  x += attention(rms_norm(x));  x += ffn(rms_norm(x))
    logits = head @ rms_norm(x)

Attention and feed-forward come from the layer's kinds (plm_edge/kinds/). There is no cache: each
call computes the whole sequence. `absorbed=True` reads only what a latent cache would hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import FileFormatError, UsageError
from plm_edge.kinds import ATTENTION, FFN
from plm_edge.kinds.norm import rms_norm
from plm_edge.kinds.seen import Seen, unseen
from plm_edge.spec import ModelSpec
from plm_edge.tensors import head_name, tensor_table

Array = NDArray[Any]
Float64 = NDArray[np.float64]

_HEAD_ROWS = 8192  # rows of the head widened to float64 at a time: 134 MB at d_model 2048


class Weights(Protocol):
    """The part of an open checkpoint that is needed here: whole tensors by canonical name."""

    @property
    def spec(self) -> ModelSpec: ...

    def read(self, name: str) -> NDArray[np.float32]: ...


class _ReadOnDemand(Mapping[str, Array]):
    """A checkpoint's tensors by canonical name, each read when asked for and not kept."""

    def __init__(self, checkpoint: Weights) -> None:
        self._checkpoint = checkpoint
        self._table = tensor_table(checkpoint.spec)

    def __getitem__(self, name: str) -> Array:
        return self._checkpoint.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class Reference:
    """One model; `weights` maps canonical names to arrays of the shapes in the tensor table."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Array]) -> None:
        self.spec = spec
        self._table = tensor_table(spec)
        self._weights = weights

    @classmethod
    def from_checkpoint(cls, checkpoint: Weights) -> Reference:
        """The weights stay in the checkpoint: at most one layer or the head is in memory."""
        return cls(checkpoint.spec, _ReadOnDemand(checkpoint))

    def logits(self, ids: Sequence[int], absorbed: bool = False) -> Float64:
        """Ids (T) -> (T, vocab): row t holds the logits of the token after ids[t]."""
        x = self.embed(ids)
        for i in range(self.spec.layers):
            x = self.layer(self.layer_weights(i), x, absorbed=absorbed)
        return self.head(x)

    def ffn_zeros(self, ids: Sequence[int]) -> Float64:
        """Ids (T) -> (layers,): the share of feed-forward units that are exactly zero."""
        zeros: list[float] = []

        def seen(name: str, met: Array) -> None:
            if name == "ffn_down":
                zeros.append(float(np.mean(met == 0.0)))

        x = self.embed(ids)
        for i in range(self.spec.layers):
            x = self.layer(self.layer_weights(i), x, seen)
        return np.array(zeros)

    def embed(self, ids: Sequence[int]) -> Float64:
        """Ids (T) -> (T, d_model)."""
        rows = np.asarray(ids, dtype=np.int64)
        if not len(rows) or rows.min() < 0 or rows.max() >= self.spec.vocab:
            raise UsageError(f"token ids must be one or more of 0..{self.spec.vocab - 1}")
        return self._weight("token_embd.weight")[rows].astype(np.float64)

    def layer(
        self, w: Mapping[str, Array], x: Float64, seen: Seen = unseen, absorbed: bool = False
    ) -> Float64:
        """One layer of weights `w` on x (T, d_model) -> (T, d_model).

        `seen` is told what each matrix multiplies (where attention is expanded).
        """
        spec = self.spec
        attention, ffn = ATTENTION[spec.attention], FFN[spec.ffn]
        h = rms_norm(x, w["attn_norm"], spec.eps)
        x = x + (
            attention.absorbed(h, w, spec) if absorbed else attention.expanded(h, w, spec, seen)
        )
        h = rms_norm(x, w["ffn_norm"], spec.eps)
        units = ffn.units(h, w)
        seen("ffn_up", h)
        seen("ffn_down", units)
        y: Float64 = x + ffn.output(units, w)
        return y

    def head_input(self, x: Float64) -> Float64:
        """What the head multiplies, of the last layer's x (T, d_model)."""
        return rms_norm(x, self._weight("output_norm.weight"), self.spec.eps)

    def head(self, x: Float64) -> Float64:
        """Logits (T, vocab) of the last layer's x (T, d_model)."""
        x = self.head_input(x)
        head = self._weight(head_name(self.spec))
        blocks = [x @ head[row : row + _HEAD_ROWS].T for row in range(0, len(head), _HEAD_ROWS)]
        return np.concatenate(blocks, axis=-1)

    def layer_weights(self, i: int) -> dict[str, Array]:
        """The weights of layer i by the middle of their names: "attn_q", "ffn_up", ..."""
        names = [name for name in self._table if name.startswith(f"blk.{i}.")]
        return {name.split(".")[2]: self._weight(name) for name in names}

    def _weight(self, name: str) -> Array:
        weight, shape = self._weights[name], self._table[name].shape
        if weight.shape != shape:
            raise FileFormatError(f"{name} must have shape {shape}, found {weight.shape}")
        return weight
