"""llama.cpp through the C functions that llama-cpp-python binds: a model's weights, a context.

What llama.cpp says goes nowhere but into the errors raised here; where it asserts, it writes to
stderr and ends the process.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import DoesNotFit, Interrupted, NumericalError, UnsupportedError

ABORTED, NO_ROOM = 2, 1  # what llama_decode returns, beside 0
_LAST_WORDS = 300  # characters
_WARNING = 3  # log levels from here on, but _CONTINUED
_CONTINUED = 5


@dataclass(frozen=True)
class Setting:
    """How a context is made."""

    layout: str
    n_ctx: int  # tokens; llama.cpp rounds up
    cache_type: str
    threads: int
    flash: bool  # attention
    chunk: int | None = None  # tokens at once; None: as llama.cpp has it
    outputs: int | None = None  # of them at most, whose logits are wanted


CURE = "pip install 'plm-edge[llama]'"


def check_installed(wish: str) -> None:
    """Raises UnsupportedError with the cure where llama-cpp-python is missing."""
    if not is_installed():
        raise UnsupportedError(f"{wish}: expected the package llama-cpp-python, found none; {CURE}")


def is_installed() -> bool:
    """Whether llama-cpp-python is."""
    return importlib.util.find_spec("llama_cpp") is not None


def can_offload() -> bool:
    """Whether the installed llama.cpp was built for a GPU."""
    return bool(_api().llama_supports_gpu_offload())


class Weights:
    """A file, mapped; `gpu_layers` of its layers, the head being one more, go to the GPU."""

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        self.api = _api()
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.handle: Any = self.api.llama_model_load_from_file(str(path).encode(), params)
        if self.handle is None:
            raise UnsupportedError(f"expected llama.cpp to load {path}, it refused{_because()}")
        vocabulary = self.api.llama_model_get_vocab(self.handle)
        self.vocab = int(self.api.llama_vocab_n_tokens(vocabulary))

    def close(self) -> None:
        """Let go of the file; contexts have to be closed before."""
        if self.handle is not None:
            self.api.llama_model_free(self.handle)
            self.handle = None


class Context:
    """One sequence in llama.cpp's cache."""

    def __init__(self, weights: Weights, setting: Setting) -> None:
        self._weights, self._api = weights, weights.api
        self._handle: Any = self._api.llama_init_from_model(weights.handle, self._params(setting))
        if self._handle is None:
            raise UnsupportedError(
                f"expected llama.cpp to take a cache of {setting.n_ctx} tokens in "
                f"{setting.cache_type}, it refused{_because()}"
            )
        self.n_ctx = int(self._api.llama_n_ctx(self._handle))
        self.batch = int(self._api.llama_n_batch(self._handle))
        self.held = 0  # tokens in the cache
        self._stop: Callable[[], bool] | None = None
        self._interrupted: BaseException | None = None
        # Both are called from C for as long as the context lives.
        self._poll = self._api.ggml_abort_callback(self._asked_to_stop)
        self._never = self._api.ggml_abort_callback()  # a null pointer

    def keep(self, n: int) -> None:
        """Forget all but the first n tokens."""
        memory = self._api.llama_get_memory(self._handle)
        if not self._api.llama_memory_seq_rm(memory, -1, n, -1):
            raise UnsupportedError("expected llama.cpp to truncate its cache, it refused")
        self.held = n

    def decode(
        self, ids: Sequence[int], every: bool = False, stop: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        """Append at most `batch` ids; the logits of the last (1, vocab), or of every one.

        Asks `stop` now and then, on the CPU, and raises Interrupted where it says so; the cache
        then holds what it held before.
        """
        tokens = (ctypes.c_int32 * len(ids))(*ids)  # the batch points to both while it runs
        wanted = (ctypes.c_int8 * len(ids))(*([1] * len(ids)))
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        if every:
            batch.logits = wanted
        self._stop, self._interrupted = stop, None
        poll = self._never if stop is None else self._poll
        self._api.llama_set_abort_callback(self._handle, poll, None)
        before = self.held
        code = self._api.llama_decode(self._handle, batch)
        if code:
            self.keep(before)
            raise self._interrupted or _failure(code)
        self.held += len(ids)
        return self._logits(len(ids) if every else 1)

    def set_threads(self, threads: int) -> None:
        """Run on so many from now on."""
        self._api.llama_set_n_threads(self._handle, threads, threads)

    def state_bytes(self) -> int:
        """What llama.cpp says the sequence takes, as it would save it."""
        return int(self._api.llama_state_seq_get_size(self._handle, 0))

    def close(self) -> None:
        """Drop the cache."""
        if self._handle is not None:
            self._api.llama_free(self._handle)
            self._handle = None

    def _params(self, setting: Setting) -> Any:
        api = self._api
        kinds = {"f32": api.GGML_TYPE_F32, "f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0}
        params = api.llama_context_default_params()
        params.n_ctx = setting.n_ctx
        params.n_threads = params.n_threads_batch = setting.threads
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if setting.flash
            else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.type_k = params.type_v = kinds[setting.cache_type]
        if setting.cache_type == "q8_0" and setting.layout == "plm":
            params.type_v = kinds["f16"]  # without flash attention values are not quantized
        if setting.chunk is not None:
            params.n_batch = params.n_ubatch = setting.chunk
        if setting.outputs is not None:
            params.n_outputs_max = setting.outputs
        return params

    def _logits(self, rows: int) -> NDArray[np.float32]:
        """Of the last call; waits for them."""
        out = np.empty((rows, self._weights.vocab), np.float32)
        for at in range(rows):
            place = self._api.llama_get_logits_ith(self._handle, at - rows)
            if not place:
                raise NumericalError("expected logits of llama.cpp, found none; load it again")
            out[at] = np.ctypeslib.as_array(place, (self._weights.vocab,))
        return out

    def _asked_to_stop(self, _data: object) -> bool:
        """Called between two operations of the graph: Python sees signals here, too."""
        try:
            return self._stop is not None and self._stop()
        except BaseException as error:  # it cannot pass through C
            self._interrupted = error
            return True


def _failure(code: int) -> Exception:
    if code == ABORTED:
        return Interrupted("stopped before the answer was complete")
    if code == NO_ROOM:
        return DoesNotFit("expected room in llama.cpp's cache, found none; use a longer context")
    return UnsupportedError(f"expected llama.cpp to decode, found its code {code}{_because()}")


_said: deque[str] = deque(maxlen=4)  # warnings and errors of llama.cpp, the last ones
_listener: Any = None  # llama.cpp keeps its address


def _api() -> Any:
    """llama_cpp, which then says nothing on stderr."""
    global _listener
    api = importlib.import_module("llama_cpp")
    if _listener is None:

        def listen(level: int, text: bytes | None, _data: object) -> None:
            if _WARNING <= level != _CONTINUED and text:
                _said.append(text.decode(errors="replace").strip())

        _listener = api.llama_log_callback(listen)
        api.llama_log_set(_listener, None)
        api.llama_backend_init()
    return api


def _because() -> str:
    words = " / ".join(_said)
    _said.clear()
    return f": {' '.join(words.split())[-_LAST_WORDS:]}" if words else ""
