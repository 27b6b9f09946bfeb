"""model.onnx.data: which arrays it holds, in which order, and where their bytes come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import TensorProto

from plm_edge import onnx_names
from plm_edge.atomic import write_atomic
from plm_edge.bundle import BundleFile
from plm_edge.errors import UnsupportedError
from plm_edge.exporters.gguf_writer import Progress
from plm_edge.exporters.onnx import arrays
from plm_edge.exporters.onnx.arrays import Array, Bytes
from plm_edge.exporters.source import PackedRows
from plm_edge.formats import format_of
from plm_edge.kinds import mla
from plm_edge.quant_plan import FALLBACK
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo, tensor_table

COSINES, SINES = "rope.cos", "rope.sin"  # (n_ctx_train, rope / 2)
_Q, _KV_A, _KV_B = "attn_q.weight", "attn_kv_a_mqa.weight", "attn_kv_b.weight"
_KV_A_Q = "attn_kv_a_q.weight"
_BLOCK_BYTES = 16 << 20  # of float rows in memory at once


def onnx_formats(spec: ModelSpec, formats: Mapping[str, str]) -> dict[str, str]:
    """Canonical name -> format, with kv_b as its two products.

    Blocks run along what a product sums over: nope values of W_uk, rank of W_uv.
    """
    split: dict[str, str] = {}
    for name in tensor_table(spec):
        fmt = formats[name]
        if fmt not in arrays.BITS and fmt not in arrays.FLOATS:
            names = ", ".join((*arrays.FLOATS, *arrays.BITS))
            raise UnsupportedError(
                f"ONNX: expected weights in one of {names}, found {fmt} for {name}; choose --quant"
            )
        if not name.endswith(_KV_B):
            split[name] = fmt
            continue
        for part, inner in (("attn_k_b", spec.nope), ("attn_v_b", spec.rank)):
            fits = format_of(fmt).fits(inner)
            split[name.replace("attn_kv_b", part)] = fmt if fits else FALLBACK
    return split


@dataclass(frozen=True)
class Matrix:
    """A matrix of the file: rows start..stop of tensors, in the order of the file."""

    name: str
    fmt: str
    rows: tuple[tuple[str, int, int], ...]


class Store:
    """The arrays of one model, placed; nothing is read before `write`."""

    def __init__(self, spec: ModelSpec, formats: Mapping[str, str], standard: bool) -> None:
        self.spec, self.formats, self.standard = spec, formats, standard
        self._table = tensor_table(spec)
        self._at = {info.name: self._matrix(info) for info in self._table.values()}
        self._matrices = {m.name: m for m in self._at.values() if m is not None}
        placed = arrays.place([a for info in self._table.values() for a in self._arrays(info)])
        at = placed[-1].offset + placed[-1].nbytes
        turns = (spec.n_ctx_train, spec.rope // 2)
        for name in (COSINES, SINES):
            at = -(-at // arrays.PAGE) * arrays.PAGE
            placed.append(Array(name, TensorProto.FLOAT, turns, at))
            at += placed[-1].nbytes
        self.nbytes = at
        self.arrays = {array.name: array for array in placed}

    def format(self, name: str) -> str:
        """Of a matrix of the file, or of one of kv_b's products."""
        return self._matrices[name].fmt if name in self._matrices else self.formats[name]

    def projections(self, blk: str) -> list[str]:
        """The matrices that attention of a layer begins with: one, or two of different formats.

        Their rows: latent, rope key, then the rope part of each head's query, then the other parts.
        """
        return [name for name in (blk + _KV_A_Q, blk + _KV_A, blk + _Q) if name in self._matrices]

    def alias(self, name: str, other: str, shape: tuple[int, ...]) -> str:
        """The bytes of an array under a second name and shape; they lie in the file once."""
        self.arrays[other] = replace(self.arrays[name], name=other, shape=shape)
        assert self.arrays[other].nbytes == self.arrays[name].nbytes
        return other

    def initializer(self, name: str) -> TensorProto:
        """The array as a graph names it: where it lies."""
        array = self.arrays[name]
        tensor = TensorProto(name=name, data_type=array.dtype, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", onnx_names.DATA),
            ("offset", array.offset),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def write(
        self, path: Path, packed_rows: PackedRows, progress: Progress | None = None
    ) -> BundleFile:
        """Write the file; the same source gives the same bytes."""
        digest, at = hashlib.sha256(), 0

        def write(file: BinaryIO) -> None:
            nonlocal at
            last = ""
            for name, data in self._pieces(packed_rows):
                gap = self.arrays[name].offset - at if name != last else 0
                assert gap >= 0
                for part in (np.zeros(gap, np.uint8), data):
                    block = np.ascontiguousarray(part).data
                    file.write(block)
                    digest.update(block)
                    at += block.nbytes
                last = name
                if progress is not None:
                    progress(at, self.nbytes)

        write_atomic(path, write)
        assert at == self.nbytes
        return BundleFile(path.name, at, digest.hexdigest())

    def _matrix(self, info: TensorInfo) -> Matrix | None:
        """What lies in the file at the place of a tensor, unless it is a vector or kv_b."""
        name = info.name
        if len(info.shape) == 1 or name.endswith(_KV_B):
            return None
        fmt, rows = self.formats[name], ((name, 0, info.shape[0]),)
        if name.endswith((_Q, _KV_A)):
            kv_a = name.replace(_Q, _KV_A)
            q = kv_a.replace(_KV_A, _Q)
            both = self.formats[q] == self.formats[kv_a]
            if name == q:
                return None if both else Matrix(q, fmt, self._query_rows(q))
            if both:
                return Matrix(kv_a.replace(_KV_A, _KV_A_Q), fmt, rows + self._query_rows(q))
        return Matrix(name, fmt, rows)

    def _query_rows(self, q: str) -> tuple[tuple[str, int, int], ...]:
        """Rows of attn_q, per head [nope | rope]: first rope of all heads, then nope."""
        nope, head = self.spec.nope, self.spec.nope + self.spec.rope
        starts = range(0, self.spec.heads * head, head)
        rope = tuple((q, at + nope, at + head) for at in starts)
        return rope + tuple((q, at, at + nope) for at in starts)

    def _arrays(self, info: TensorInfo) -> list[Array]:
        if len(info.shape) == 1:
            return [Array(info.name, TensorProto.FLOAT, info.shape)]
        if not info.name.endswith(_KV_B):
            matrix = self._at[info.name]
            if matrix is None:
                return []
            rows = sum(stop - start for _, start, stop in matrix.rows)
            return arrays.matrix(matrix.name, matrix.fmt, rows, info.shape[1], self.standard)
        spec = self.spec
        shapes = (spec.heads, spec.nope, spec.rank), (spec.heads, spec.rank, spec.v_head)
        return [
            array
            for name, shape in zip(_head_names(info.name), shapes, strict=True)
            for array in arrays.head_arrays(name, self.formats[name], shape, self.standard)
        ]

    def _pieces(self, packed_rows: PackedRows) -> Iterator[tuple[str, Bytes]]:
        """Name and bytes in the order of the file; a large array comes in several pieces."""
        for info in self._table.values():
            if len(info.shape) == 1:
                yield info.name, packed_rows(info.name, "F32", 0, 1)
            elif info.name.endswith(_KV_B):
                rows = packed_rows(info.name, "F32", 0, info.shape[0]).view("<f4")
                products = arrays.heads_of(self.spec, rows)
                for name, product in zip(_head_names(info.name), products, strict=True):
                    fmt = self.formats[name]
                    yield from arrays.head_pieces(name, fmt, product, self.standard)
            elif (matrix := self._at[info.name]) is not None:
                yield from self._matrix_pieces(matrix, info.shape[1], packed_rows)
        turns = mla.turns(self.spec, self.spec.n_ctx_train)  # cosine and sine in turn
        for k, name in enumerate((COSINES, SINES)):
            yield name, np.ascontiguousarray(turns[:, k::2]).view(np.uint8)

    def _matrix_pieces(
        self, matrix: Matrix, cols: int, packed_rows: PackedRows
    ) -> Iterator[tuple[str, Bytes]]:
        name, fmt = matrix.name, matrix.fmt
        step, scales = max(1, _BLOCK_BYTES // (4 * cols)), []
        for tensor, first, last in matrix.rows:
            for start in range(first, last, step):
                packed = packed_rows(tensor, fmt, start, min(start + step, last))
                if fmt in arrays.FLOATS:
                    yield name, packed
                    continue
                q, part = arrays.integers(fmt, packed, self.standard)
                scales.append(part)
                yield f"{name}.q", q
        if scales:
            yield f"{name}.scales", np.concatenate(scales).view(np.uint8)


def _head_names(name: str) -> tuple[str, str]:
    return name.replace("attn_kv_b", "attn_k_b"), name.replace("attn_kv_b", "attn_v_b")
