"""Saved logits: the file that llama.cpp's llama-perplexity writes with --kl-divergence-base.

    "_logits_" | u32 window | i32 vocab | i32 windows | i32 ids of all windows
    then for each window a row for each of its scored positions:
        f32 step | f32 lowest | u16 q[vocab], one more where vocab is odd   log p = lowest + step q

Scored are positions window/2 .. window-2. A row keeps 16 nats below its likeliest token, in steps
of a 65,535th of that; what is less likely is left out of a KL, there and here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import FileFormatError, OutputError

_MAGIC = b"_logits_"
_HEAD = struct.Struct("<Iii")
_STEPS = 65535
NATS = 16.0  # below the likeliest token


def scored(window: int) -> range:
    """Positions of a window whose logits count: its second half, but for the last."""
    return range(window // 2, window - 1)


class LogitFile:
    """One saved file: its text and, window by window, the log probabilities."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(len(_MAGIC) + _HEAD.size)
        except OSError as why:
            raise OutputError(f"{path}: cannot be read: {why.strerror}; check it") from None
        if len(start) < len(_MAGIC) + _HEAD.size or not start.startswith(_MAGIC):
            raise self._wrong(f"a file that starts with {_MAGIC!r}", f"{start[:8]!r}")
        self.window, self.vocab, self.windows = _HEAD.unpack(start[len(_MAGIC) :])
        if self.window < 3 or self.vocab < 1 or self.windows < 1:
            sizes = f"{self.windows} windows of {self.window} ids, {self.vocab} tokens"
            raise self._wrong("windows, ids and tokens", sizes)
        self._rows_at = len(start) + 4 * self.window * self.windows
        wanted = self._rows_at + self.windows * len(scored(self.window)) * self._row_bytes
        if size != wanted:
            raise self._wrong(f"{wanted} bytes", f"{size}")
        ids = np.fromfile(path, "<i4", self.window * self.windows, offset=len(start))
        self.ids: list[int] = ids.tolist()

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether the file at `path` begins like one."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC

    def log_probs(self, window: int, first: int, count: int) -> NDArray[np.float64]:
        """Rows first .. first+count-1 of those scored: (count, vocab); below -NATS unknown."""
        row = window * len(scored(self.window)) + first
        at = self._rows_at + row * self._row_bytes
        try:
            data = np.fromfile(self.path, np.uint8, count * self._row_bytes, offset=at)
        except OSError as why:
            raise OutputError(f"{self.path}: cannot be read: {why.strerror}") from None
        if data.size != count * self._row_bytes:
            raise self._wrong("the file as it was opened", "a shorter one")
        rows = data.reshape(count, self._row_bytes)
        step, lowest = rows[:, :8].copy().view("<f4").astype(np.float64).T[:, :, None]
        quants = rows[:, 8:].copy().view("<u2")[:, : self.vocab]
        log_p: NDArray[np.float64] = lowest + step * quants
        if not np.isfinite(log_p).all():
            raise self._wrong("log probabilities", "NaN or infinity")
        return log_p

    @property
    def _row_bytes(self) -> int:
        return _row_bytes(self.vocab)

    def _wrong(self, expected: str, found: str) -> FileFormatError:
        return FileFormatError(
            f"{self.path}: expected saved logits with {expected}, found {found}; save them again"
        )


def header(window: int, vocab: int, ids: Sequence[int]) -> bytes:
    """What stands before the rows; `ids` are those of whole windows."""
    head = _HEAD.pack(window, vocab, len(ids) // window)
    return _MAGIC + head + np.asarray(ids, "<i4").tobytes()


def write_rows(file: BinaryIO, log_probs: NDArray[np.float64]) -> None:
    """Append rows (n, vocab)."""
    for row in log_probs:
        file.write(_packed(row))


def _packed(row: NDArray[np.float64]) -> bytes:
    highest = row.max()
    lowest = max(row.min(), highest - NATS)
    step = np.float32((highest - lowest) / _STEPS)
    quants = np.zeros(2 * -(-row.size // 2), "<u2")
    if step:
        steps = np.rint(np.maximum(row - lowest, 0.0) / np.float64(step))
        quants[: row.size] = np.minimum(steps, _STEPS)
    return struct.pack("<ff", step, lowest) + quants.tobytes()


def _row_bytes(vocab: int) -> int:
    return 8 + 2 * 2 * -(-vocab // 2)


def windows_of(ids: Sequence[int], window: int) -> Iterator[list[int]]:
    """Whole windows, one after the other."""
    for start in range(0, len(ids) - window + 1, window):
        yield list(ids[start : start + window])
