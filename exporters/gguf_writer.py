"""One GGUF file, streamed: the gguf package packs the header, tensors follow in blocks of rows.

    header, keys, tensor table | padding | tensor | padding | tensor | ...      padding: zeros

In memory at once: the header, one tensor's packed bytes (group32 needs all of its rows), its
arranged copy, and one block of float rows. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from plm_edge.arrangements import TILE, arrange
from plm_edge.atomic import write_atomic
from plm_edge.bundle import BundleFile
from plm_edge.exporters.source import PackedRows
from plm_edge.formats import format_of
from plm_edge.layouts import FileTensor, data_bytes, layout_of

Progress = Callable[[int, int], None]  # bytes done, bytes of all

_BLOCK_BYTES = 16 << 20  # of float rows that are in memory at once
_U32_END = 1 << 32


def write_gguf(
    path: Path,
    header: bytes,
    layout: str,
    tensors: Sequence[FileTensor],
    packed_rows: PackedRows,
    progress: Progress | None = None,
) -> BundleFile:
    """Write the file; returns its name, size and hash. `header` is what header_bytes gave."""
    digest = hashlib.sha256()
    total = file_bytes(header, layout, tensors)
    done = 0

    def write(file: BinaryIO) -> None:
        nonlocal done
        for piece in _ahead(_pieces(header, layout, tensors, packed_rows)):
            file.write(piece.data)
            digest.update(piece.data)
            done += piece.nbytes
            if progress is not None:
                progress(done, total)

    write_atomic(path, write)
    assert done == total
    return BundleFile(path.name, total, digest.hexdigest())


def _ahead(pieces: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """The same; while one is written and hashed, a thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, pieces, None)
        while (piece := following.result()) is not None:
            following = pool.submit(next, pieces, None)
            yield piece


def file_bytes(header: bytes, layout: str, tensors: Sequence[FileTensor]) -> int:
    """Exact size of the file."""
    return len(header) + data_bytes(layout, list(tensors))


def header_bytes(layout: str, keys: Mapping[str, Any], tensors: Sequence[FileTensor]) -> bytes:
    """All that stands before the data, padded to the layout's alignment.

    An int becomes a uint32 (uint64 if it must), a float a float32, a list of ints an int32 array.
    """
    chosen = layout_of(layout)
    writer = gguf.GGUFWriter(None, chosen.arch)
    if chosen.alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        writer.add_custom_alignment(chosen.alignment)
    for key, value in keys.items():
        writer.add_key_value(key, value, _value_type(value))
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType(format_of(tensor.format).ggml_type)
        writer.add_tensor_info(
            tensor.file_name, tensor.file_shape, np.dtype(np.float32), tensor.nbytes, kind
        )
    header = io.BytesIO()
    writer.fout, writer.state = (
        [io.BufferedWriter(header)],
        WriterState.EMPTY,
    )  # as if it opened one
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    data = header.getvalue()
    return data + bytes(-len(data) % chosen.alignment)


def _value_type(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        fits = 0 <= value < _U32_END
        return gguf.GGUFValueType.UINT32 if fits else gguf.GGUFValueType.UINT64
    return gguf.GGUFValueType.get_type(value)


def _pieces(
    header: bytes, layout: str, tensors: Sequence[FileTensor], packed_rows: PackedRows
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of the file, in order."""
    step = layout_of(layout).alignment
    yield np.frombuffer(header, np.uint8)
    for tensor in tensors:
        written = 0
        for piece in _tensor_pieces(tensor, packed_rows):
            written += piece.nbytes
            yield piece
        assert written == tensor.nbytes
        yield np.zeros(-written % step, np.uint8)


def _tensor_pieces(tensor: FileTensor, packed_rows: PackedRows) -> Iterator[NDArray[np.uint8]]:
    rows = _rows_at_once(tensor.cols)
    blocks: Iterator[NDArray[np.uint8]] = (
        packed_rows(tensor.name, tensor.format, start, min(start + rows, tensor.rows))
        for start in range(0, tensor.rows, rows)
    )
    if tensor.arrangement == "group32":
        row_bytes = format_of(tensor.format).row_bytes(tensor.cols)
        packed = np.empty((tensor.rows, row_bytes), np.uint8)
        for i, block in enumerate(blocks):
            packed[i * rows : i * rows + len(block)] = block
        blocks = iter([packed])
    for block in blocks:
        yield arrange(tensor.arrangement, tensor.format, block, tensor.cols)


def _rows_at_once(cols: int) -> int:
    """A multiple of 16, so that every block but the last is whole tiles."""
    return max(1, _BLOCK_BYTES // (4 * cols * TILE)) * TILE
