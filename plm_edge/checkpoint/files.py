"""Opening the files of a model folder: contained, regular, watched for change; strict JSON.

A name inside the folder may come from the model itself (the index names its shards), so it never
leads outside: no separators, no links but those of the Hugging Face cache to its own blobs.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm_edge.errors import FileFormatError, OutputError, short

_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_DEPTH = 64
_MAX_VALUES = 500_000  # brackets and commas of one JSON text: bounds what parsing can allocate


@dataclass(frozen=True)
class Signature:
    """What tells that a file is still the one that was read."""

    path: Path
    key: tuple[int, int, int, int]  # device, inode, size in bytes, time of change in ns

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> Signature:
        return cls(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))

    def check(self) -> None:
        """Raises FileFormatError when the path no longer holds the same file."""
        try:
            same = Signature.of(self.path, os.stat(self.path)) == self
        except OSError:
            same = False
        if not same:
            raise FileFormatError(
                f"{self.path.name} changed while it was read; run again when nobody writes it"
            )


def locate(folder: Path, name: str) -> Path | None:
    """The real path of `name` in `folder`, None where there is no such entry.

    Raises FileFormatError for a name that is not a plain file name and for a link that leaves the
    folder, except into the blobs of the same Hugging Face repository cache.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0") or ":" in name[:2]:
        raise FileFormatError(f"expected a plain file name, found {short(name)}; nothing was read")
    entry = folder / name
    try:
        if not entry.is_symlink():
            return entry if entry.exists() else None
        target = entry.resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as why:
        raise FileFormatError(f"{short(name)} cannot be reached ({_reason(why)})") from None
    blobs = home.parent.parent / "blobs"
    if target.parent == home or (home.parent.name == "snapshots" and target.parent == blobs):
        return target
    raise FileFormatError(
        f"{short(name)} is a link that leaves the model folder; put the file itself into the folder"
    )


def open_regular(path: Path) -> int:
    """A file descriptor for reading. Raises where `path` is no regular file or cannot be opened."""
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as why:
        raise OutputError(f"cannot read {path.name}: {_reason(why)}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileFormatError(f"expected {path.name} to be a regular file; it is not")
    return fd


def read_at(fd: int, offset: int, count: int, where: str) -> bytes:
    """Exactly `count` bytes; a file that became shorter is an error, never a crash."""
    parts = []
    while count:
        try:
            part = os.pread(fd, min(count, 1 << 30), offset)
        except OSError as why:
            raise OutputError(f"cannot read {where}: {_reason(why)}") from None
        if not part:
            raise FileFormatError(f"{where} ends at byte {offset}, {count} bytes too early")
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_small(path: Path, most: int) -> tuple[bytes, Signature]:
    """A whole file of at most `most` bytes."""
    fd = open_regular(path)
    try:
        status = os.fstat(fd)
        if status.st_size > most:
            raise FileFormatError(
                f"{path.name} has {status.st_size} bytes, at most {most} are expected; "
                "download it again"
            )
        data = read_at(fd, 0, status.st_size, path.name)
    finally:
        os.close(fd)
    refuse_lfs_pointer(data, path.name)
    return data, Signature.of(path, status)


def refuse_lfs_pointer(start: bytes, where: str) -> None:
    if start.startswith(_LFS):
        raise FileFormatError(
            f"{where} is a Git LFS pointer, not the file itself; run git lfs pull"
        )


def parse_json_object(data: bytes, where: str, most: int = _MAX_VALUES) -> dict[str, Any]:
    """Strict JSON: UTF-8 without mark, no duplicate keys, no NaN, not deeper than 64."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise FileFormatError(f"{where} starts with a byte order mark; save it as plain UTF-8")
    if sum(data.count(c) for c in (b"[", b"{", b",")) > most:
        raise FileFormatError(f"{where} holds more than {most} values; that is no model")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, where),
            parse_constant=lambda text: _constant(text, where),
        )
    except RecursionError:
        raise FileFormatError(
            f"{where} is nested deeper than {_MAX_DEPTH} levels; that is no model"
        ) from None
    except ValueError as why:  # also UnicodeDecodeError and JSONDecodeError
        raise FileFormatError(f"{where} is not valid JSON ({_reason(why)}); get it anew") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{where} must hold a JSON object, found {type(value).__name__}")
    _check_depth(value, where)
    return value


def _check_depth(value: object, where: str) -> None:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise FileFormatError(f"{where} is nested deeper than {_MAX_DEPTH} levels; that is no model")


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FileFormatError(f"{where} has the key {short(twice)} twice; keep one")
    return result


def _constant(text: str, where: str) -> None:
    raise FileFormatError(f"{where} holds {text}, which is not JSON")


def _reason(why: Exception) -> str:
    """The first line of an error, without the path that OSError appends."""
    text = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
    return text.splitlines()[0] if text else type(why).__name__
