"""A strict reader of GGUF, version 2 and 3 (ggml-org/ggml, docs/gguf.md).

    magic "GGUF" | version u32 | tensor count u64 | key count u64
    keys:    string name | u32 type | value          a string is u64 length | bytes
    tensors: string name | u32 dims | u64 size each, columns first | u32 ggml type | u64 offset
    padding to general.alignment, then the data; every tensor starts aligned, without holes

Every count and length is compared with what is left of the file before anything is allocated.
The file is mapped. The texts of a vocabulary are copied in one piece and decoded when looked at,
so that one of 151,936 tokens and 151,387 merges opens without a Python object for each.
"""

from __future__ import annotations

import errno
import hashlib
import math
import mmap
import os
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.checkpoint.files import open_regular, refuse_lfs_pointer
from plm_edge.errors import DoesNotFit, FileFormatError, UnsupportedError, UsageError, short
from plm_edge.ggml_types import ggml_type
from plm_edge.tokenizer.strings import StringArray

_MAX_ENTRIES = 65_536  # keys, and tensors: PLM has 290 tensors
_MAX_STRINGS = 1 << 21  # in all arrays of a file: 2 million
_MAX_HEADER = 256 << 20  # bytes; PLM's is 6 million
_MAX_KEY = 65_535  # bytes, from the format's description
_MAX_NAME = 63  # bytes: GGML_MAX_NAME less the closing NUL
_MAX_DIMS = 4
_MIN_ALIGNMENT = 8  # from the format's description; the kernels read floats where they lie
_MAX_ALIGNMENT = 1 << 16
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_STRING, _ARRAY, _BOOL, _U32 = 8, 9, 7, 4
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_SCALAR = {number: struct.Struct("<" + code) for number, code in _SCALARS.items()}
_DTYPE = {number: np.dtype(f"<{code}") for number, code in _SCALARS.items()}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies."""

    name: str
    shape: tuple[int, ...]  # numpy order: (rows, cols) or (n,)
    ggml_type: int
    offset: int  # bytes from the start of the file
    nbytes: int


class GgufFile:
    """An open file. Arrays of `metadata` are StringArray or read-only numpy arrays."""

    def __init__(
        self, path: Path, mapped: NDArray[np.uint8], metadata: dict[str, Any],
        tensors: dict[str, GgufTensor],
    ) -> None:  # fmt: skip
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._mapped: NDArray[np.uint8] | None = mapped

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Map and check the whole header. Raises FileFormatError saying what is wrong where."""
        fd = open_regular(Path(os.path.realpath(path)))  # resolve() raises on a loop
        try:
            size = os.fstat(fd).st_size
            refuse_lfs_pointer(os.pread(fd, 64, 0), path.name)
            if size < 24:
                raise FileFormatError(f"{path.name} has {size} bytes; a GGUF file has at least 24")
            mapped = _map(fd, size, path)
        finally:
            os.close(fd)
        metadata, tensors = _Reader(mapped, path.name).read()
        return cls(path, np.frombuffer(mapped, np.uint8), metadata, tensors)

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, (nbytes,) read-only, a view of the mapped file."""
        tensor = self.tensors[name]
        return self._bytes()[tensor.offset : tensor.offset + tensor.nbytes]

    def sha256(self) -> str:
        """Of the whole file as it is mapped, hex."""
        return hashlib.sha256(self._bytes().data).hexdigest()

    def close(self) -> None:
        """Let go of the file; it stays mapped for as long as a view of `data` is alive."""
        self._mapped = None

    def _bytes(self) -> NDArray[np.uint8]:
        if self._mapped is None:
            raise UsageError(f"expected {self.path.name} open, found it closed; load it again")
        return self._mapped


def _map(fd: int, size: int, path: Path) -> mmap.mmap:
    try:
        mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    except OSError as why:
        if why.errno != errno.ENOMEM:
            raise
        raise DoesNotFit(
            f"{path.name}: expected {size / 2**20:,.0f} MiB of addresses to map the file, the "
            "system allows less; raise the limit (ulimit -v) or export a smaller --quant"
        ) from None
    # A decode step meets every page of a model once, and looks up where each lies: fewer and larger
    # ones make it faster (docs/decisions.md).
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


class _Reader:
    """A place in the header. Each method reads one thing and moves past it."""

    def __init__(self, mapped: mmap.mmap, where: str) -> None:
        self._buf = mapped
        self._size = len(mapped)
        self._end = min(self._size, _MAX_HEADER)
        self._at = 0
        self._where = where
        self._strings_left = _MAX_STRINGS

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        n_tensors, n_keys = self._preamble()
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string("a key", _MAX_KEY)
            if not key or key in metadata:
                raise self._error(f"key {short(key)} is {'there twice' if key else 'empty'}")
            metadata[key] = self._value(key)
        parts = metadata.get("split.count", 1)
        if type(parts) is not int or parts > 1:
            raise UnsupportedError(
                f"{self._where} is one part of a split model; merge the parts with "
                "llama-gguf-split --merge"
            )
        found = [self._tensor() for _ in range(n_tensors)]
        return metadata, self._place(found, self._alignment(metadata))

    def _preamble(self) -> tuple[int, int]:
        magic = self._take(4, "the magic")
        if magic != b"GGUF":
            raise self._error(f"the file starts with {magic!r}, a GGUF file with b'GGUF'")
        version = self._number(_U32, "the version")
        if version not in (2, 3):
            if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
                raise UnsupportedError(f"{self._where} is big-endian; convert it to little-endian")
            raise UnsupportedError(f"{self._where} is GGUF version {version}; 2 and 3 are read")
        n_tensors = self._number(10, "the tensor count")
        n_keys = self._number(10, "the key count")
        for what, count, least in (
            ("tensors", n_tensors, _MIN_TENSOR_BYTES),
            ("keys", n_keys, _MIN_KEY_BYTES),
        ):
            if count > min((self._size - self._at) // least, _MAX_ENTRIES):
                raise self._error(f"{count} {what} are claimed, more than the file can hold")
        return n_tensors, n_keys

    def _alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", 32)
        sized = type(value) is int and _MIN_ALIGNMENT <= value <= _MAX_ALIGNMENT
        if not sized or value & (value - 1):
            least = f"{_MIN_ALIGNMENT} or a higher power of two"
            raise self._error(f"general.alignment must be {least}, found {short(value)}")
        return int(value)

    def _tensor(self) -> tuple[str, list[int], int, int]:
        """(name, sizes in ggml's order, type, offset in the data section)."""
        name = self._string("a tensor's name", _MAX_NAME)
        where = f"tensor {short(name)}"
        dims = self._number(_U32, where)
        if not name or not 1 <= dims <= _MAX_DIMS:
            raise self._error(
                f"{where} has {dims} dimensions, 1 to {_MAX_DIMS} and a name are needed"
            )
        sizes = [self._number(10, where) for _ in range(dims)]
        return name, sizes, self._number(_U32, where), self._number(10, where)

    def _place(
        self, found: list[tuple[str, list[int], int, int]], alignment: int
    ) -> dict[str, GgufTensor]:
        """Check that the tensors fill the data section, each behind the other."""
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        expected = 0
        for name, sizes, number, offset in sorted(found, key=lambda t: t[3]):
            where = f"tensor {short(name)}"
            if name in tensors:
                raise self._error(f"{where} is there twice")
            nbytes = self._nbytes(where, sizes, number)
            if offset % alignment:
                raise self._error(f"{where} starts at {offset}, no multiple of {alignment}")
            if offset != expected:
                fault = "overlaps the one before it" if offset < expected else "follows a hole"
                raise self._error(f"{where} {fault} (offset {offset}, expected {expected})")
            if offset + nbytes > self._size - start:
                beyond = start + offset + nbytes - self._size
                raise self._error(
                    f"{where} ends {beyond} bytes past the end of the file; download it again"
                )
            tensors[name] = GgufTensor(name, tuple(reversed(sizes)), number, start + offset, nbytes)
            expected = -(-(offset + nbytes) // alignment) * alignment
        if self._size > start + expected:
            raise self._error(f"{self._size - start - expected} bytes follow the last tensor")
        return {name: tensors[name] for name, *_ in found}  # in the order of the file

    def _nbytes(self, where: str, sizes: list[int], number: int) -> int:
        _, block, block_bytes = ggml_type(number, f"{self._where}: {where}")
        values = math.prod(sizes)
        if not 0 < values < 1 << 62 or sizes[0] % block:
            raise self._error(f"{where} has the impossible sizes {sizes} for blocks of {block}")
        return values // block * block_bytes

    def _value(self, key: str) -> Any:
        kind = self._number(_U32, f"the type of {short(key)}")
        if kind == _ARRAY:
            return self._array(key)
        if kind == _STRING:
            return self._string(f"the value of {short(key)}", _MAX_HEADER)
        if kind not in _SCALAR:
            raise self._error(f"key {short(key)} has the unknown type {kind}")
        value = self._number(kind, f"the value of {short(key)}")
        return self._bool(value, key) if kind == _BOOL else value

    def _array(self, key: str) -> StringArray | NDArray[Any]:
        kind = self._number(_U32, f"the type of {short(key)}")
        count = self._number(10, f"the length of {short(key)}")
        if kind == _STRING:
            return self._strings(count, f"the array {short(key)}")
        if kind not in _SCALAR:
            fault = "is an array of arrays" if kind == _ARRAY else f"has the unknown type {kind}"
            raise self._error(f"key {short(key)} {fault}")
        dtype = _DTYPE[kind]
        data = self._take(count * dtype.itemsize, f"the array {short(key)}")
        numbers = np.frombuffer(data, dtype)
        return numbers != 0 if kind == _BOOL else numbers

    def _strings(self, count: int, what: str) -> StringArray:
        """One pass over the lengths; then the texts are copied together without them."""
        if count > min((self._end - self._at) // _LENGTH.size, self._strings_left):
            raise self._error(f"{what} claims {count} strings, more than the file can hold")
        self._strings_left -= count
        begin = at = self._at
        starts = array("q")
        unpack, append = _LENGTH.unpack_from, starts.append
        with memoryview(self._buf) as buf:
            try:
                for _ in range(count):
                    (length,) = unpack(buf, at)
                    at += 8 + length
                    append(at)
            except (struct.error, OverflowError):  # past the end of the file, or of 63 bits
                at = self._size + 1
        if at > self._end:
            raise self._error(f"{what} holds a string longer than the file")
        self._at = at
        ends = np.frombuffer(starts, np.int64) - begin if count else np.zeros(0, np.int64)
        begins = np.concatenate(([0], ends[:-1])) if count else ends
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(ends - begins - 8, out=offsets[1:])
        keep = np.ones(at - begin, bool)
        keep[(begins[:, None] + np.arange(8)).ravel()] = False  # the lengths
        blob = np.frombuffer(self._buf, np.uint8, at - begin, begin)[keep]
        self._check_utf8(blob, offsets, what)
        return StringArray(blob.tobytes(), offsets)

    def _check_utf8(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64], what: str) -> None:
        """All of it is UTF-8, and no character is divided between two strings."""
        firsts = blob[offsets[:-1][offsets[:-1] < blob.size]]
        try:
            blob.tobytes().decode("utf-8")
            whole = not bool(np.any(firsts & 0xC0 == 0x80))
        except UnicodeDecodeError:
            whole = False
        if not whole:
            raise self._error(f"{what} holds a string that is not UTF-8")

    def _string(self, what: str, most: int) -> str:
        length = self._number(10, what)
        if length > most:
            raise self._error(f"{what} claims {length} bytes, at most {most} allowed")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} is not UTF-8") from None

    def _number(self, kind: int, what: str) -> Any:
        scalar = _SCALAR[kind]
        return scalar.unpack(self._take(scalar.size, what))[0]

    def _bool(self, value: int, key: str) -> bool:
        if value > 1:
            raise self._error(f"key {short(key)} must be true or false, found {value}")
        return value == 1

    def _take(self, count: int, what: str) -> bytes:
        if count > self._end - self._at:
            raise self._error(
                f"{what} needs {count} bytes at byte {self._at}, {self._end - self._at} are left"
            )
        self._at += count
        return self._buf[self._at - count : self._at]

    def _error(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self._where}: {what}")
