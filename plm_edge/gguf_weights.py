"""The weights of a GGUF file as numbers, in whatever layout: what a checkpoint offers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge import deepseek2
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
            layout, self.tensors = tensors_of(file, self.spec)
            self._factors: tuple[deepseek2.Factors, ...] = ()
            if layout.name == "deepseek2":
                self._factors = deepseek2.factors_of(file.metadata, self.spec, path.name)
            stored = {name: file.tensors[t.file_name] for name, t in self.tensors.items()}
        finally:
            file.close()
        self._path = path
        self._offsets = {name: tensor.offset for name, tensor in stored.items()}

    def read(self, name: str) -> Float32:
        """A whole tensor in its shape: (n,) or (rows, cols)."""
        shape = tensor_table(self.spec)[name].shape
        return self.read_rows(name, 0, shape[0] if len(shape) == 2 else 1).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of a matrix: (stop - start, cols)."""
        if self._factors:
            return self._undone(name, start, stop)
        return self._stored_rows(name, start, stop)

    def packed_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """A tensor of the file as its format packs it: (stop - start, row bytes)."""
        tensor = self.tensors[name]
        _check_rows(name, tensor.rows, start, stop)
        first, last = _whole_pieces(tensor, start, stop)
        begin = arranged_bytes(tensor.arrangement, tensor.format, first, tensor.cols)
        end = arranged_bytes(tensor.arrangement, tensor.format, last, tensor.cols)
        place = self._offsets[name] + begin
        data = np.fromfile(self._path, np.uint8, end - begin, offset=place)
        packed = restore(tensor.arrangement, tensor.format, data, last - first, tensor.cols)
        return packed[start - first : stop - first]

    def _stored_rows(self, name: str, start: int, stop: int) -> Float32:
        tensor = self.tensors[name]
        return dequantize(tensor.format, self.packed_rows(name, start, stop), tensor.cols)

    def _undone(self, name: str, start: int, stop: int) -> Float32:
        """What layout deepseek2 made of a matrix, as the model has it."""
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        stored, factor = name, 1.0
        if kind == "ffn_norm":
            factor = self._factors[_number(layer)].norm
        elif kind == "ffn_up":  # the gate lost no bit of any scale
            stored, factor = f"{layer}.ffn_gate.weight", self._factors[_number(layer)].gate
        elif kind == "attn_kv_b":
            return self._joined(layer, name, start, stop)
        rows: Float32 = self._stored_rows(stored, start, stop) / np.float32(factor)
        return rows

    def _joined(self, layer: str, name: str, start: int, stop: int) -> Float32:
        """Rows of attn_kv_b."""
        spec = self.spec
        _check_rows(name, spec.heads * (spec.nope + spec.v_head), start, stop)
        k_b = self._stored_rows(f"{layer}.attn_k_b.weight", 0, spec.heads * spec.rank)
        v_b = self._stored_rows(f"{layer}.attn_v_b.weight", 0, spec.heads * spec.v_head)
        keys = k_b.reshape(spec.heads, spec.rank, spec.nope).transpose(0, 2, 1)
        values = v_b.reshape(spec.heads, spec.v_head, spec.rank)
        return np.concatenate([keys, values], axis=1).reshape(-1, spec.rank)[start:stop]


def _number(layer: str) -> int:
    return int(layer.removeprefix("blk."))


def _check_rows(name: str, rows: int, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= rows:
        raise UsageError(f"{name} has rows 0..{rows - 1}, asked for {start}..{stop - 1}")


def _whole_pieces(tensor: FileTensor, start: int, stop: int) -> tuple[int, int]:
    """The rows around start..stop whose bytes stand together."""
    if tensor.arrangement == "rows":
        return start, stop
    if tensor.arrangement == "tile16x4":
        return start // TILE * TILE, min(-(-stop // TILE) * TILE, tensor.rows)
    return 0, tensor.rows
