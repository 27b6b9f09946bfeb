"""The weights of a GGUF file as numbers, in whatever layout: what a checkpoint offers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge.arrangements import TILE, arranged_bytes, restore
from plm_edge.errors import UsageError
from plm_edge.formats import dequantize
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.gguf_tensors import tensors_of
from plm_edge.layouts import FileTensor
from plm_edge.tensors import tensor_table

Float32 = NDArray[np.float32]


class GgufWeights:
    """Reads with plain file reads, a tensor or some rows at a time; nothing stays in memory."""

    def __init__(self, path: Path) -> None:
        file = GgufFile.open(path)
        try:
            self.spec = spec_from_gguf(file)
            _, self.tensors = tensors_of(file, self.spec)
            stored = {name: file.tensors[t.file_name] for name, t in self.tensors.items()}
        finally:
            file.close()
        self._path = path
        self._offsets = {name: tensor.offset for name, tensor in stored.items()}

    def read(self, name: str) -> Float32:
        """A whole tensor in its shape: (n,) or (rows, cols)."""
        values = self.read_rows(name, 0, self.tensors[name].rows)
        return values.reshape(tensor_table(self.spec)[name].shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of a matrix: (stop - start, cols)."""
        tensor = self.tensors[name]
        return dequantize(tensor.format, self.packed_rows(name, start, stop), tensor.cols)

    def packed_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The same as its format packs them: (stop - start, row bytes)."""
        tensor = self.tensors[name]
        if not 0 <= start <= stop <= tensor.rows:
            raise UsageError(f"{name} has rows 0..{tensor.rows - 1}, asked for {start}..{stop - 1}")
        first, last = _whole_pieces(tensor, start, stop)
        begin = arranged_bytes(tensor.arrangement, tensor.format, first, tensor.cols)
        end = arranged_bytes(tensor.arrangement, tensor.format, last, tensor.cols)
        place = self._offsets[name] + begin
        data = np.fromfile(self._path, np.uint8, end - begin, offset=place)
        packed = restore(tensor.arrangement, tensor.format, data, last - first, tensor.cols)
        return packed[start - first : stop - first]


def _whole_pieces(tensor: FileTensor, start: int, stop: int) -> tuple[int, int]:
    """The rows around start..stop whose bytes stand together."""
    if tensor.arrangement == "rows":
        return start, stop
    if tensor.arrangement == "tile16x4":
        return start // TILE * TILE, min(-(-stop // TILE) * TILE, tensor.rows)
    return 0, tensor.rows
