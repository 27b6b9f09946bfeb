"""The weights of a GGUF file as numbers, in whatever layout: what a checkpoint offers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge.arrangements import TILE, arranged_bytes, restore
from plm_edge.errors import FileFormatError, UsageError
from plm_edge.formats import FORMATS, dequantize
from plm_edge.gguf_file import GgufFile, GgufTensor
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.layouts import LAYOUTS, FileTensor, Layout, file_tensors
from plm_edge.tensors import tensor_table

Float32 = NDArray[np.float32]

_FORMAT_OF_TYPE = {fmt.ggml_type: fmt.name for fmt in FORMATS.values()}


class GgufWeights:
    """Reads with plain file reads, a tensor or some rows at a time; nothing stays in memory."""

    def __init__(self, path: Path) -> None:
        file = GgufFile.open(path)
        try:
            self.spec = spec_from_gguf(file)
            arch = file.metadata["general.architecture"]
            layout = next(layout for layout in LAYOUTS.values() if layout.arch == arch)
            stored = {name: _tensor(file, layout, name) for name in tensor_table(self.spec)}
        finally:
            file.close()
        formats = {name: _FORMAT_OF_TYPE[tensor.ggml_type] for name, tensor in stored.items()}
        self._path = path
        self._offsets = {name: tensor.offset for name, tensor in stored.items()}
        self._tensors = {t.name: t for t in file_tensors(layout.name, self.spec, formats)}
        for name, tensor in self._tensors.items():
            if stored[name].nbytes != tensor.nbytes:
                raise FileFormatError(
                    f"{path.name}: {name} has {stored[name].nbytes} bytes, expected "
                    f"{tensor.nbytes}; export the model again"
                )

    def read(self, name: str) -> Float32:
        """A whole tensor in its shape: (n,) or (rows, cols)."""
        values = self.read_rows(name, 0, self._tensors[name].rows)
        return values.reshape(tensor_table(self.spec)[name].shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of a matrix: (stop - start, cols)."""
        tensor = self._tensors[name]
        if not 0 <= start <= stop <= tensor.rows:
            raise UsageError(f"{name} has rows 0..{tensor.rows - 1}, asked for {start}..{stop - 1}")
        first, last = _whole_pieces(tensor, start, stop)
        begin = arranged_bytes(tensor.arrangement, tensor.format, first, tensor.cols)
        end = arranged_bytes(tensor.arrangement, tensor.format, last, tensor.cols)
        place = self._offsets[name] + begin
        data = np.fromfile(self._path, np.uint8, end - begin, offset=place)
        packed = restore(tensor.arrangement, tensor.format, data, last - first, tensor.cols)
        return dequantize(tensor.format, packed[start - first : stop - first], tensor.cols)


def _tensor(file: GgufFile, layout: Layout, name: str) -> GgufTensor:
    tensor = file.tensors.get(layout.file_name(name))
    if tensor is None or tensor.ggml_type not in _FORMAT_OF_TYPE:
        found = "none" if tensor is None else f"ggml type {tensor.ggml_type}"
        raise FileFormatError(
            f"{file.path.name}: expected {layout.file_name(name)} in a format of "
            f"{', '.join(FORMATS)}, found {found}"
        )
    return tensor


def _whole_pieces(tensor: FileTensor, start: int, stop: int) -> tuple[int, int]:
    """The rows around start..stop whose bytes stand together."""
    if tensor.arrangement == "rows":
        return start, stop
    if tensor.arrangement == "tile16x4":
        return start // TILE * TILE, min(-(-stop // TILE) * TILE, tensor.rows)
    return 0, tensor.rows
