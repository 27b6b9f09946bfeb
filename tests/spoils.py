"""What can be wrong in a folder that holds a checkpoint `hf` and bundles `mine` and `out`.

Each spoil is a function of that folder. `tree` and `assert_one_line` say whether the program then
kept its promise.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny import TINY_SHAPES, config_of, tiny_weights, write_safetensors, write_tiny_checkpoint

import plm_edge
from plm_edge.gguf_file import GgufFile
from plm_edge.tensors import tensor_table

SPEC = TINY_SHAPES["plain"]
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"

Spoil = Callable[[Path], object]


def assert_one_line(found: int, out: str, err: str, code: int, message: str) -> None:
    assert (found, out) == (code, ""), err
    assert err.startswith("plm-edge: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert len(err) < 500
    at = 0
    for part in message.split(" ... "):
        assert part in err[at:], err
        at = err.index(part, at) + len(part)


def tree(folder: Path) -> dict[str, Any]:
    """Every file below `folder`: its identity, mode, time and bytes (not those of huge ones)."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        files = (status.st_ino, status.st_size, status.st_mtime_ns) if path.is_file() else ()
        data = path.read_bytes() if path.is_file() and status.st_size < 1 << 20 else b""
        found[str(path.relative_to(folder))] = (status.st_mode, *files, data)
    return found


def config(**keys: Any) -> Spoil:
    """Change keys of config.json; None takes one away."""

    def spoil(here: Path) -> None:
        content = json.loads((here / "hf" / CONFIG).read_text()) | keys
        content = {key: value for key, value in content.items() if value is not None}
        (here / "hf" / CONFIG).write_text(json.dumps(content))

    return spoil


def text(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda here: (here / name).write_bytes(data)


def weight(name: str, value: float) -> Spoil:
    """One value of one tensor."""

    def spoil(here: Path) -> None:
        weights = tiny_weights(SPEC)
        weights[name].flat[weights[name].size // 2] = value
        write_safetensors(here / "hf" / WEIGHTS, weights)

    return spoil


def shards(change: Callable[[dict[str, str]], object]) -> Spoil:
    """The same checkpoint in two shards, with another index."""

    def spoil(here: Path) -> None:
        shutil.rmtree(here / "hf")
        write_tiny_checkpoint(here / "hf", SPEC, shards=2)
        index = json.loads((here / "hf" / INDEX).read_text())
        change(index["weight_map"])
        (here / "hf" / INDEX).write_text(json.dumps(index))

    return spoil


def claim(length: int) -> Spoil:
    """Another length of the header than it has."""

    def spoil(here: Path) -> None:
        with (here / "hf" / WEIGHTS).open("r+b") as file:
            file.write(length.to_bytes(8, "little"))

    return spoil


def size(name: str, length: int) -> Spoil:
    return lambda here: os.truncate(here / name, length)


def removed(name: str) -> Spoil:
    return lambda here: (here / name).unlink()


def pickled(here: Path) -> None:
    (here / "hf" / WEIGHTS).rename(here / "hf" / "pytorch_model.bin")


def too_many_tokens(here: Path) -> None:
    shutil.rmtree(here / "hf")
    write_tiny_checkpoint(here / "hf", replace(SPEC, vocab=300))


def foreign(here: Path) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "one.jpg").write_bytes(b"1")


def beside(here: Path) -> None:
    (here / "out" / "thesis.tex").write_text("x")


def untied(here: Path) -> None:
    write_tiny_checkpoint(here / "untied", TINY_SHAPES["untied"])


def nothing(here: Path) -> None:
    """Only the command is wrong."""


def flipped(name: str, at: int) -> Spoil:
    def spoil(here: Path) -> None:
        data = bytearray((here / name).read_bytes())
        data[at] ^= 1
        (here / name).write_bytes(data)

    return spoil


def replaced(name: str, old: bytes, new: bytes) -> Spoil:
    def spoil(here: Path) -> None:
        data = (here / name).read_bytes()
        assert old in data
        (here / name).write_bytes(data.replace(old, new, 1))

    return spoil


def scale_is_nan(here: Path) -> None:
    """The first scale of a quantized tensor of `out`, as a file without its manifest."""
    shutil.copy(here / "out/model.gguf", here / "nan.gguf")
    file = GgufFile.open(here / "nan.gguf")
    offset = next(t.offset for name, t in file.tensors.items() if "blk.0.attn_q" in name)
    file.close()
    with (here / "nan.gguf").open("r+b") as opened:
        opened.seek(offset)
        opened.write(np.float16(np.nan).tobytes())


def saved_session(here: Path) -> None:
    with plm_edge.load(here / "mine") as session:
        session.prefill([1, 2, 3])
        session.save(here / "saved")


def write_zeros(folder: Path) -> None:
    """A checkpoint whose export takes seconds and whose weights take no space: a hole of zeros."""
    spec = replace(SPEC, layers=1, d_model=1024, d_ffn=1 << 18)
    write_tiny_checkpoint(folder, SPEC, config=config_of(spec))
    header: dict[str, Any] = {}
    at = 0
    for info in tensor_table(spec).values():
        end = at + 4 * int(np.prod(info.shape))
        header[info.hf_name] = {"dtype": "F32", "shape": info.shape, "data_offsets": [at, end]}
        at = end
    data = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(data).to_bytes(8, "little") + data)
    os.truncate(folder / WEIGHTS, 8 + len(data) + at)
