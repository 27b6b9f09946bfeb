"""One sequence on a model's weights: the latent cache and the lists of kernels that fill it."""

from __future__ import annotations

import ctypes
import operator
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.cache_layout import CacheLayout, CacheType
from plm_edge.errors import ContextOverflow, DoesNotFit, Interrupted, SessionBusy, UsageError
from plm_edge.kinds import ATTENTION
from plm_edge.native import kernels as native
from plm_edge.runtime import session_file
from plm_edge.runtime.lists import Lists, Ops, Recording
from plm_edge.runtime.model import Model
from plm_edge.runtime.recorder import Activations
from plm_edge.runtime.traffic import step_bytes
from plm_edge.workspace import HEAD_ROWS, MAX_THREADS, PREFILL_CHUNK, Buffer, workspace

Logits = NDArray[np.float32]
ALL_LOGITS_BYTES = 2**30  # prefill(all_logits=True) refuses more than 1 GiB of logits


class Session:
    """Prefill and step append at `n_past`; a call that fails or is interrupted leaves it as it was.

    One thread at a time: a second one gets SessionBusy. The same calls give the same bits, on any
    number of threads.
    """

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
        _check_counts(n_ctx, threads)
        self.model, self.spec, self.tokenizer = model, model.spec, model.tokenizer
        self.head, self.activations = head, activations
        self._attention = ATTENTION[self.spec.attention]
        self.n_ctx, self.threads, self._chunk = n_ctx, threads, min(PREFILL_CHUNK, n_ctx)
        self.isa, self._isa_at = native.find_isa(isa)
        self.cache_type = cache_type
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
        self._ids: list[int] = []
        self._step, self._head_step = native.Step(), native.Step()
        self._cancel = ctypes.c_int(0)
        self.kernel_s = 0.0  # seconds spent in kernels, all calls so far
        self._busy = threading.Lock()
        self._lists = self._record()
        self._pool: native.Pool | None = native.Pool(threads)

    # ---- the calls

    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> Logits:
        """Append ids; the logits of the last (vocab,), or of all (len(ids), vocab).

        Raises UsageError for no ids, an id outside the vocabulary or more logits than 1 GiB,
        ContextOverflow where they do not fit, both before anything is appended; Interrupted when
        `cancel` was called.
        """
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
        """Append one id; the logits (vocab,) of what follows. Errors as in prefill."""
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

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens."""
        with self._running():
            if not 0 <= n <= self.n_past:
                raise UsageError(f"expected 0 to {self.n_past} tokens to keep, found {n}")
            del self._ids[n:]

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def save(self, path: Path | str) -> None:
        """Write the ids and cached rows to a file that belongs to these weights."""
        with self._running():
            session_file.write(Path(path), self)

    def restore(self, path: Path | str) -> None:
        """Take over what `save` wrote; FileFormatError for another model's or a torn file."""
        with self._running():
            self._ids = session_file.read(Path(path), self)

    def close(self) -> None:
        """End the threads and drop the cache; every later call but this raises UsageError."""
        if self._pool is None:
            return
        with self._running():
            self._pool.close()
            self._pool = None
            self._buffers, self._cache = {}, self._cache[:, :0]

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # ---- what it holds

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return tuple(self._ids)

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
        unit_rows = self._buffers["unit_rows"]
        tiles = self.model.screen_tiles if self.head == "screened" else None
        return rows + step_bytes(self.model.weights, self.spec, unit_rows, tiles)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the buffers beside it (plm_edge/workspace.py)."""
        return sum(buffer.nbytes for buffer in self._workspace())

    def cached_rows(self) -> NDArray[Any]:
        """The rows in use as stored: (layers, n_past, row), a view."""
        return self.cached_rows_of(self.n_past)

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
        assert self._pool is not None
        started = time.perf_counter()
        complete = self._pool.run(ops, first, last, self._cancel)
        self.kernel_s += time.perf_counter() - started
        if not complete:
            raise Interrupted("stopped before the answer was complete")

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One thread at a time; what fails leaves the session as it was."""
        if not self._busy.acquire(blocking=False):
            raise SessionBusy("expected one thread in a session, found a second; give it its own")
        try:
            self._check_open()
            self._cancel.value = 0
            before = len(self._ids)
            try:
                yield
            except BaseException:
                del self._ids[before:]
                raise
        finally:
            self._busy.release()

    def _check_open(self) -> None:
        if self._pool is None:
            raise UsageError("expected an open session, found a closed one; load it again")

    def _check_ids(self, ids: Sequence[int], all_logits: bool) -> list[int]:
        try:
            checked = [operator.index(i) for i in ids]
        except TypeError as why:
            raise UsageError(f"expected token ids, found something else ({why})") from None
        if not checked:
            raise UsageError("expected at least one token id, found none")
        wrong = next((i for i in checked if not 0 <= i < self.spec.vocab), None)
        if wrong is not None:
            raise UsageError(f"expected ids of 0 to {self.spec.vocab - 1}, found {wrong}")
        if self.n_past + len(checked) > self.n_ctx:
            raise ContextOverflow(
                f"expected at most {self.n_ctx} tokens, found {self.n_past} + {len(checked)}; "
                "shorten the text or load with a larger context (-c)"
            )
        if all_logits and 4 * len(checked) * self.spec.vocab > ALL_LOGITS_BYTES:
            most = ALL_LOGITS_BYTES // (4 * self.spec.vocab)
            raise UsageError(
                f"expected at most {most} tokens with all_logits (1 GiB), found {len(checked)}; "
                "call prefill for parts of them"
            )
        return checked


def _allocate(wanted: list[Buffer]) -> dict[str, NDArray[Any]]:
    """Every buffer, from one block, each on a cache line."""
    block, at, buffers = native.aligned(sum(b.nbytes for b in wanted)), 0, {}
    for buffer in wanted:
        size = int(np.prod(buffer.shape)) * np.dtype(buffer.dtype).itemsize
        buffers[buffer.name] = block[at : at + size].view(buffer.dtype).reshape(buffer.shape)
        at += buffer.nbytes
    return buffers


def _check_counts(n_ctx: int, threads: int) -> None:
    if n_ctx < 1:
        raise UsageError(f"expected a context of at least 1 token, found {n_ctx}")
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"expected 1 to {MAX_THREADS} threads, found {threads}")
