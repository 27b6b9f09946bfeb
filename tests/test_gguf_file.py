"""GGUF is read as the gguf package writes it, and every fault of a header is found before use."""

from __future__ import annotations

import os
import random
import re
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from mutations import mutate

from plm_edge.errors import (
    DoesNotFit,
    FileFormatError,
    OutputError,
    PlmEdgeError,
    UnsupportedError,
    UsageError,
)
from plm_edge.ggml_types import GGML_TYPES
from plm_edge.gguf_file import GgufFile
from plm_edge.tokenizer.strings import StringArray

# ---- a builder by hand, so that any byte can be wrong

U32, BOOL, STRING, ARRAY = 4, 7, 8, 9


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + data


def tensor(name: str | bytes, sizes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(sizes))
    return head + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


ALIGN = key("general.alignment", U32, struct.pack("<I", 32))
KEYS = [
    ALIGN,
    key("general.architecture", STRING, text("plm")),
    key("a.flag", BOOL, b"\x01"),
    key("a.words", ARRAY, array(STRING, 3, text("é") + text("") + text("two"))),
    key("a.numbers", ARRAY, array(5, 2, struct.pack("<2i", -1, 7))),
]
TENSORS = [tensor("x", [4, 3]), tensor("y", [32], 8, 64)]
DATA = bytes(range(64)) + bytes(34 + 30)


def build(
    keys: list[bytes] = KEYS,
    tensors: list[bytes] = TENSORS,
    data: bytes = DATA,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


GOOD = build()


def open_bytes(folder: Path, data: bytes) -> GgufFile:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return GgufFile.open(path)


def test_a_good_file(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, GOOD)
    assert file.metadata["general.architecture"] == "plm"
    assert file.metadata["a.flag"] is True
    words = file.metadata["a.words"]
    assert isinstance(words, StringArray)
    assert list(words) == ["é", "", "two"]
    np.testing.assert_array_equal(file.metadata["a.numbers"], [-1, 7])
    x, y = file.tensors["x"], file.tensors["y"]
    assert (x.shape, x.ggml_type, x.nbytes) == ((3, 4), 0, 48)
    assert (y.shape, y.ggml_type, y.nbytes) == ((32,), 8, 34)
    view = file.data("x")
    assert view.tobytes() == bytes(range(48))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    file.close()
    assert view[47] == 47  # the view keeps the mapping
    with pytest.raises(UsageError, match="closed"):
        file.data("x")
    open_bytes(tmp_path, build(version=2)).close()
    open_bytes(tmp_path, build(tensors=[], data=b"")).close()  # a vocabulary alone


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    """Every scalar type, every array type, and the tensors of every type we know the size of."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "plm")
    scalars: list[tuple[Callable[[str, Any], None], str, Any]] = [
        (writer.add_uint8, "u8", 200), (writer.add_int8, "i8", -100),
        (writer.add_uint16, "u16", 60_000), (writer.add_int16, "i16", -30_000),
        (writer.add_uint32, "u32", 4_000_000_000), (writer.add_int32, "i32", -2_000_000_000),
        (writer.add_uint64, "u64", 2**63), (writer.add_int64, "i64", -(2**62)),
        (writer.add_float32, "f32", 0.5), (writer.add_float64, "f64", 1e-300),
        (writer.add_bool, "yes", True), (writer.add_bool, "no", False),
        (writer.add_string, "text", "naïve 模型"),
    ]  # fmt: skip
    for add, name, value in scalars:
        add(name, value)
    tokens = [f"tok{'é' * (i % 5)}{i}" for i in range(3000)]
    writer.add_array("tokens", tokens)
    writer.add_array("floats", [0.25, -1.5])
    writer.add_array("flags", [True, False])
    rng = np.random.default_rng(0)
    stored = {}
    for number, (name, block, size) in GGML_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        stored[name] = rng.integers(0, 256, (3, 2 * size), dtype=np.uint8)
        assert gguf.GGML_QUANT_SIZES[kind] == (block, size)
        writer.add_tensor(name, stored[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(path)
    for _, name, value in scalars:
        assert file.metadata[name] == value
        assert type(file.metadata[name]) is type(value)
    assert list(file.metadata["tokens"]) == tokens
    np.testing.assert_array_equal(file.metadata["floats"], [0.25, -1.5])
    np.testing.assert_array_equal(file.metadata["flags"], [True, False])
    for number, (name, block, _) in GGML_TYPES.items():
        assert file.tensors[name].ggml_type == number
        assert file.tensors[name].shape == (3, 2 * block)
        np.testing.assert_array_equal(file.data(name), stored[name].ravel())


NO_ALIGN = KEYS[1:]


def aligned(value: bytes, kind: int = U32) -> bytes:
    return build([key("general.alignment", kind, value), *NO_ALIGN])


def one(*args: Any, data: bytes = DATA) -> bytes:
    return build(tensors=[tensor(*args)], data=data)


def words(count: int, data: bytes) -> bytes:
    return build([key("w", ARRAY, array(STRING, count, data))])


FAULTS: dict[str, tuple[bytes, type[PlmEdgeError], str]] = {
    "empty": (b"", FileFormatError, "has 0 bytes"),
    "23 bytes": (GOOD[:23], FileFormatError, "at least 24"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", FileFormatError, "git lfs pull"),
    "magic": (build(magic=b"GGML"), FileFormatError, "starts with b'GGML'"),
    "version 0": (build(version=0), UnsupportedError, "version 0"),
    "version 1": (build(version=1), UnsupportedError, "version 1"),
    "version 99": (build(version=99), UnsupportedError, "version 99"),
    "big-endian": (build(version=3 << 24), UnsupportedError, "big-endian"),
    "2^63 keys": (build(n_keys=2**63), FileFormatError, "keys are claimed"),
    "2^63 tensors": (build(n_tensors=2**63), FileFormatError, "tensors are claimed"),
    "a key too many": (build(n_keys=6), FileFormatError, "m.gguf: "),
    "a tensor too many": (build(n_tensors=3), FileFormatError, "m.gguf: "),
    "key of 2^64-1": (build([b"\xff" * 8 + b"abcdef" * 3]), FileFormatError, "a key claims"),
    "key of 60,000": (build([struct.pack("<Q", 60_000)] * 2), FileFormatError, "are left"),
    "key empty": (build([key("", BOOL, b"\0")]), FileFormatError, "empty"),
    "key twice": (build([ALIGN, ALIGN]), FileFormatError, "'general.alignment' is there twice"),
    "key not UTF-8": (build([key(b"\xff", BOOL, b"\0")]), FileFormatError, "not UTF-8"),
    "unknown value type": (build([key("k", 13, bytes(8))]), FileFormatError, "unknown type 13"),
    "boolean of 2": (build([key("k", BOOL, b"\2")]), FileFormatError, "true or false, found 2"),
    "text of 2^63": (
        build([key("k", STRING, struct.pack("<Q", 2**63))]), FileFormatError, "claims",
    ),
    "text not UTF-8": (build([key("k", STRING, text(b"\xc3("))]), FileFormatError, "not UTF-8"),
    "array of arrays": (
        build([key("k", ARRAY, array(ARRAY, 1, array(U32, 0, b"")))]), FileFormatError, "arrays",
    ),
    "array of unknown": (build([key("k", ARRAY, array(99, 1, b""))]), FileFormatError, "type 99"),
    "array of 2^60": (build([key("k", ARRAY, array(U32, 2**60, b""))]), FileFormatError, "needs"),
    "array of 2^62 wraps": (
        build([key("k", ARRAY, array(U32, 2**62, b""))]), FileFormatError, "needs",
    ),
    "2^60 words": (words(2**60, b""), FileFormatError, "claims"),
    "word of 2^64-1": (words(2, text("a") + b"\xff" * 8), FileFormatError, "longer than the file"),
    "word of 2^63-1": (
        words(2, struct.pack("<Q", 2**63 - 1) + text("")), FileFormatError, "longer than the file",
    ),
    "word too long": (words(1, struct.pack("<Q", 9999)), FileFormatError, "longer than the file"),
    "word not UTF-8": (words(1, text(b"\xff")), FileFormatError, "not UTF-8"),
    "character in two words": (words(2, text(b"\xc3") + text(b"\xa9")), FileFormatError, "UTF-8"),
    "alignment 0": (aligned(bytes(4)), FileFormatError, "power of two, found 0"),
    "alignment 3": (aligned(struct.pack("<I", 3)), FileFormatError, "power of two, found 3"),
    "alignment 2": (aligned(struct.pack("<I", 2)), FileFormatError, "8 or a higher power of two"),
    "alignment 2^31": (aligned(struct.pack("<I", 1 << 31)), FileFormatError, "power of two"),
    "alignment is text": (aligned(text("32"), STRING), FileFormatError, "power of two"),
    "alignment is true": (aligned(b"\1", BOOL), FileFormatError, "power of two"),
    "name of 64": (one("n" * 64, [1]), FileFormatError, "at most 63"),
    "name empty": (one("", [1]), FileFormatError, "a name"),
    "name not UTF-8": (one(b"\xfe", [1]), FileFormatError, "not UTF-8"),
    "tensor twice": (
        build(tensors=[tensor("x", [8]), tensor("x", [8], 0, 32)]), FileFormatError, "'x' is there",
    ),
    "no dimensions": (one("x", []), FileFormatError, "0 dimensions"),
    "five dimensions": (one("x", [1, 1, 1, 1, 1]), FileFormatError, "5 dimensions"),
    "size 0": (one("x", [0, 3]), FileFormatError, "impossible sizes"),
    "product wraps": (one("x", [2**32, 2**32]), FileFormatError, "impossible sizes"),
    "bytes wrap": (one("x", [2**61, 1], 0), FileFormatError, "past the end"),
    "not whole blocks": (one("x", [33], 8), FileFormatError, "blocks of 32"),
    "blocks across rows": (one("x", [16, 2], 8), FileFormatError, "blocks of 32"),
    "type -1": (one("x", [32], 2**32 - 1), FileFormatError, "unknown ggml type"),
    "type 99": (one("x", [32], 99), FileFormatError, "unknown ggml type 99"),
    "removed Q4_2": (one("x", [32], 4), UnsupportedError, "Q4_2, which ggml removed"),
    "removed Q4_0_4_4": (one("x", [32], 31), UnsupportedError, "Q4_0_4_4, which ggml removed"),
    "offset not aligned": (one("x", [4], 0, 4), FileFormatError, "no multiple of 32"),
    "offset 2^64-32": (one("x", [4], 0, 2**64 - 32), FileFormatError, "hole"),
    "hole": (one("x", [4], 0, 32), FileFormatError, "hole"),
    "overlap": (
        build(tensors=[tensor("x", [16]), tensor("y", [16], 0, 32)]), FileFormatError, "overlaps",
    ),
    "same place": (
        build(tensors=[tensor("x", [8]), tensor("y", [8])]), FileFormatError, "overlaps",
    ),
    "past the end": (one("x", [1000]), FileFormatError, "past the end"),
    "data cut": (GOOD[:-31], FileFormatError, "ends 1 bytes past the end"),
    "data left": (GOOD + b"x", FileFormatError, "1 bytes follow"),
    "parts as an array": (
        build([ALIGN, key("split.count", ARRAY, array(2, 2, bytes(4)))]), UnsupportedError, "split",
    ),
    "one of several": (
        build([ALIGN, key("split.count", 2, b"\2\0")]), UnsupportedError, "part of a split model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path: Path, name: str) -> None:
    data, kind, part = FAULTS[name]
    with pytest.raises(kind, match=re.escape(part)) as error:
        open_bytes(tmp_path, data)
    assert type(error.value) is kind
    assert str(error.value).startswith("m.gguf")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_too_many_of_anything(tmp_path: Path) -> None:
    many = build([key(f"{i:05}", BOOL, b"\0") for i in range(65_537)])
    with pytest.raises(FileFormatError, match="65537 keys are claimed"):
        open_bytes(tmp_path, many)
    with pytest.raises(FileFormatError, match="more than the file can hold"):
        open_bytes(tmp_path, words(2_097_153, bytes(8 * 2_097_153)))


def test_truncated_at_each_byte(tmp_path: Path) -> None:
    for end in range(len(GOOD) - 30):  # the last 30 bytes are padding that may be absent
        with pytest.raises(FileFormatError):
            open_bytes(tmp_path, GOOD[:end])
    open_bytes(tmp_path, GOOD[:-30]).close()


def test_not_a_regular_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="regular file"):
        GgufFile.open(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", "missing"):
        with pytest.raises(OutputError, match=f"cannot read {name}"):
            GgufFile.open(tmp_path / name)


def test_a_file_too_large_for_the_address_space_does_not_fit(tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    large.write_bytes(GOOD)
    os.truncate(large, 1 << 40)  # a hole: no disk is taken
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 39, before[1]))
    try:
        with pytest.raises(DoesNotFit, match=r"large.gguf: expected 1,048,576 MiB of addresses"):
            GgufFile.open(large)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_2000_mutations(tmp_path: Path) -> None:
    rng = random.Random(21)
    header = len(GOOD) - len(DATA)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for _ in range(2000):
        try:
            file = open_bytes(tmp_path, mutate(GOOD[:header], rng) + DATA)
        except PlmEdgeError:
            continue
        accepted += 1
        for name, found in file.tensors.items():
            assert file.data(name).nbytes == found.nbytes
    assert 0 < accepted < 1500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_every_flipped_bit_of_the_header(tmp_path: Path) -> None:
    for bit in range(8 * (len(GOOD) - len(DATA))):
        data = bytearray(GOOD)
        data[bit // 8] ^= 1 << bit % 8
        try:
            open_bytes(tmp_path, bytes(data)).close()
        except PlmEdgeError as error:
            assert len(str(error)) < 300  # noqa: PT017 (most flips are errors, some are other names)
