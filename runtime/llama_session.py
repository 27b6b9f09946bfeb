"""One sequence in llama.cpp: for GPUs, and for the layouts that it runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from plm_edge.cache_layout import CacheType
from plm_edge.errors import FileFormatError, UnsupportedError, UsageError
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.gguf_tensors import formats_of, tensors_of
from plm_edge.llama_cpp import CACHE_TYPES, FLASH_ATTENTION, LAYOUTS, cache_bytes
from plm_edge.runtime.any_session import AnySession, Logits
from plm_edge.runtime.llama_engine import Context, Setting, Weights
from plm_edge.tokenizer import Tokenizer
from plm_edge.workspace import MAX_THREADS, PREFILL_CHUNK

OUTPUTS = 32  # tokens whose logits are computed in one call: 19 MB of PLM-1.8B's


class LlamaModel:
    """A GGUF file of layout `plm` or `deepseek2`; llama.cpp maps it once for all sessions.

    Raises FileFormatError and UnsupportedError for a file that is not one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = GgufFile.open(path)
        try:
            self.spec = spec_from_gguf(file)
            self.layout, tensors = tensors_of(file, self.spec)
            if self.layout.name not in LAYOUTS:
                raise UnsupportedError(
                    f"{path.name}: expected layout {' or '.join(LAYOUTS)} for llama.cpp, found "
                    f"{self.layout.name}; export the model with --layout deepseek2"
                )
            self.formats = formats_of(tensors)
            self.weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
            self.tokenizer = Tokenizer.from_gguf(file.metadata)
            if self.tokenizer.n_tokens > self.spec.vocab:
                raise FileFormatError(
                    f"{path.name}: expected at most {self.spec.vocab} tokens (rows of the "
                    f"embedding), found {self.tokenizer.n_tokens}; export the model again"
                )
        finally:
            file.close()
        self._weights: Weights | None = None

    def session(
        self,
        n_ctx: int | None = None,
        cache_type: str = "f16",
        threads: int = 1,
        gpu_layers: int = 0,
    ) -> LlamaSession:
        """A new sequence; n_ctx tokens, by default the trained context.

        gpu_layers counts for the first session: the weights stay where they are then.
        """
        if cache_type not in ("f32", *CACHE_TYPES):
            known = ", ".join(("f32", *CACHE_TYPES))
            raise UsageError(f"expected a cache type of {known}, found {cache_type!r}")
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"expected 1 to {MAX_THREADS} threads, found {threads}")
        if self._weights is None:
            self._weights = Weights(self.path, gpu_layers)
        n_ctx = self.spec.n_ctx_train if n_ctx is None else n_ctx
        return LlamaSession(self, self._weights, n_ctx, cast(CacheType, cache_type), threads)

    def close(self) -> None:
        """Let go of the weights; every session has to be closed before."""
        if self._weights is not None:
            self._weights.close()
            self._weights = None

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        file = GgufFile.open(self.path)
        try:
            return file.sha256()
        finally:
            file.close()


class LlamaSession(AnySession):
    """A session that llama.cpp computes. Flash attention is on where it does not abort with it."""

    def __init__(
        self, model: LlamaModel, weights: Weights, n_ctx: int, cache_type: CacheType, threads: int
    ) -> None:
        super().__init__(model.spec, model.tokenizer, n_ctx, cache_type)
        self.model, self.threads, self.isa = model, threads, "llama.cpp"
        self.flash = FLASH_ATTENTION[model.layout.name][-1] and cache_type != "f32"
        setting = Setting(
            model.layout.name, n_ctx, cache_type, threads, self.flash, PREFILL_CHUNK, OUTPUTS
        )
        self._context = Context(weights, setting)
        self._cancelled = False

    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> Logits:
        with self._running():
            checked = self._check_ids(ids, all_logits)
            rows = [self._append(part, all_logits) for part in self._parts(checked, all_logits)]
        return np.concatenate(rows) if all_logits else rows[-1][0]

    def step(self, token: int) -> Logits:
        with self._running():
            logits: Logits = self._append(self._check_ids([token], all_logits=False), False)[0]
        return logits

    def cancel(self) -> None:
        self._cancelled = True

    def cached_rows_of(self, n: int) -> NDArray[Any]:
        raise UnsupportedError(
            "saved sessions: expected the native backend, found llama; use --backend native"
        )

    @property
    def cache_bytes(self) -> int:
        name = self.model.layout.name
        return cache_bytes(name, self.spec, self.cache_type, self._context.n_ctx)

    @property
    def state_bytes(self) -> int:
        """What llama.cpp says that the tokens so far take."""
        self._check_open()
        return self._context.state_bytes()

    def _parts(self, ids: list[int], all_logits: bool) -> list[list[int]]:
        size = OUTPUTS if all_logits else PREFILL_CHUNK
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    def _append(self, ids: list[int], every: bool) -> Logits:
        if self._context.held != self.n_past:  # truncated, or the last call failed
            self._context.keep(self.n_past)
        # A call for one token is short, and asking in between would be 2 % of it.
        stop = None if len(ids) == 1 else lambda: self._cancelled
        rows = self._context.decode(ids, every, stop)
        self._ids += ids
        return rows

    def _not_cancelled(self) -> None:
        self._cancelled = False

    def _release(self) -> None:
        self._context.close()
