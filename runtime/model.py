"""A model's weights, mapped once and shared by all its sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from plm_edge.arrangements import padded_shape
from plm_edge.cache_layout import CacheType
from plm_edge.errors import FileFormatError
from plm_edge.formats import FORMATS, format_of
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.layouts import LAYOUTS, Layout
from plm_edge.runtime.recorder import MappedWeight
from plm_edge.tensors import TensorInfo, tensor_table
from plm_edge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from plm_edge.runtime.session import Session

_FORMAT_OF_TYPE = {fmt.ggml_type: fmt.name for fmt in FORMATS.values()}


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
            self.layout = _layout_of(self.file)
            table = tensor_table(self.spec)
            self.weights |= {name: self._map(info) for name, info in table.items()}
            self._refuse_extra(table)
            self.tokenizer = Tokenizer.from_gguf(self.file.metadata)
            if self.tokenizer.n_tokens > self.spec.vocab:
                raise FileFormatError(
                    f"{path.name}: expected at most {self.spec.vocab} tokens (rows of the "
                    f"embedding), found {self.tokenizer.n_tokens}; export the model again"
                )
        except BaseException:
            self.close()
            raise

    def session(
        self,
        n_ctx: int | None = None,
        cache_type: CacheType = "f16",
        threads: int = 1,
        isa: str | None = None,
    ) -> Session:
        """A new sequence on these weights; n_ctx tokens, by default the trained context."""
        from plm_edge.runtime.session import Session

        n_ctx = self.spec.n_ctx_train if n_ctx is None else n_ctx
        return Session(self, n_ctx, cache_type, threads, isa)

    def close(self) -> None:
        """Unmap the file. Sessions must be closed first."""
        self.weights.clear()
        self.file.close()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(int(weight.data.nbytes) for weight in self.weights.values())

    @cached_property
    def sha256(self) -> str:
        """Of the file; a saved session belongs to it."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def layer(self, i: int) -> Mapping[str, MappedWeight]:
        """The weights of layer i: "attn_q", "ffn_up" and so on."""
        prefix = f"blk.{i}."
        return {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }

    def _map(self, info: TensorInfo) -> MappedWeight:
        name = self.layout.file_name(info.name)
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise FileFormatError(
                f"{self.path.name}: expected tensor {name}, found none; export the model again"
            )
        fmt = _FORMAT_OF_TYPE.get(tensor.ggml_type)
        if fmt is None or (fmt != "F32" and not info.quantize):
            found = f"ggml type {tensor.ggml_type}" if fmt is None else fmt
            raise FileFormatError(
                f"{self.path.name}: expected {name} as {'F32' if fmt else ', '.join(FORMATS)}, "
                f"found {found}; export the model again"
            )
        rows, cols = info.shape if len(info.shape) == 2 else (1, info.shape[0])
        arrangement = self.layout.arrangement(info.name)
        shape = padded_shape(arrangement, fmt, rows, cols) if len(info.shape) == 2 else (cols,)
        expected = shape[0] * format_of(fmt).row_bytes(shape[1]) if len(shape) == 2 else 4 * cols
        if tuple(tensor.shape) != shape or tensor.nbytes != expected:
            raise FileFormatError(
                f"{self.path.name}: expected {name} of shape {shape}, found {tuple(tensor.shape)}; "
                "export the model again"
            )
        return MappedWeight(self.file.data(name), rows, cols, fmt, arrangement)

    def _refuse_extra(self, table: Mapping[str, TensorInfo]) -> None:
        extra = set(self.file.tensors) - {self.layout.file_name(name) for name in table}
        if extra:
            raise FileFormatError(
                f"{self.path.name}: expected the tensors of its layout, found also "
                f"{', '.join(sorted(extra)[:3])}; export the model again"
            )


def _layout_of(file: GgufFile) -> Layout:
    arch = file.metadata["general.architecture"]
    return next(layout for layout in LAYOUTS.values() if layout.arch == arch)
