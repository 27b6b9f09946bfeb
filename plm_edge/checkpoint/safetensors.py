"""A strict reader of the safetensors format (huggingface/safetensors, README "Format").

8 bytes header length (u64, little-endian), a JSON object, then the values without hole or overlap.
Everything is checked before anything is used; values are read on demand, never mapped, so that a
file truncated meanwhile is an error and not a dead process.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm_edge.checkpoint.files import (
    Signature,
    open_regular,
    parse_json_object,
    read_at,
    refuse_lfs_pointer,
)
from plm_edge.errors import FileFormatError, short

# The format allows 100 MB; 10,000 tensors, more than any model of ours has, need 2.
_MAX_HEADER = 16 << 20
_MAX_DIMS = 8
_MAX_SIZE = 1 << 63

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32,
    "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # first byte, from the start of the file
    end: int


class SafetensorsFile:
    """An open file: `entries` by name, and `read` for their bytes."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._fd: int | None = open_regular(path)
        try:
            status = os.fstat(self._fd)
            self.signature = Signature.of(path, status)
            self.entries = _read_header(self._fd, status.st_size, self.name)
        except BaseException:
            self.close()
            raise

    def read(self, entry: Entry, start: int, count: int) -> bytes:
        """`count` bytes of a tensor from its byte `start` on."""
        if self._fd is None:
            raise ValueError(f"{self.name} was closed")
        return read_at(self._fd, entry.begin + start, count, self.name)

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _read_header(fd: int, size: int, where: str) -> dict[str, Entry]:
    start = read_at(fd, 0, min(size, 64), where)
    refuse_lfs_pointer(start, where)
    if size < 8:
        raise FileFormatError(f"{where} has {size} bytes; a safetensors file has more than 8")
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        raise FileFormatError(
            f"{where} is truncated or no safetensors file: its header claims {length} bytes, "
            f"{size - 8} follow; download it again"
        )
    if length > _MAX_HEADER:
        raise FileFormatError(
            f"{where} has a header of {length} bytes, at most {_MAX_HEADER} allowed"
        )
    text = read_at(fd, 8, length, where)
    if not text.startswith(b"{"):
        raise FileFormatError(f"{where}: the header must start with '{{', found {short(text[:1])}")
    header = parse_json_object(text, f"{where}: the header")
    _check_metadata(header.pop("__metadata__", {}), where)
    entries = {name: _entry(name, item, 8 + length, where) for name, item in header.items()}
    _check_packed(entries, 8 + length, size, where)
    return entries


def _check_metadata(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(f"{where}: __metadata__ must map text to text")


def _entry(name: str, item: Any, data_start: int, where: str) -> Entry:
    where = f"{where}: tensor {short(name)}"
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{where} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise FileFormatError(f"{where} has the unknown dtype {short(dtype)}")
    if not _sizes(shape) or len(shape) > _MAX_DIMS:
        raise FileFormatError(f"{where} has the impossible shape {short(shape)}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileFormatError(f"{where} has the impossible data_offsets {short(offsets)}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise FileFormatError(
            f"{where}: {dtype} {short(shape)} needs {bits / 8:g} bytes, "
            f"data_offsets give {offsets[1] - offsets[0]}"
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _MAX_SIZE for n in value)


def _check_packed(entries: dict[str, Entry], at: int, size: int, where: str) -> None:
    """The tensors fill the file from the header to its end."""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fault = "overlaps the one before it" if entry.begin < at else "follows a hole"
            raise FileFormatError(f"{where}: tensor {short(name)} {fault} (byte {entry.begin})")
        at = entry.end
    if at != size:
        found = "is truncated" if at > size else "has bytes after its last tensor"
        raise FileFormatError(
            f"{where} {found}: {at} bytes expected, {size} found; download it again"
        )
