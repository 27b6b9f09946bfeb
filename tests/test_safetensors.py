"""The safetensors header: every fault is found before a value is read, nothing is ever guessed."""

from __future__ import annotations

import json
import random
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from mutations import mutate

from plm_edge.checkpoint import _read
from plm_edge.checkpoint.safetensors import SafetensorsFile
from plm_edge.errors import FileFormatError, PlmEdgeError

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
DATA = bytes(range(32))


def _file(header: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = _file({"__metadata__": {"format": "pt"}, "a": A, "b": B})


def _open(folder: Path, data: bytes) -> SafetensorsFile:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    return SafetensorsFile(path)


def test_good_header(tmp_path: Path) -> None:
    file = _open(tmp_path, GOOD)
    assert {name: (e.dtype, e.shape) for name, e in file.entries.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
    }
    assert file.read(file.entries["b"], 2, 4) == DATA[26:30]
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(file.entries["b"], 0, 1)


def test_order_padding_scalars_and_empty_tensors(tmp_path: Path) -> None:
    header = {
        "z": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "none": {"dtype": "F16", "shape": [0, 5], "data_offsets": [8, 8]},
    }
    _open(tmp_path, _file(json.dumps(header).encode() + b"   ", bytes(16))).close()


def _with(name: str, **changes: Any) -> bytes:
    header = {"a": dict(A), "b": dict(B)}
    header[name] |= changes
    return _file(header)


FAULTS = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (b"1234567", "has 7 bytes"),
    "length only": (bytes(8), "must start with"),
    "length 0": (_file(b""), "must start with"),
    "length beyond": (_file({"a": A}, length=10_000), "truncated"),
    "length 2^64-1": (_file({"a": A}, length=2**64 - 1), "truncated"),
    "header over the cap": (_file(b"{" + b" " * (17 << 20)), "at most"),
    "not an object": (_file(b"[1]"), "must start with"),
    "space first": (_file(b" {}"), "must start with"),
    "not JSON": (_file(b"{hello}"), "not valid JSON"),
    "not UTF-8": (_file(b'{"\xff":1}'), "not valid JSON"),
    "key twice": (_file(b'{"a":1,"a":1}'), "'a' twice"),
    "NaN": (_file(b'{"a":NaN}'), "NaN"),
    "deep": (_file(b'{"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}"), "deeper"),
    "a million values": (_file(b'{"a":[' + b"1," * 1_000_000 + b"1]}"), "more than 500000"),
    "metadata of numbers": (_file({"__metadata__": {"a": 1}, "a": A, "b": B}), "__metadata__"),
    "metadata is a list": (_file({"__metadata__": [], "a": A, "b": B}), "__metadata__"),
    "no tensor object": (_file({"a": 1}), "needs exactly"),
    "extra field": (_with("a", more=1), "needs exactly"),
    "field missing": (_file({"a": {"dtype": "F32", "shape": [1]}}), "needs exactly"),
    "unknown dtype": (_with("a", dtype="F31"), "unknown dtype 'F31'"),
    "dtype is a list": (_with("a", dtype=["F32"]), "unknown dtype"),
    "shape is text": (_with("a", shape="23"), "impossible shape"),
    "shape negative": (_with("a", shape=[-2, -3]), "impossible shape"),
    "shape of floats": (_with("a", shape=[2.0, 3]), "impossible shape"),
    "shape of booleans": (_with("a", shape=[True, 6]), "impossible shape"),
    "shape 2^64": (_with("a", shape=[2**64, 0]), "impossible shape"),
    "nine dimensions": (_with("a", shape=[1] * 8 + [6]), "impossible shape"),
    "product overflows": (_with("a", shape=[2**32, 2**32]), "needs"),
    "product wraps to the size": (_with("a", shape=[2**62 + 6, 4]), "needs"),
    "offsets reversed": (_with("a", data_offsets=[24, 0]), "impossible data_offsets"),
    "three offsets": (_with("a", data_offsets=[0, 24, 24]), "impossible data_offsets"),
    "offsets negative": (_with("a", data_offsets=[-24, 0]), "impossible data_offsets"),
    "size mismatch": (_with("a", shape=[2, 2]), "needs 16 bytes"),
    "half a byte": (_with("a", dtype="F4", shape=[49]), "needs 24.5 bytes"),
    "overlap": (_with("b", data_offsets=[20, 28]), "overlaps"),
    "same place": (_with("b", dtype="F32", shape=[6], data_offsets=[0, 24]), "overlaps"),
    "hole": (_file({"a": A, "b": B | {"data_offsets": [25, 33]}}, bytes(33)), "hole"),
    "hole at the start": (_file({"b": B}), "hole"),
    "data cut": (GOOD[:-1], "is truncated"),
    "data left": (GOOD + b"x", "after its last tensor"),
    "past the end": (_with("b", shape=[400], data_offsets=[24, 824]), "is truncated"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_header(tmp_path: Path, name: str) -> None:
    data, part = FAULTS[name]
    with pytest.raises(FileFormatError, match=re.escape(part)) as error:
        _open(tmp_path, data)
    assert str(error.value).startswith("x.safetensors")
    assert "\n" not in str(error.value)


def test_truncated_at_each_byte(tmp_path: Path) -> None:
    for end in range(len(GOOD)):
        with pytest.raises(FileFormatError):
            _open(tmp_path, GOOD[:end])


def test_2000_mutations(tmp_path: Path) -> None:
    """Only our own errors, and what we accept the safetensors package accepts and reads alike."""
    rng = random.Random(20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for _ in range(2000):
        data = mutate(GOOD, rng)
        try:
            file = _open(tmp_path, data)
        except PlmEdgeError:
            continue
        accepted += 1
        with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as theirs:
            assert set(theirs.keys()) == set(file.entries)
        file.close()
    assert 0 < accepted < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    """All 65,536 patterns but NaN and infinity, against arithmetic on sign, exponent, fraction."""
    path = tmp_path / "x.safetensors"
    bits = np.arange(1 << 16, dtype="<u2")
    header = {"x": {"dtype": "BF16", "shape": [1 << 16], "data_offsets": [0, 2 << 16]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bits.tobytes())
    file = SafetensorsFile(path)
    got = _read(file, file.entries["x"], 0, 1 << 16)
    file.close()
    exponent, fraction = (bits >> 7) & 255, (bits & 127) / 128.0
    normal = exponent > 0
    want = np.where(bits >> 15, -1.0, 1.0) * (normal + fraction)
    want *= 2.0 ** (np.maximum(exponent, 1).astype(np.float64) - 127)
    finite = exponent < 255
    np.testing.assert_array_equal(got[finite], want[finite].astype(np.float32))
    assert not np.isfinite(got[~finite]).any()
