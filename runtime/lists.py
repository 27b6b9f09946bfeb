"""The lists of kernels of one session: recorded once, replayed at every call."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from plm_edge.cache_layout import CacheType
from plm_edge.kinds import ATTENTION, FFN
from plm_edge.native import kernels as native
from plm_edge.runtime.model import Model
from plm_edge.runtime.recorder import Activations, KernelRecorder, MappedWeight

Ops = ctypes.Array[native.Op]


@dataclass(frozen=True)
class Lists:
    """What is run when: the layers, the head behind them, or both."""

    step: Ops  # one token: layers and head
    few: Ops  # the layers for up to native.FEW tokens
    absorbed: Ops  # the layers for a chunk, attention from the cached rows alone
    expanded: Ops  # the same with keys and values
    norm: Ops  # the output norm alone
    head: Ops  # the full head
    last_head: Ops  # the head for the last token: screened, if the session's is
    kept: tuple[object, ...]  # what the kernels point at


@dataclass(frozen=True)
class Recording:
    """What a session has that its kernels point at. `cache` (layers, n_ctx, row)."""

    model: Model
    isa: int  # address of the instruction set
    layers_step: native.Step
    head_step: native.Step
    buffers: Mapping[str, NDArray[Any]]
    cache: NDArray[Any]
    cache_type: CacheType
    activations: Activations

    def lists(self, screened: bool) -> Lists:
        """All lists; `screened`: the head for the last token is the screened one."""
        few, head = self._layers(few=True), self._head(screened=False)
        last = self._head(screened=True) if screened else head
        absorbed, expanded = (self._layers(expanded=choice) for choice in (False, True))
        return Lists(
            step=native.op_array(few.ops + last.ops),
            few=native.op_array(few.ops),
            absorbed=native.op_array(absorbed.ops),
            expanded=native.op_array(expanded.ops),
            norm=native.op_array(head.ops[:1]),
            head=native.op_array(head.ops),
            last_head=native.op_array(last.ops),
            kept=tuple(k.kept for k in (few, head, last, absorbed, expanded)),
        )

    def _recorder(
        self, step: native.Step, few: bool = False, expanded: bool = False
    ) -> KernelRecorder:
        return KernelRecorder(
            self.model.spec,
            self.isa,
            step,
            self.buffers,
            self.cache_type,
            few,
            expanded,
            self.activations,
        )

    def _layers(self, few: bool = False, expanded: bool = False) -> KernelRecorder:
        k, spec = self._recorder(self.layers_step, few, expanded), self.model.spec
        k.embed(self.model.weights["token_embd.weight"], "ids", "x")
        for i in range(spec.layers):
            w: dict[str, MappedWeight] = dict(self.model.layer(i))
            ATTENTION[spec.attention].record(k, w, self.cache[i], spec)
            FFN[spec.ffn].record(k, w)
        return k

    def _head(self, screened: bool) -> KernelRecorder:
        k, model = self._recorder(self.head_step), self.model
        k.norm("x", model.weights["output_norm.weight"], "last")
        if screened:
            assert model.screen_tiles is not None
            k.screened_head(model.head, model.weights, model.screen_tiles, "last", "logits")
        else:
            k.product(model.head, "last", "logits")
        return k
