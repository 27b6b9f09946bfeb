"""A session on disk: the ids and cached rows, bound to the weights they were computed with.

    b"PLMS", u32 version, u64 header bytes | header, JSON | rows (layers, n, row) as cached

Little-endian. The header names the sha256 of the weights' file and of the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from plm_edge.atomic import write_atomic
from plm_edge.errors import FileFormatError, OutputError

if TYPE_CHECKING:
    from plm_edge.runtime.any_session import AnySession

_HEADER = struct.Struct("<4sIQ")
_MAGIC, _VERSION, _MOST = b"PLMS", 1, 2**26  # a header of 64 MiB names some 8 million ids


def write(path: Path, session: AnySession) -> None:
    """Write the session's file atomically."""
    rows = np.ascontiguousarray(session.cached_rows())
    about = _about(session) | {"ids": list(session.ids), "rows": _sha256(rows.data)}
    header = json.dumps(about, sort_keys=True).encode()

    def fill(file: BinaryIO) -> None:
        file.write(_HEADER.pack(_MAGIC, _VERSION, len(header)) + header)
        file.write(rows.data)

    write_atomic(path, fill)


def read(path: Path, session: AnySession) -> list[int]:
    """Copy the rows into the session's cache and return its ids; on any error nothing is copied."""
    data = _bytes_of(path, session)
    header, rows = _split(path, data)
    for key, expected in _about(session).items():
        if header.get(key) != expected:
            raise FileFormatError(
                f"{path}: expected a session of these weights ({key} {str(expected)[:16]}), found "
                f"{str(header.get(key))[:16]}; load the model and cache type it was saved with"
            )
    ids = header.get("ids")
    if not isinstance(ids, list) or any(
        type(i) is not int or not 0 <= i < session.spec.vocab for i in ids
    ):
        raise FileFormatError(f"{path}: expected a list of token ids, found none; save it again")
    if len(ids) > session.n_ctx:
        raise FileFormatError(
            f"{path}: expected at most {session.n_ctx} tokens, found {len(ids)}; "
            "load with a larger context (-c)"
        )
    target = session.cached_rows_of(len(ids))
    if len(rows) != target.nbytes or _sha256(rows) != header.get("rows"):
        raise FileFormatError(f"{path}: expected whole rows, found a damaged file; save it again")
    target[:] = np.frombuffer(rows, target.dtype).reshape(target.shape)
    return ids


def _bytes_of(path: Path, session: AnySession) -> bytes:
    """The whole file, if it is one and no larger than a session of this context can be."""
    most = _HEADER.size + _MOST + session.cache_bytes
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(
                    f"{path}: expected a plain file, found none; name what save wrote"
                )
            if status.st_size > most:
                raise FileFormatError(
                    f"{path}: expected a session of at most {session.n_ctx} tokens, {most} bytes, "
                    f"found {status.st_size} bytes; load with a larger context (-c)"
                )
            return file.read(status.st_size)
    except OSError as why:
        raise OutputError(f"cannot read {path}: {why.strerror}") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for its writer


def _about(session: AnySession) -> dict[str, Any]:
    return {"weights": session.model.sha256, "cache_type": session.cache_type}


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _split(path: Path, data: bytes) -> tuple[dict[str, Any], memoryview]:
    torn = FileFormatError(f"{path}: expected a saved session, found something else; save it again")
    if len(data) < _HEADER.size:
        raise torn
    magic, version, size = _HEADER.unpack_from(data)
    if magic != _MAGIC or size > min(_MOST, len(data) - _HEADER.size):
        raise torn
    if version != _VERSION:
        raise FileFormatError(
            f"{path}: expected a saved session of version {_VERSION}, found {version}; "
            "save it again"
        )
    try:
        header = json.loads(data[_HEADER.size : _HEADER.size + size])
    except (ValueError, RecursionError):
        raise torn from None
    if not isinstance(header, dict):
        raise torn
    return header, memoryview(data)[_HEADER.size + size :]
