"""Binding of bpe.c: a vocabulary's tables, and words merged into ids."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import FileFormatError
from plm_edge.native import lib

U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]


class Strings(Protocol):
    """Strings in one piece: string i is blob[offsets[i]:offsets[i + 1]], UTF-8."""

    @property
    def blob(self) -> bytes | memoryview: ...
    @property
    def offsets(self) -> I64: ...


class _Build(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "token_blob", "token_offsets", "added", "merge_blob", "merge_offsets",
            "token_slots", "merge_slots", "left", "right", "result", "byte_ids",
            "raw", "raw_offsets",
        )),
        *((name, ctypes.c_int64) for name in (
            "n_tokens", "n_merges", "token_slot_mask", "merge_slot_mask", "where",
        )),
    )  # fmt: skip


class _Encode(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "merge_slots", "left", "right", "result", "byte_ids",
            "words", "word_offsets", "ids", "id_offsets", "work",
        )),
        *((name, ctypes.c_int64) for name in ("merge_slot_mask", "n_words")),
    )  # fmt: skip


@functools.cache
def _native() -> ctypes.CDLL:
    native = lib()
    native.plm_bpe_build.restype = ctypes.c_int32
    native.plm_bpe_build.argtypes = (ctypes.POINTER(_Build),)
    native.plm_bpe_encode.restype = ctypes.c_int64
    native.plm_bpe_encode.argtypes = (ctypes.POINTER(_Encode),)
    native.plm_bpe_work_values.restype = ctypes.c_int64
    native.plm_bpe_work_values.argtypes = (ctypes.c_int64,)
    return native


_FAULTS = {
    1: "{what} {where}: offsets that ascend, found others",
    2: "token {where}: a text in the byte alphabet of GPT-2, found {text!r}",
    3: "token {where}: a text of its own, found {text!r} a second time",
    4: "a token for each of the 256 bytes, found none for byte {where}",
    5: "merge {where}: two parts with one space between, found {text!r}",
    6: "merge {where}: parts and a result that are tokens, found {text!r}",
    7: "merge {where}: a pair of its own, found {text!r} a second time",
}


@dataclass(frozen=True)
class BpeTables:
    """What `encode` reads; built once, never written again."""

    merge_slots: U32  # (slots,) ranks, a hash table
    left: U32  # (n_merges,) token ids
    right: U32  # (n_merges,)
    result: U32  # (n_merges,)
    byte_ids: U32  # (256,)
    raw: bytes  # the bytes of all tokens
    raw_offsets: I64  # (n_tokens + 1,)


def _slots(n: int) -> U32:
    """A hash table that is at most half full."""
    return np.empty(1 << max(4, (2 * n).bit_length()), np.uint32)


def _bytes(strings: Strings) -> NDArray[np.uint8]:
    blob = np.frombuffer(strings.blob, np.uint8) if len(strings.blob) else np.zeros(1, np.uint8)
    if strings.offsets[0] != 0 or strings.offsets[-1] > len(strings.blob):
        raise FileFormatError("expected strings that lie inside their bytes, found others")
    return blob


def _fault(code: int, where: int, tokens: Strings, merges: Strings) -> FileFormatError:
    strings = merges if code >= 5 else tokens
    text = ""
    if code not in (1, 4):
        start, stop = strings.offsets[where : where + 2]
        text = bytes(strings.blob[start:stop]).decode("utf-8", "replace")[:80]
    expected = _FAULTS[code].format(what="string", where=where, text=text)
    return FileFormatError(f"tokenizer: expected {expected}; take the model's own tokenizer files")


def build(tokens: Strings, added: NDArray[np.uint8], merges: Strings) -> BpeTables:
    """Check a vocabulary and build its tables.

    `added` (n_tokens,) is 1 for the tokens that stand for their own text and come from no merge.
    """
    n_tokens, n_merges = len(tokens.offsets) - 1, len(merges.offsets) - 1
    arrays: dict[str, Any] = {
        "token_blob": _bytes(tokens),
        "token_offsets": np.ascontiguousarray(tokens.offsets, np.int64),
        "added": np.ascontiguousarray(added, np.uint8),
        "merge_blob": _bytes(merges),
        "merge_offsets": np.ascontiguousarray(merges.offsets, np.int64),
        "token_slots": _slots(n_tokens),
        "merge_slots": _slots(n_merges),
        "left": np.empty(n_merges, np.uint32),
        "right": np.empty(n_merges, np.uint32),
        "result": np.empty(n_merges, np.uint32),
        "byte_ids": np.empty(256, np.uint32),
        "raw": np.empty(len(tokens.blob) + 1, np.uint8),
        "raw_offsets": np.empty(n_tokens + 1, np.int64),
    }
    args = _Build(
        **{name: array.ctypes.data for name, array in arrays.items()},
        n_tokens=n_tokens,
        n_merges=n_merges,
        token_slot_mask=len(arrays["token_slots"]) - 1,
        merge_slot_mask=len(arrays["merge_slots"]) - 1,
    )
    code = _native().plm_bpe_build(ctypes.byref(args))
    if code:
        raise _fault(code, int(args.where), tokens, merges)
    kept = ("merge_slots", "left", "right", "result", "byte_ids", "raw_offsets")
    raw = arrays["raw"][: arrays["raw_offsets"][-1]].tobytes()
    return BpeTables(raw=raw, **{name: arrays[name] for name in kept})


def encode(tables: BpeTables, words: Sequence[bytes]) -> list[list[int]]:
    """The ids of each word."""
    blob = b"".join(words)
    offsets = np.zeros(len(words) + 1, np.int64)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    np.cumsum(lengths, out=offsets[1:])
    native = _native()
    work = np.empty(native.plm_bpe_work_values(int(lengths.max(initial=0))), np.uint32)
    ids = np.empty(len(blob), np.uint32)
    id_offsets = np.empty(len(words) + 1, np.int64)
    args = _Encode(
        **{
            name: getattr(tables, name).ctypes.data
            for name in ("merge_slots", "left", "right", "result", "byte_ids")
        },
        words=ctypes.cast(ctypes.c_char_p(blob), ctypes.c_void_p),
        word_offsets=offsets.ctypes.data,
        ids=ids.ctypes.data,
        id_offsets=id_offsets.ctypes.data,
        work=work.ctypes.data,
        merge_slot_mask=len(tables.merge_slots) - 1,
        n_words=len(words),
    )
    native.plm_bpe_encode(ctypes.byref(args))
    bounds = id_offsets.tolist()
    flat = ids[: bounds[-1]].tolist()
    return [flat[bounds[i] : bounds[i + 1]] for i in range(len(words))]
