"""An ONNX bundle in onnxruntime: its weights, loaded once and shared by all its sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm_edge import onnx_names as names
from plm_edge.bundle import read_bundle
from plm_edge.cache_layout import CacheType
from plm_edge.errors import FileFormatError, UnsupportedError
from plm_edge.onnx_file import OnnxFile
from plm_edge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from plm_edge.runtime.onnx_session import OnnxSession

CACHE_TYPE: CacheType = "f32"  # what the graphs take


# onnxruntime's execution providers by the name a user gives; what one cannot do, the CPU does.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}


def onnxruntime() -> Any:
    """The package, or UnsupportedError saying how to get it."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise UnsupportedError(
            "backend onnx: expected the package onnxruntime, found it missing; "
            "pip install 'plm-edge[onnx]'"
        ) from None
    return ort


def choose_provider(asked: str | None, available: Sequence[str], profile: Sequence[str]) -> str:
    """The provider `asked` in onnxruntime's words, or the first of a profile that is available.

    Raises UnsupportedError where the one that was asked for is not there.
    """
    if asked is None:
        return next((name for name in profile if name in available), PROVIDERS["cpu"])
    if PROVIDERS[asked] not in available:
        there = ", ".join(key for key, name in PROVIDERS.items() if name in available)
        raise UnsupportedError(
            f"provider {asked}: expected an onnxruntime that has it, found one with {there}; "
            "install the onnxruntime package for it"
        )
    return PROVIDERS[asked]


class OnnxModel:
    """model_in_place.onnx of a bundle. Raises FileFormatError where the bundle is not whole."""

    def __init__(self, path: Path, threads: int, provider: str) -> None:
        self.path, self.threads, self.provider = path, threads, provider
        ort = onnxruntime()
        manifest = read_bundle(path)
        self.spec = manifest.spec
        sizes = {file.name: file.size for file in manifest.files}
        if names.IN_PLACE not in sizes:
            raise FileFormatError(
                f"{path}: expected {names.IN_PLACE}, found none; export with --format onnx"
            )
        OnnxFile.read(path / names.IN_PLACE).check_external(sizes)
        self.tokenizer = Tokenizer.from_hf(path)
        if self.tokenizer.n_tokens > self.spec.vocab:
            raise FileFormatError(
                f"{path}: expected at most {self.spec.vocab} tokens (rows of the embedding), "
                f"found {self.tokenizer.n_tokens}; export the model again"
            )
        hashes = [
            file.sha256 for file in manifest.files if file.name in (names.DATA, names.IN_PLACE)
        ]
        self.sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
        self.inference: Any = self._start(ort)

    def session(self, n_ctx: int | None = None) -> OnnxSession:
        """A new sequence on these weights; n_ctx tokens, by default the trained context."""
        from plm_edge.runtime.onnx_session import OnnxSession

        return OnnxSession(self, self.spec.n_ctx_train if n_ctx is None else n_ctx)

    def close(self) -> None:
        """Let go of the weights; sessions that are still open keep them."""
        self.inference = None

    def _start(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # every call has other shapes
        options.log_severity_level = 3  # errors: they come back as exceptions too
        # Between two calls its threads would spin on, beside the sampler or another session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        wanted = list(dict.fromkeys([self.provider, PROVIDERS["cpu"]]))
        try:
            return ort.InferenceSession(str(self.path / names.IN_PLACE), options, providers=wanted)
        except Exception as why:  # onnxruntime's own family has no common base but this
            raise FileFormatError(
                f"{self.path}: expected graphs that onnxruntime {ort.__version__} runs, found: "
                f"{str(why).splitlines()[0][:200]}; export again or use another version"
            ) from None
