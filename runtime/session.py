"""One sequence on a model's weights: the latent cache and the lists of kernels that fill it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.cache_layout import CacheLayout, CacheType
from plm_edge.errors import DoesNotFit, Interrupted, UsageError
from plm_edge.kinds import ATTENTION
from plm_edge.native import kernels as native
from plm_edge.runtime.any_session import AnySession, Logits
from plm_edge.runtime.lists import Lists, Ops, Recording
from plm_edge.runtime.model import Model
from plm_edge.runtime.recorder import Activations
from plm_edge.token_bytes import token_bytes
from plm_edge.workspace import HEAD_ROWS, MAX_THREADS, PREFILL_CHUNK, Buffer, workspace


class Session(AnySession):
    """A session of our own kernels. The same calls give the same bits, on any number of threads."""

    def __init__(
        self,
        model: Model,
        n_ctx: int,
        cache_type: CacheType,
        threads: int,
        isa: str | None,
        head: str = "full",
        activations: Activations = "int16",
    ) -> None:
        super().__init__(model.spec, model.tokenizer, n_ctx, cache_type)
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"expected 1 to {MAX_THREADS} threads, found {threads}")
        self.model = model
        self.head, self.activations = head, activations
        self._attention = ATTENTION[self.spec.attention]
        self.threads, self._chunk = threads, min(PREFILL_CHUNK, n_ctx)
        self.isa, self._isa_at = native.find_isa(isa)
        layout = CacheLayout(self.spec.rank, self.spec.rope, cache_type)
        try:
            self._cache = layout.empty(n_ctx, self.spec.layers)
            self._buffers = _allocate(self._workspace())
        except (MemoryError, ValueError):
            raise DoesNotFit(
                f"expected memory for a context of {n_ctx} tokens, the system has less; "
                "use a shorter one (-c)"
            ) from None
        self._buffers["turns"][:] = self._attention.turns(self.spec, n_ctx)
        near, ends = native.asks_into(), native.alternates_ends()
        self._step, self._head_step = (
            native.Step(threads=threads, near=near, ends=ends) for _ in range(2)
        )
        self._cancel = ctypes.c_int(0)
        self.kernel_s = 0.0  # seconds spent in kernels, all calls so far
        self._lists = self._record()
        self._pool = native.Pool(threads)

    # ---- the calls

    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> Logits:
        """Append ids; the logits of the last (vocab,), or of all (len(ids), vocab)."""
        with self._running():
            checked = self._check_ids(ids, all_logits)
            rows = np.empty((len(checked) if all_logits else 1, self.spec.vocab), np.float32)
            for start in range(0, len(checked), self._chunk):
                chunk = checked[start : start + self._chunk]
                self._run_chunk(chunk)
                if all_logits:
                    self._run_head(rows[start : start + len(chunk)], 0, self._lists.head)
            if not all_logits:
                self._run_head(rows, len(chunk) - 1, self._lists.last_head)
        return rows if all_logits else rows[0]

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append ids; what the head multiplies at each of them (len(ids), d_model).

        Errors as in prefill.
        """
        with self._running():
            checked = self._check_ids(ids, all_logits=False)
            states = np.empty((len(checked), self.spec.d_model), np.float32)
            for start in range(0, len(checked), self._chunk):
                chunk = checked[start : start + self._chunk]
                self._run_chunk(chunk)
                self._run_head(states[start : start + len(chunk)], 0, self._lists.norm, "last")
        return states

    def step(self, token: int) -> Logits:
        """Append one id; the logits (vocab,) of what follows."""
        with self._running():
            checked = self._check_ids([token], all_logits=False)
            self._begin(checked)
            self._head_step.n_tokens, self._head_step.first = 1, 0
            self._run(self._lists.step, 0, len(self._lists.step))
            self._ids += checked
            logits: Logits = self._buffers["logits"][0].copy()
            return logits

    def cancel(self) -> None:
        """Stop the call that is running, from any thread; it raises Interrupted."""
        self._cancel.value = 1

    def _not_cancelled(self) -> None:
        self._cancel.value = 0

    def _release(self) -> None:
        self._pool.close()
        self._buffers, self._cache = {}, self._cache[:, :0]

    # ---- what it holds

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache, all layers, the whole context."""
        return int(self._cache.nbytes)

    @property
    def bytes_read(self) -> int:
        """Bytes of weights and cached rows that the last step read; UsageError once closed."""
        self._check_open()
        layout = CacheLayout(self.spec.rank, self.spec.rope, self.cache_type)
        rows = layout.bytes(self.n_past, self.spec.layers)
        units = self.spec.layers * self.spec.d_ffn
        idle = 1 - float(self._buffers["unit_rows"].sum()) / units
        tiles = self.model.screen_tiles if self.head == "screened" else None
        return rows + token_bytes(self.model.weights, self.spec, idle, tiles)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the buffers beside it (plm_edge/workspace.py)."""
        return sum(buffer.nbytes for buffer in self._workspace())

    def cached_rows_of(self, n: int) -> NDArray[Any]:
        """The rows of the first n positions, in use or not."""
        return self._cache[:, :n]

    # ---- running

    def _record(self) -> Lists:
        return Recording(
            self.model,
            self._isa_at,
            self._step,
            self._head_step,
            self._buffers,
            self._cache,
            self.cache_type,
            self.activations,
        ).lists(screened=self.head == "screened")

    def _workspace(self) -> list[Buffer]:
        screened = self.model.screen_tiles is not None
        return workspace(self.spec, self.n_ctx, self._chunk, self.threads, screened)

    def _begin(self, ids: Sequence[int]) -> None:
        self._buffers["ids"][: len(ids)] = ids
        self._buffers["unit_rows"][:] = 0
        self._step.n_past, self._step.n_tokens = self.n_past, len(ids)

    def _run_chunk(self, ids: list[int]) -> None:
        """The layers over a chunk of ids; x holds their last hidden states."""
        self._begin(ids)
        if len(ids) <= native.FEW:
            ops = self._lists.few
        elif self._attention.expanding_pays(self.spec, self.n_past, len(ids)):
            ops = self._lists.expanded
        else:
            ops = self._lists.absorbed
        # Layer by layer, so that Python sees a Ctrl-C between two of them.
        each = (len(ops) - 1) // self.spec.layers
        for first in (0, *range(1, len(ops), each)):
            self._run(ops, first, 1 if first == 0 else first + each)
        self._ids += ids

    def _run_head(self, rows: Logits, first: int, head: Ops, out: str = "logits") -> None:
        """What `head` makes of the hidden states x[first : first + len(rows)] into rows."""
        for start in range(0, len(rows), HEAD_ROWS):
            n = min(HEAD_ROWS, len(rows) - start)
            self._head_step.n_tokens, self._head_step.first = n, first + start
            self._run(head, 0, len(head))
            rows[start : start + n] = self._buffers[out][:n]

    def _run(self, ops: Ops, first: int, last: int) -> None:
        started = time.perf_counter()
        complete = self._pool.run(ops, first, last, self._cancel)
        self.kernel_s += time.perf_counter() - started
        if not complete:
            raise Interrupted("stopped before the answer was complete")


def _allocate(wanted: list[Buffer]) -> dict[str, NDArray[Any]]:
    """Every buffer, from one block, each on a cache line."""
    block, at, buffers = native.aligned(sum(b.nbytes for b in wanted)), 0, {}
    for buffer in wanted:
        size = int(np.prod(buffer.shape)) * np.dtype(buffer.dtype).itemsize
        buffers[buffer.name] = block[at : at + size].view(buffer.dtype).reshape(buffer.shape)
        at += buffer.nbytes
    return buffers
