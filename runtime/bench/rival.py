"""llama.cpp as the benchmark drives it, through the C functions that llama-cpp-python binds.

Flash attention stays off: with it llama.cpp aborts on architecture `plm` (assert in
ggml_set_rows). Without it the cached values have to be F16; the keys may be Q8_0.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plm_edge.errors import UnsupportedError
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf

LAYOUTS = ("plm",)  # that it can run, each tried
CACHE_TYPES = ("f16", "q8_0")  # of the keys, each tried
_BLOCK_BYTES = {"f16": 64, "q8_0": 34}  # of 32 cached values


def check_installed() -> None:
    """Raises UnsupportedError with the cure where llama-cpp-python is missing."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise UnsupportedError(
            "--vs llama.cpp: expected the package llama-cpp-python, found none; "
            "pip install 'plm-edge[llama]'"
        )


class LlamaCpp:
    """One model and one context of it."""

    def __init__(self, path: str, n_ctx: int, cache_type: str, threads: int) -> None:
        import llama_cpp as api

        self._api: Any = api
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(path.encode(), model_params)
        if self._model is None:
            raise UnsupportedError(f"expected llama.cpp to load {path}, it refused")
        params = api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = {"f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0}[cache_type]
        self._context = api.llama_init_from_model(self._model, params)
        if self._context is None:
            raise UnsupportedError(f"expected llama.cpp to take -ctk {cache_type}, it refused")
        self._batch = int(api.llama_n_batch(self._context))
        self.facts = {
            "threads": threads,
            "isa": None,
            "cache_bytes": _cache_bytes(path, int(api.llama_n_ctx(self._context)), cache_type),
            "version": api.__version__,
        }

    def keep(self, n: int) -> None:
        """As in Native, and so for every method below."""
        memory = self._api.llama_get_memory(self._context)
        if not self._api.llama_memory_seq_rm(memory, -1, n, -1):
            raise UnsupportedError("expected llama.cpp to truncate its cache, it refused")

    def extend(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), self._batch):
            part = ids[start : start + self._batch]
            tokens = (ctypes.c_int32 * len(part))(*part)
            batch = self._api.llama_batch_get_one(tokens, len(part))
            code = self._api.llama_decode(self._context, batch)
            if code:
                raise UnsupportedError(f"expected llama.cpp to decode, found its code {code}")
        self._api.llama_get_logits_ith(self._context, -1)  # waits for them

    def step(self, token: int) -> None:
        self.extend([token])

    def bytes_read(self) -> int | None:
        return None

    def kernel_s(self) -> float | None:
        return None

    def set_threads(self, threads: int) -> None:
        self._api.llama_set_n_threads(self._context, threads, threads)


def _cache_bytes(path: str, n_ctx: int, cache_type: str) -> int:
    """Keys and values of every head for the context, which llama.cpp rounds up."""
    file = GgufFile.open(Path(path))
    try:
        spec = spec_from_gguf(file)
    finally:
        file.close()
    key = (spec.nope + spec.rope) * _BLOCK_BYTES[cache_type]
    value = spec.v_head * _BLOCK_BYTES["f16"]
    return n_ctx * spec.layers * spec.heads * (key + value) // 32
