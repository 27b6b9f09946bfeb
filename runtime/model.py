"""A model's weights, mapped once and shared by all its sessions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from plm_edge import head_screen
from plm_edge.cache_layout import CacheType
from plm_edge.errors import FileFormatError, UnsupportedError, UsageError
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.gguf_tensors import tensors_of
from plm_edge.layouts import FileTensor
from plm_edge.native import kernels as native
from plm_edge.runtime.recorder import Activations, MappedWeight
from plm_edge.tensors import head_name
from plm_edge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from plm_edge.runtime.session import Session


class Model:
    """The weights of one GGUF file (layout `latent` or `plm`), its spec and its tokenizer.

    Raises FileFormatError where the file lacks a tensor or holds one of another shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GgufFile.open(path)
        self.weights: dict[str, MappedWeight] = {}
        try:
            self.spec = spec_from_gguf(self.file)
            self.layout, tensors = tensors_of(self.file, self.spec)
            if self.layout.backend != "native":
                raise UnsupportedError(
                    f"{path.name}: expected layout latent or plm, found {self.layout.name}, which "
                    "is for llama.cpp; use --backend llama, or export with --layout latent"
                )
            self.weights |= {name: self._map(tensor) for name, tensor in tensors.items()}
            self.tokenizer = Tokenizer.from_gguf(self.file.metadata)
            if self.tokenizer.n_tokens > self.spec.vocab:
                raise FileFormatError(
                    f"{path.name}: expected at most {self.spec.vocab} tokens (rows of the "
                    f"embedding), found {self.tokenizer.n_tokens}; export the model again"
                )
            self.screen_tiles: int | None = None  # what a screened head reads, if there is one
            if head_screen.COARSE in self.weights:
                metadata = self.file.metadata
                self.screen_tiles = head_screen.tiles_to_read(metadata, self.spec, path.name)
        except BaseException:
            self.close()
            raise

    def session(
        self,
        n_ctx: int | None = None,
        cache_type: CacheType = "f16",
        threads: int = 1,
        isa: str | None = None,
        head: str = "full",
        activations: str = "int16",
    ) -> Session:
        """A new sequence on these weights; n_ctx tokens, by default the trained context.

        head: "full" or "screened" (UnsupportedError where the file has none). activations: "int16",
        or "int8" for speed: they meet integer weights in bytes, but for those of `ffn_down`.
        """
        from plm_edge.runtime.session import Session

        if head not in head_screen.HEADS:
            raise UsageError(f"expected a head of {', '.join(head_screen.HEADS)}, found {head!r}")
        if head == "screened" and self.screen_tiles is None:
            raise UnsupportedError(
                f"{self.path.name}: expected a screened head, found the full one alone; export "
                "the model with --head screened, or use --head full"
            )
        n_ctx = self.spec.n_ctx_train if n_ctx is None else n_ctx
        if activations not in native.ACTIVATIONS:
            names = ", ".join(native.ACTIVATIONS)
            raise UsageError(f"expected activations of {names}, found {activations!r}")
        kind = cast(Activations, activations)
        return Session(self, n_ctx, cache_type, threads, isa, head, kind)

    def close(self) -> None:
        """Let go of the weights; the file stays mapped for the sessions that are still open."""
        self.weights.clear()
        self.file.close()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(int(weight.data.nbytes) for weight in self.weights.values())

    @cached_property
    def sha256(self) -> str:
        """Of the file as it is mapped; a saved session belongs to it."""
        return self.file.sha256()

    @property
    def head(self) -> MappedWeight:
        """What makes the logits."""
        return self.weights[head_name(self.spec)]

    def layer(self, i: int) -> Mapping[str, MappedWeight]:
        """The weights of layer i: "attn_q", "ffn_up" and so on."""
        prefix = f"blk.{i}."
        return {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }

    def _map(self, tensor: FileTensor) -> MappedWeight:
        data = self.file.data(tensor.file_name)
        return MappedWeight(data, tensor.rows, tensor.cols, tensor.format, tensor.arrangement)
