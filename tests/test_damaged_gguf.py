"""Damaged stock files (Q4_K and Q6_K) on the whole way: a session, an export, the command line.

Each is refused in one line, before anything large is allocated, and leaves nothing behind.
tests/native/sanitize.sh runs this under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from allocations import most_allocated
from super_files import SPEC, write_stock

from plm_edge.errors import FileFormatError, NumericalError, PlmEdgeError
from plm_edge.exporters import export
from plm_edge.gguf_file import GgufFile
from plm_edge.runtime import load

Damage = Callable[[bytearray], object]
MAIN = "from plm_edge.cli import main; main()"
MOST = 1 << 20  # bytes that a refusal may allocate; seen: 102 KiB, most of it the vocabulary


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def put(at: int, new: bytes) -> Damage:
    def damage(data: bytearray) -> None:
        data[at : at + len(new)] = new

    return damage


def behind(name: str, skip: int, new: bytes) -> Damage:
    """New bytes so many behind the first place where `name` stands with its length."""

    def damage(data: bytearray) -> None:
        at = data.index(u64(len(name)) + name.encode()) + 8 + len(name) + skip
        data[at : at + len(new)] = new

    return damage


def cut(end: int) -> Damage:
    def damage(data: bytearray) -> None:
        del data[end:]

    return damage


def renamed(old: str, new: str) -> Damage:
    assert len(old) == len(new)

    def damage(data: bytearray) -> None:
        assert old.encode() in data
        data[:] = data.replace(old.encode(), new.encode())

    return damage


def grown(data: bytearray) -> None:
    data += bytes(4096)


Q4_K, Q6_K, F32 = "blk.0.ffn_up.weight", "token_embd.weight", "blk.0.attn_norm.weight"
TOKENS, KEY = "tokenizer.ggml.tokens", "plm.attention.kv_lora_rank"
# A tensor: name | u32 dims | u64 sizes | u32 type | u64 offset. A key: name | u32 type | value.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty": (cut(0), "has 0 bytes"),
    "the magic alone": (cut(4), "has 4 bytes"),
    "cut in the header": (cut(4096), ""),
    "cut in the keys": (cut(300), ""),
    "a byte short": (cut(-1), "past the end"),
    "a page short": (cut(-4096), "past the end"),
    "a page more": (grown, "4096 bytes follow"),
    "another magic": (put(0, b"GGML"), "starts with b'GGML'"),
    "version 0": (put(4, u32(0)), "version 0"),
    "version 99": (put(4, u32(99)), "version 99"),
    "big-endian": (put(4, b"\0\0\0\3"), "big-endian"),
    "2^63 tensors": (put(8, u64(2**63)), "tensors are claimed"),
    "2^63 keys": (put(16, u64(2**63)), "keys are claimed"),
    "no tensors": (put(8, u64(0)), "bytes follow the last tensor"),
    "a key of 2^60 bytes": (put(24, u64(2**60)), "a key claims"),
    "an array of 2^60": (behind(TOKENS, 8, u64(2**60)), "claims 1152921504606846976"),
    "a nested array": (behind(TOKENS, 4, u32(9)), "is an array of arrays"),
    "a token of 2^62 bytes": (behind(TOKENS, 16, u64(2**62)), "longer than the file"),
    "a key of another type": (behind(KEY, 0, u32(6)), ""),
    "a rank of 0": (behind(KEY, 4, u32(0)), ""),
    "a rank of 2^31": (behind(KEY, 4, u32(2**31)), ""),
    "another rank": (behind(KEY, 4, u32(256)), "expected blk.0.attn_kv_a"),
    "a vocabulary too small": (behind("plm.vocab_size", 4, u32(100)), "tokens"),
    "an eos past the end": (behind("tokenizer.ggml.eos_token_id", 4, u32(2**31)), "2147483648"),
    "another architecture": (put(24 + 8 + 20 + 4 + 8, b"abc"), "architecture 'abc'"),
    "five dimensions": (behind(Q4_K, 0, u32(5)), "5 dimensions"),
    "a product that wraps": (behind(Q4_K, 4, u64(2**32) * 2), "impossible sizes"),
    "not whole superblocks": (behind(Q4_K, 4, u64(128)), "blocks of 256"),
    "fewer rows": (behind(Q4_K, 12, u64(16)), ""),
    "type -1": (behind(Q4_K, 20, u32(2**32 - 1)), "unknown ggml type"),
    "a type that ggml removed": (behind(Q4_K, 20, u32(31)), "Q4_0_4_4, which ggml removed"),
    "a type that is not read": (behind(Q4_K, 20, u32(13)), ""),
    "an offset off its alignment": (behind(Q4_K, 24, u64(33)), "no multiple of 32"),
    "an offset past the end": (behind(Q4_K, 24, u64(2**62)), "hole"),
    "two tensors in one place": (behind(Q4_K, 24, u64(0)), "overlaps"),
    "a norm that is no F32": (behind(F32, 12, u32(1)), ""),
    "a tensor by another name": (renamed("blk.0.ffn_up", "blk.0.ffn_xp"), "expected tensor"),
    "a key by another name": (renamed("plm.block_count", "plm.block_coint"), "block_count"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_stock(tmp_path_factory.mktemp("stock"))[0].read_bytes()


def damaged(folder: Path, good: bytes, damage: Damage) -> Path:
    data = bytearray(good)
    damage(data)
    if bytes(data) == good:
        raise AssertionError("the damage changes nothing")
    path = folder / "stock.gguf"
    path.write_bytes(data)
    return path


def refusal(run: Callable[[], object]) -> tuple[PlmEdgeError, int]:
    """The error, and the most bytes that were allocated on the way to it."""
    errors = []

    def refused() -> None:
        with pytest.raises(PlmEdgeError) as error:
            run()
        errors.append(error.value)

    allocated = most_allocated(refused)
    return errors[0], allocated


def test_there_are_thirty_of_them() -> None:
    assert len(DAMAGES) >= 30


def test_what_python_allocates_once_is_not_counted() -> None:
    kept: list[bytes] = []
    assert most_allocated(lambda: kept or kept.append(bytes(MOST))) < MOST
    assert most_allocated(lambda: bytes(MOST)) > MOST


def test_the_file_itself_is_good(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stock.gguf"
    path.write_bytes(good)
    with load(path) as session:
        assert np.isfinite(session.prefill([1, 2, 3])).all()


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(good: bytes, tmp_path: Path, name: str) -> None:
    damage, part = DAMAGES[name]
    path = damaged(tmp_path, good, damage)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for run in (lambda: load(path), lambda: export(path, "rpi", tmp_path / "out")):
        error, allocated = refusal(run)
        assert error.exit_code in (3, 6), error
        assert part in str(error), error
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        assert allocated < MOST
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 100 << 10  # KiB
    assert [child.name for child in tmp_path.iterdir()] == ["stock.gguf"]


@pytest.mark.parametrize("name", ["cut in the header", "2^63 tensors", "not whole superblocks"])
@pytest.mark.parametrize("command", ["chat", "export", "inspect"])
def test_the_command_line_says_it_in_one_line(
    good: bytes, tmp_path: Path, command: str, name: str
) -> None:
    path = damaged(tmp_path, good, DAMAGES[name][0])
    more = {"chat": ["-p", "x"], "export": ["--target", "rpi", "-o", str(tmp_path / "out")]}
    call = [sys.executable, "-c", MAIN, command, str(path), *more.get(command, [])]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, ""), done
    assert done.stderr.startswith("plm-edge: stock.gguf")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("tensor", "halves"), [(Q4_K, (0, 2)), (Q6_K, (208,)), ("blk.1.ffn_down.weight", (208,))]
)
def test_a_scale_that_is_not_finite_is_refused_or_shows(
    good: bytes, tmp_path: Path, tensor: str, halves: tuple[int, ...]
) -> None:
    path = tmp_path / "stock.gguf"
    path.write_bytes(good)
    file = GgufFile.open(path)
    offset = file.tensors[tensor].offset
    file.close()
    for half in halves:
        for bits in (0x7C00, 0xFC00, 0x7E00):
            data = bytearray(good)
            data[offset + half : offset + half + 2] = struct.pack("<H", bits)
            path.write_bytes(data)
            with pytest.raises(NumericalError, match=rf"{tensor}, row 0: expected numbers of Q"):
                export(path, "rpi", tmp_path / "out")
            with load(path) as session:
                logits = np.stack([session.step(token) for token in (0, 1, 2)])
            assert not np.isfinite(logits).all()
    assert not (tmp_path / "out").exists()


def test_any_flipped_bit_of_the_weights_is_survived(good: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    path = tmp_path / "stock.gguf"
    path.write_bytes(good)
    file = GgufFile.open(path)
    start = min(tensor.offset for tensor in file.tensors.values())
    file.close()
    for _ in range(20):
        data = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(start, len(data), 50)
        data[places] ^= np.uint8(1) << rng.integers(0, 8, 50, np.uint8)
        path.write_bytes(data)
        with load(path) as session:
            assert session.prefill([1, 2, 3]).shape == (SPEC.vocab,)


def test_truncated_at_every_page_and_anywhere(good: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    path = tmp_path / "stock.gguf"
    path.write_bytes(good)
    for end in sorted([*range(0, len(good), 4096), *rng.integers(0, len(good), 200)])[::-1]:
        with path.open("r+b") as file:
            file.truncate(int(end))
        with pytest.raises(FileFormatError):
            GgufFile.open(path)
