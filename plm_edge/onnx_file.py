"""The strict reader of an ONNX graph: what it takes, gives and runs, and where its weights lie.

Only the fields that a graph of ours has are known (onnx.proto): subgraphs, functions, sparse and
quantized extras are refused, and so is external data anywhere but in an initializer. So nothing
that onnxruntime would read lies elsewhere than `check_external` saw. Nothing is run or imported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plm_edge.errors import FileFormatError, OutputError, short

MOST_BYTES = 256 << 20  # of a graph without its weights
# TensorProto.DataType -> its name, bits of a value
DTYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 6: ("int32", 32), 7: ("int64", 64),
    9: ("bool", 8), 10: ("float16", 16), 16: ("bfloat16", 16), 21: ("uint4", 4), 22: ("int4", 4),
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
Field = tuple[int, int, "int | memoryview"]


@dataclass(frozen=True)
class Value:
    """An input or output; a dimension is a number or the name of one that varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Stored:
    """An initializer whose bytes lie in another file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int  # bytes
    length: int  # bytes


@dataclass(frozen=True)
class OnnxFile:
    """One graph."""

    path: Path
    producer: str
    opsets: Mapping[str, int]  # domain ("" is the standard's) -> version
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: Mapping[str, int]  # domain.kind -> how often
    stored: tuple[Stored, ...]

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """Read the graph; FileFormatError for anything that is not one of ours."""
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as why:
            raise OutputError(f"{path}: cannot be read: {why.strerror}; check the path") from None
        if len(data) > MOST_BYTES:
            raise FileFormatError(
                f"{path}: expected a graph of at most {MOST_BYTES} bytes, found more; export with "
                "weights beside it"
            )
        try:
            return _model(path, memoryview(data))
        except (_Wrong, UnicodeDecodeError) as why:
            raise FileFormatError(
                f"{path}: expected an ONNX graph as exported here, found {why}; export it again"
            ) from None

    def check_external(self, files: Mapping[str, int]) -> None:
        """Every stored array lies in one of `files` (name -> bytes) and has the size it says."""
        for array in self.stored:
            size = files.get(array.location)
            if size is None:
                raise FileFormatError(
                    f"{self.path}: expected weights in a file of the bundle, found "
                    f"{short(array.location)} for {short(array.name)}; export it again"
                )
            bits = math.prod(array.shape) * next(b for n, b in DTYPES.values() if n == array.dtype)
            whole = array.length == -(-bits // 8)
            if not whole or array.offset + array.length > size:
                raise FileFormatError(
                    f"{self.path}: expected {-(-bits // 8)} bytes of {short(array.name)} within "
                    f"{size}, found {array.length} at {array.offset}; export it again"
                )


class _Wrong(ValueError):
    """What was found instead of a field of ours."""


def _fields(data: memoryview) -> Iterator[Field]:
    """Field number, wire type and value of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if wire == _BYTES:
            size, at = _varint(data, at)
        if size < 0 or at + size > len(data):
            raise _Wrong(f"a torn field {number}")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Wrong("its end too soon")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise _Wrong("a number of more than 64 bits")


def _part(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Wrong("a number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_part(value)).decode()


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _Wrong("a message where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def _model(path: Path, data: memoryview) -> OnnxFile:
    producer, opsets, graphs = "", dict[str, int](), list[memoryview]()
    for number, _, value in _fields(data):
        if number == 2:
            producer = _text(value)
        elif number == 8:
            domain, version = "", 0
            for inner, _, part in _fields(_part(value)):
                domain = _text(part) if inner == 1 else domain
                version = _number(part) if inner == 2 else version
            opsets[domain] = version
        elif number == 7:
            graphs.append(_part(value))
        elif number not in (1, 3, 4, 5, 6, 14):
            raise _Wrong(f"field {number} of a model")
    if len(graphs) != 1:
        raise _Wrong(f"{len(graphs)} graphs")
    inputs, outputs, stored = list[Value](), list[Value](), list[Stored]()
    operators = Counter[str]()
    for number, _, value in _fields(graphs[0]):
        if number == 1:
            operators[_node(_part(value))] += 1
        elif number == 5:
            array = _tensor(_part(value))
            stored += [array] if array else []
        elif number in (11, 12):
            (inputs if number == 11 else outputs).append(_value(_part(value)))
        elif number not in (2, 10, 13):
            raise _Wrong(f"field {number} of a graph")
    return OnnxFile(
        path, producer, opsets, tuple(inputs), tuple(outputs), dict(operators), tuple(stored)
    )


def _node(data: memoryview) -> str:
    """domain.kind of a node, after a look into its attributes."""
    kind, domain = "", ""
    for number, _, value in _fields(data):
        if number == 4:
            kind = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for inner, _, _ in _fields(_part(value)):
                if inner not in (1, 2, 3, 4, 7, 8, 9, 13, 20):  # scalars and lists of them
                    raise _Wrong(f"an attribute with field {inner}")
        elif number not in (1, 2, 3, 6):
            raise _Wrong(f"field {number} of a node")
    return f"{domain}.{kind}" if domain else kind


def _tensor(data: memoryview) -> Stored | None:
    """A stored initializer; None where its values stand in the graph."""
    name, dtype, shape, entries, outside = "", 0, list[int](), dict[str, str](), False
    for number, wire, value in _fields(data):
        if number == 1:
            shape += [_number(value)] if wire == _VARINT else _packed(_part(value))
        elif number == 2:
            dtype = _number(value)
        elif number == 8:
            name = _text(value)
        elif number == 13:
            pair = {inner: _text(part) for inner, _, part in _fields(_part(value))}
            key = pair.get(1, "")
            if key in entries or key not in ("location", "offset", "length"):
                raise _Wrong(f"external data with {short(key)}")
            entries[key] = pair.get(2, "")
        elif number == 14:
            outside = bool(_number(value))
    if not outside and not entries:
        return None
    known = all(0 <= size < 1 << 40 for size in shape) and len(shape) < 8 and dtype in DTYPES
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    if not known or not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers):
        raise _Wrong(f"external data of {short(name)} at {short(entries)}")
    location = entries.get("location", "")
    offset, length = map(int, numbers)
    return Stored(name, DTYPES[dtype][0], tuple(shape), location, offset, length)


def _packed(data: memoryview) -> list[int]:
    values, at = list[int](), 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(_number(value))
    return values


def _value(data: memoryview) -> Value:
    """ValueInfoProto: name = 1, type = 2; TypeProto.tensor_type = 1: elem_type = 1, shape = 2."""
    name, dtype, shape = "", "?", list[int | str]()
    for number, _, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for inner, _, tensor in _fields(_part(value)):
                if inner != 1:
                    raise _Wrong(f"a value of kind {inner}")
                for field, _, part in _fields(_part(tensor)):
                    if field == 1:
                        dtype = DTYPES.get(_number(part), ("?", 0))[0]
                    elif field == 2:
                        shape = [_dimension(_part(d)) for n, _, d in _fields(_part(part)) if n == 1]
    return Value(name, dtype, tuple(shape))


def _dimension(data: memoryview) -> int | str:
    for number, _, value in _fields(data):
        if number == 1:
            return _number(value)
        if number == 2:
            return _text(value)
    return "?"
