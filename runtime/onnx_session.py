"""One sequence in onnxruntime: its latent rows lie in one buffer that the graph writes into.

A call binds the first `n_past + tokens` rows of each layer as input and as output, so nothing is
copied: ScatterND finds both at one address and writes the new rows only.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge import onnx_names as names
from plm_edge.cache_layout import CacheLayout
from plm_edge.errors import DoesNotFit, Interrupted, PlmEdgeError, UsageError
from plm_edge.runtime.any_session import AnySession, Logits
from plm_edge.runtime.onnx_model import CACHE_TYPE, OnnxModel, onnxruntime

CHUNK = 256  # tokens of a prompt at once: the scores of all their heads are in memory together


class OnnxSession(AnySession):
    """A session of an ONNX bundle."""

    def __init__(self, model: OnnxModel, n_ctx: int) -> None:
        super().__init__(model.spec, model.tokenizer, n_ctx, CACHE_TYPE)
        if n_ctx > self.spec.n_ctx_train:
            raise UsageError(
                f"backend onnx: expected at most {self.spec.n_ctx_train} tokens (what the "
                f"graph can turn), found a context of {n_ctx}; use the native backend"
            )
        self.model, self.threads = model, model.threads
        self._ort = onnxruntime()
        self._inference = model.inference
        layout = CacheLayout(self.spec.rank, self.spec.rope, CACHE_TYPE)
        try:
            self._rows = layout.empty(n_ctx, self.spec.layers)
        except (MemoryError, ValueError):
            raise DoesNotFit(
                f"expected memory for a context of {n_ctx} tokens, the system has less; "
                "use a shorter one (-c)"
            ) from None
        self._options = self._ort.RunOptions()

    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> Logits:
        """Append ids; the logits of the last (vocab,), or of all (len(ids), vocab)."""
        with self._running():
            checked = self._check_ids(ids, all_logits)
            rows = np.empty((len(checked) if all_logits else 1, self.spec.vocab), np.float32)
            for start in range(0, len(checked), CHUNK):
                chunk = checked[start : start + CHUNK]
                asked = rows[start : start + len(chunk)] if all_logits else rows
                self._run(chunk, asked)
        return rows if all_logits else rows[0]

    def step(self, token: int) -> Logits:
        """Append one id; the logits (vocab,) of what follows."""
        with self._running():
            row = np.empty((1, self.spec.vocab), np.float32)
            self._run(self._check_ids([token], all_logits=False), row)
        logits: Logits = row[0]
        return logits

    def cancel(self) -> None:
        """Stop the call that is running, from any thread; it raises Interrupted."""
        self._options.terminate = True

    def cached_rows_of(self, n: int) -> NDArray[Any]:
        """The rows of the first n positions, in use or not: (layers, n, row), a view."""
        return self._rows[:, :n]

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache, all layers, the whole context."""
        return int(self._rows.nbytes)

    def _not_cancelled(self) -> None:
        self._options = self._ort.RunOptions()

    def _release(self) -> None:
        self._inference, self._rows = None, self._rows[:, :0]

    def _run(self, ids: list[int], logits: Logits) -> None:
        """Append ids; logits (n, vocab) receives those of the last n."""
        binding = self._bound(ids, logits)
        error = self._called(binding) if len(ids) == 1 else self._called_apart(binding)
        if error is not None and self._options.terminate:
            raise Interrupted("stopped before the answer was complete")
        if error is not None:
            raise PlmEdgeError(f"onnxruntime failed: {str(error).splitlines()[0][:200]}") from error
        self._ids += ids

    def _called(self, binding: Any) -> Exception | None:
        """Run; what onnxruntime raised, if anything."""
        try:
            self._inference.run_with_iobinding(binding, self._options)
        except Exception as why:  # its own family has no common base but this
            return why
        return None

    def _called_apart(self, binding: Any) -> Exception | None:
        """Run in a thread of its own, and be there for signals.

        A chunk takes seconds, and as long as the main thread is inside onnxruntime, Python handles
        no signal: a Ctrl-C would wait.
        """
        errors: list[Exception | None] = []
        begin, done = threading.Event(), threading.Event()

        def run() -> None:
            begin.wait()  # a signal during start() leaves it here, and our buffers alone
            errors.append(self._called(binding))
            done.set()

        stopped: BaseException | None = None
        try:
            threading.Thread(target=run, name="onnxruntime", daemon=True).start()
        except RuntimeError:  # the system gives no more threads: a Ctrl-C waits
            return self._called(binding)
        while not done.is_set():
            try:
                begin.set()
                done.wait()  # not join, which takes an interrupted wait for the thread's end
            except BaseException as why:  # of a signal's handler
                stopped = why
                self._options.terminate = True  # and wait on: it writes into our buffers
        if stopped is not None:
            raise stopped
        return errors[0]

    def _bound(self, ids: list[int], logits: Logits) -> Any:
        """What the call reads and writes: small arrays, and the buffers where they lie."""
        binding = self._inference.io_binding()
        total, count = self.n_past + len(ids), len(logits)
        for name, value in (
            (names.IDS, np.array([ids], np.int64)),
            (names.POSITIONS, np.arange(self.n_past, total, dtype=np.int64)[None]),
            (names.LOGIT_ROWS, np.arange(len(ids) - count, len(ids), dtype=np.int64)),
        ):
            binding.bind_cpu_input(name, value)
        shape = (1, total, self._rows.shape[2])
        for layer in range(self.spec.layers):
            before, after = names.rows(layer)
            place = self._rows[layer].ctypes.data
            binding.bind_input(before, "cpu", 0, np.float32, shape, place)
            binding.bind_output(after, "cpu", 0, np.float32, shape, place)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding
