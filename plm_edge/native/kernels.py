"""plm.h in ctypes: the arguments of the kernels, the instruction sets, the pool.

Field by field as in plm.h, which says what each means; tests/test_header.py holds them together.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)

import numpy as np

from plm_edge.errors import OutputError, UnsupportedError
from plm_edge.native import lib

BLOCK, TILE, SLICES, FEW = 32, 16, 16, 8
SECOND, FIRST, BOTH = range(3)  # Step.near
FORMAT_CODES = {"F32": 0, "F16": 1, "BF16": 2, "Q8_0": 3, "Q4_0": 4, "Q4_K": 5, "Q6_K": 6}
ARRANGEMENT_CODES = {"rows": 0, "tile16x4": 1, "group32": 2}
ACTIVATIONS = {"int16": 32767, "int8": 127}  # the largest integer: PLM_LARGEST, PLM_BYTE
CACHE_CODES = {"f32": 0, "f16": 1, "q8_0": 2}


class Matrix(Structure):
    """plm_matrix."""

    _fields_ = (
        ("data", c_void_p),
        ("rows", c_int32),
        ("cols", c_int32),
        ("format", c_int32),
        ("arrangement", c_int32),
    )


class Vectors(Structure):
    """plm_vectors."""

    _fields_ = tuple((name, c_void_p) for name in ("f", "q", "scale", "sum", "bytes"))


class Step(Structure):
    """plm_step; `threads` must be set."""

    _fields_ = tuple(
        (name, c_int32) for name in ("n_past", "n_tokens", "first", "threads", "near", "ends")
    )


_ISA_STEP = (("isa", c_void_p), ("step", POINTER(Step)))


class Embed(Structure):
    """plm_embed."""

    _fields_ = (*_ISA_STEP, ("w", Matrix), ("ids", c_void_p), ("y", c_void_p))


class Norm(Structure):
    """plm_norm."""

    _fields_ = (
        *_ISA_STEP,
        ("x", c_void_p),
        ("w", c_void_p),
        ("y", c_void_p),
        ("packed", Vectors),
        ("width", c_int32),
        ("most", c_int32),
        ("eps", c_float),
    )


class Pack(Structure):
    """plm_pack."""

    _fields_ = (
        *_ISA_STEP,
        ("x", c_void_p),
        ("packed", Vectors),
        ("width", c_int32),
        ("square", c_int32),
        ("most", c_int32),
    )


class Product(Structure):
    """plm_product."""

    _fields_ = (
        *_ISA_STEP,
        ("w", Matrix),
        ("x", Vectors),
        ("y", c_void_p),
        ("add", c_int32),
    )


class Rotate(Structure):
    """plm_rotate."""

    _fields_ = (
        ("step", POINTER(Step)),
        ("q", c_void_p),
        ("turns", c_void_p),
        ("heads", c_int32),
        ("nope", c_int32),
        ("rope", c_int32),
    )


class Remember(Structure):
    """plm_remember."""

    _fields_ = (
        ("step", POINTER(Step)),
        ("kv_a", c_void_p),
        ("w", c_void_p),
        ("turns", c_void_p),
        ("cache", c_void_p),
        ("rank", c_int32),
        ("rope", c_int32),
        ("stored", c_int32),
        ("eps", c_float),
    )


class Attention(Structure):
    """plm_attention."""

    _fields_ = (
        *_ISA_STEP,
        ("kv_b", Matrix),
        ("q", c_void_p),
        ("cache", c_void_p),
        ("queries", c_void_p),
        ("partial", c_void_p),
        ("y", c_void_p),
        ("scratch", c_void_p),
        ("scratch_bytes", c_int64),
        ("heads", c_int32),
        ("nope", c_int32),
        ("rope", c_int32),
        ("v_head", c_int32),
        ("rank", c_int32),
        ("stored", c_int32),
        ("chunk", c_int32),
        ("scale", c_float),
    )


class Fire(Structure):
    """plm_fire."""

    _fields_ = (
        *_ISA_STEP,
        ("up", Matrix),
        ("down", Matrix),
        ("x", Vectors),
        ("h", c_void_p),
        ("partial", c_void_p),
        ("unit_rows", c_void_p),
    )


class Gather(Structure):
    """plm_gather."""

    _fields_ = (
        ("step", POINTER(Step)),
        ("partial", c_void_p),
        ("y", c_void_p),
        ("width", c_int32),
    )


class Fired(Structure):
    """plm_fired."""

    _fields_ = (
        ("value", c_void_p),
        ("scale", c_void_p),
        ("which", c_void_p),
        ("count", c_void_p),
        ("token", c_void_p),
    )


class Up(Structure):
    """plm_up."""

    _fields_ = (
        *_ISA_STEP,
        ("up", Matrix),
        ("down", Matrix),
        ("x", Vectors),
        ("fired", Fired),
    )


class Down(Structure):
    """plm_down."""

    _fields_ = (
        *_ISA_STEP,
        ("down", Matrix),
        ("fired", Fired),
        ("sums", c_void_p),
        ("y", c_void_p),
    )


class Screen(Structure):
    """plm_screen."""

    _fields_ = (
        *_ISA_STEP,
        ("w", Matrix),
        ("x", Vectors),
        ("logits", c_void_p),
        ("peaks", c_void_p),
        ("chosen", c_void_p),
        ("tails", c_void_p),
        ("tile_bytes", c_int64),
        ("count", c_int32),
    )


class Kernel(Structure):
    """plm_kernel."""

    _fields_ = (("items", c_void_p), ("item", c_void_p))


class Op(Structure):
    """plm_op."""

    _fields_ = (("kernel", Kernel), ("args", c_void_p))


# In the order of the PLM_OP_ enumeration.
OPS: tuple[tuple[str, type[Structure]], ...] = (
    ("embed", Embed),
    ("norm", Norm),
    ("pack", Pack),
    ("product", Product),
    ("rotate", Rotate),
    ("remember", Remember),
    ("absorb", Attention),
    ("attend", Attention),
    ("unabsorb", Attention),
    ("expand", Attention),
    ("fire", Fire),
    ("gather", Gather),
    ("up", Up),
    ("down", Down),
    ("peak", Screen),
    ("choose", Screen),
    ("rescore", Screen),
    ("level", Screen),
)
_CODES = {name: code for code, (name, _) in enumerate(OPS)}
_ARGUMENTS = dict(OPS)


def op(name: str, args: Structure) -> Op:
    """The op `name` over `args`; the caller keeps `args` alive as long as the op is run."""
    assert type(args) is _ARGUMENTS[name], f"{name} takes {_ARGUMENTS[name].__name__}"
    kernel_of = lib().plm_kernel_of
    kernel_of.restype, kernel_of.argtypes = Kernel, (c_int,)
    return Op(kernel_of(_CODES[name]), ctypes.addressof(args))


def partial_floats(heads: int, rank: int) -> int:
    """Floats that one slice of the context leaves behind."""
    function = lib().plm_partial_floats
    function.restype, function.argtypes = c_size_t, (c_int32, c_int32)
    return int(function(heads, rank))


def query_bytes(heads: int, rank: int, rope: int) -> int:
    """Bytes of the queries of one token as they meet cached rows."""
    function = lib().plm_query_bytes
    function.restype, function.argtypes = c_size_t, (c_int32,) * 3
    return int(function(heads, rank, rope))


def attention_scratch(heads: int, nope: int, rope: int, v_head: int, rank: int, chunk: int) -> int:
    """Bytes of scratch that one thread needs in the attention kernels."""
    function = lib().plm_attention_scratch
    function.restype, function.argtypes = c_size_t, (c_int32,) * 6
    return int(function(heads, nope, rope, v_head, rank, chunk))


def isa_table() -> dict[str, int]:
    """Name -> address of every instruction set compiled in that this CPU has, the best one last."""
    at, name, runs = lib().plm_isa_at, lib().plm_isa_name, lib().plm_isa_runs
    at.restype, at.argtypes = c_void_p, (c_int,)
    name.restype, name.argtypes = c_char_p, (c_void_p,)
    runs.restype, runs.argtypes = c_int, (c_void_p,)
    table: dict[str, int] = {}
    while (isa := at(len(table))) is not None:
        table[name(isa).decode()] = isa
    return {key: isa for key, isa in table.items() if runs(isa)}


def asks_into() -> int:
    """Into which of a core's caches weights are asked for ahead: SECOND, FIRST or BOTH."""
    return int(lib().plm_asks_into())


def alternates_ends() -> bool:
    """Whether outputs of a group of units are taken from both ends in turn (plm_step.ends)."""
    return bool(lib().plm_alternates_ends())


def find_isa(name: str | None = None) -> tuple[str, int]:
    """(name, address) of the named instruction set, or of the best one of this CPU.

    Raises UnsupportedError where the CPU or the build lacks it.
    """
    table = isa_table()
    if name is None:
        return next(reversed(table.items()))
    if name not in table:
        raise UnsupportedError(
            f"expected an instruction set of this CPU ({', '.join(table)}), found {name!r}; "
            "leave --isa away to let the best one be chosen"
        )
    return name, table[name]


def set_for(isa: int, fmt: str) -> str:
    """The name of the set whose kernels multiply that format: isa's own, or an earlier one's."""
    function, name = lib().plm_isa_for, lib().plm_isa_name
    function.restype, function.argtypes = c_void_p, (c_void_p, c_int)
    name.restype, name.argtypes = c_char_p, (c_void_p,)
    found: bytes = name(function(isa, FORMAT_CODES[fmt]))
    return found.decode()


def kernels_of(name: str, formats: Iterable[str]) -> str:
    """The set, and in brackets which formats it leaves to an earlier one: "x (Q4_K: y)"."""
    isa = find_isa(name)[1]
    others = {fmt: set_for(isa, fmt) for fmt in formats if fmt in FORMAT_CODES}
    left = [f"{fmt}: {other}" for fmt, other in others.items() if other != name]
    return f"{name} ({', '.join(left)})" if left else name


def aligned(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """`size` zero bytes that begin on a cache line (64 bytes)."""
    room = np.zeros(size + 63, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


class Pool:
    """The threads of one session. `run` gives the interpreter's lock away while the list runs."""

    def __init__(self, threads: int) -> None:
        library = lib()
        library.plm_pool_bytes.restype, library.plm_pool_bytes.argtypes = c_size_t, (c_int,)
        library.plm_pool_start.restype, library.plm_pool_start.argtypes = (
            c_void_p,
            (c_void_p, c_int),
        )
        library.plm_pool_stop.restype, library.plm_pool_stop.argtypes = None, (c_void_p,)
        library.plm_run.restype = c_int
        library.plm_run.argtypes = (c_void_p, c_void_p, c_int, c_void_p)
        memory = aligned(library.plm_pool_bytes(threads))
        self._pool = library.plm_pool_start(memory.ctypes.data, threads)
        if self._pool is None:
            raise OutputError(f"expected {threads} threads, the system refused one; use fewer (-t)")
        self._run = library.plm_run
        # The threads live in `memory`: they end before it goes, also where nobody calls `close`.
        self._end = weakref.finalize(self, _stop, library.plm_pool_stop, self._pool, memory)

    def run(self, ops: ctypes.Array[Op], first: int, last: int, cancel: c_int) -> bool:
        """Run ops[first:last]. False where `cancel` became nonzero before the end."""
        start = ctypes.addressof(ops) + first * ctypes.sizeof(Op)
        done: int = self._run(self._pool, start, last - first, ctypes.addressof(cancel))
        return done == last - first

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._end()


def _stop(stop: Callable[[int], None], pool: int, _memory: object) -> None:
    stop(pool)


def op_array(ops: Sequence[Op]) -> ctypes.Array[Op]:
    """The list as the C side reads it."""
    return (Op * len(ops))(*ops)
