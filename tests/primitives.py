"""The functions inside an instruction set (plm_isa of plm.h), one by one, for the tests."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, Structure, c_char_p, c_float, c_int32, c_void_p

import numpy as np

from plm_edge.native.kernels import BLOCK, FORMAT_CODES, TILE, Vectors, find_isa

_TILE = CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_void_p)
_ROW = CFUNCTYPE(c_float, c_void_p, c_int32, c_void_p)
_ADD_ROW = CFUNCTYPE(None, c_void_p, c_int32, c_float, c_void_p)
_UNITS = CFUNCTYPE(None, c_void_p, c_int32, c_int32, c_int32, c_void_p, c_int32, c_void_p)
_PACK = CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_void_p, c_void_p)
_DOT = CFUNCTYPE(c_float, c_void_p, c_void_p, c_int32)
_ADD = CFUNCTYPE(None, c_float, c_void_p, c_int32, c_void_p)
_WIDEN = CFUNCTYPE(None, c_void_p, c_int32, c_void_p)


class IsaTable(Structure):
    """plm_isa."""

    _fields_ = (
        ("name", c_char_p),
        ("tile", _TILE * len(FORMAT_CODES)),
        ("row", _ROW * len(FORMAT_CODES)),
        ("add_row", _ADD_ROW * len(FORMAT_CODES)),
        ("units", _UNITS * len(FORMAT_CODES)),
        ("pack", _PACK),
        ("dot", _DOT),
        ("add", _ADD),
        ("widen", _WIDEN),
    )


def unaligned(values):
    """A copy at an odd address that ends where its memory ends, so that a read past it is seen."""
    values = np.ascontiguousarray(values)
    room = np.empty(values.nbytes + 1, np.uint8)
    room[1:] = values.reshape(-1).view(np.uint8)
    return room[1:]


def floats(n, fill=0.0):
    """`n` floats at an address that is a multiple of 4 and not of 8."""
    return np.full(n + 1, fill, np.float32)[1:]


class Activations:
    """x (cols) as plm_vectors; `q`, `scale` and `sum` from the scalar set."""

    def __init__(self, x):
        blocks = len(x) // BLOCK
        self.x = floats(len(x))
        self.x[:] = x
        self.q, self.scale, self.sum = Primitives("scalar").pack(x[: blocks * BLOCK])
        arrays = (self.x, self.q, self.scale, self.sum)
        self.struct = Vectors(*(array.ctypes.data for array in arrays))


class Primitives:
    """One instruction set; every method takes and gives numpy arrays and copies its input."""

    def __init__(self, name):
        self._table = IsaTable.from_address(find_isa(name)[1])
        assert self._table.name.decode() == name

    def tile(self, fmt, data, x):
        y, data = floats(TILE, np.nan), unaligned(data)
        act = Activations(x)
        function = self._table.tile[FORMAT_CODES[fmt]]
        function(data.ctypes.data, len(x), ctypes.addressof(act.struct), y.ctypes.data)
        return y

    def row(self, fmt, data, x):
        data, act = unaligned(data), Activations(x)
        function = self._table.row[FORMAT_CODES[fmt]]
        got = function(data.ctypes.data, len(x), ctypes.addressof(act.struct))
        return np.array([got], np.float32)

    def add_row(self, fmt, data, a, y):
        data, out = unaligned(data), floats(len(y))
        out[:] = y
        self._table.add_row[FORMAT_CODES[fmt]](data.ctypes.data, len(y), a, out.ctypes.data)
        return out

    def units(self, fmt, data, a, y, first=0, last=None):
        data, out, coefficients = unaligned(data), floats(len(y)), floats(len(a))
        out[:], coefficients[:] = y, a
        self._table.units[FORMAT_CODES[fmt]](
            data.ctypes.data,
            len(y),
            first,
            len(y) if last is None else last,
            coefficients.ctypes.data,
            len(a),
            out.ctypes.data,
        )
        return out

    def pack(self, x):
        """Returns q (cols), scale (cols / 32), sum (cols / 32)."""
        room = floats(len(x))
        room[:] = x
        q = np.full(len(x), 99, np.int16)
        scale = np.full(len(x) // BLOCK, 99, np.float32)
        total = np.full(len(x) // BLOCK, 99, np.int32)
        arrays = (q, scale, total)
        self._table.pack(room.ctypes.data, len(x), *(array.ctypes.data for array in arrays))
        return arrays

    def dot(self, a, b):
        left, right = floats(len(a)), floats(len(b))
        left[:], right[:] = a, b
        return np.array([self._table.dot(left.ctypes.data, right.ctypes.data, len(a))], np.float32)

    def add(self, a, x, y):
        left, out = floats(len(x)), floats(len(y))
        left[:], out[:] = x, y
        self._table.add(a, left.ctypes.data, len(x), out.ctypes.data)
        return out

    def widen(self, halves):
        room, y = np.array(halves, np.uint16), floats(len(halves), np.nan)
        self._table.widen(room.ctypes.data, len(halves), y.ctypes.data)
        return y
