"""llama.cpp as the benchmark drives it, as it is by itself: its own batches, its own cache."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.llama_cpp import cache_bytes
from plm_edge.runtime.llama_engine import Context, Setting, Weights


class LlamaCpp:
    """One model and one context of it."""

    def __init__(
        self, path: str, layout: str, n_ctx: int, cache_type: str, threads: int, flash: bool
    ) -> None:
        self._weights = Weights(Path(path))
        self._context = Context(self._weights, Setting(layout, n_ctx, cache_type, threads, flash))
        file = GgufFile.open(Path(path))
        try:
            spec = spec_from_gguf(file)
        finally:
            file.close()
        self.facts = {
            "threads": threads,
            "isa": None,
            "cache_bytes": cache_bytes(layout, spec, cache_type, self._context.n_ctx),
            "version": importlib.metadata.version("llama_cpp_python"),
        }

    def keep(self, n: int) -> None:
        """As in Native, and so for every method below."""
        self._context.keep(n)

    def extend(self, ids: Sequence[int]) -> None:
        size = self._context.batch
        for start in range(0, len(ids), size):
            self._context.decode(ids[start : start + size])

    def step(self, token: int) -> None:
        self.extend([token])

    def bytes_read(self) -> int | None:
        return None

    def kernel_s(self) -> float | None:
        return None

    def set_threads(self, threads: int) -> None:
        self._context.set_threads(threads)
