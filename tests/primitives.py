"""The functions inside an instruction set (plm_isa of plm.h), one by one, for the tests."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p

import numpy as np

from plm_edge.native.kernels import ACTIVATIONS, BLOCK, FORMAT_CODES, TILE, Vectors, find_isa

_I, _L, _P, _F = c_int32, c_int64, c_void_p, c_float


class FiredWords(Structure):
    """plm_fired_words."""

    _fields_ = tuple((name, c_void_p) for name in ("words", "which", "count", "scale", "token"))


_TYPES = {  # as plm_isa has them, in its order: one function, or one for each format
    "tile": CFUNCTYPE(None, _P, _I, _P, _I, _P, _I),
    "four_tiles": CFUNCTYPE(None, _P, _I, _P, _P, _P, _I),
    "tile_of_bytes": CFUNCTYPE(None, _P, _I, _P, _I, _P, _I),
    "two_of_bytes": CFUNCTYPE(None, _P, _I, _P, _I, _P, _I),
    "row": CFUNCTYPE(_F, _P, _I, _P),
    "rows": CFUNCTYPE(None, _P, _I, _P, _I, _P, _P),
    "add_rows": CFUNCTYPE(None, _P, _I, _P, _I, _P),
    "units": CFUNCTYPE(None, _P, _I, _P, _I, _P, _P),
    "unit_rows": CFUNCTYPE(None, _P, _I, _I, _I, _I, _P),
    "part_units": CFUNCTYPE(None, _P, _I, _I, _P, _P),
    "part_rows": CFUNCTYPE(None, _P, _I, _I, _I, _I, _P),
    "mix": CFUNCTYPE(None, _P, _P, _I, _P, _I, _P),
    "keep_words": CFUNCTYPE(_I, _P, _P, _P, _P),
    "unit_words": CFUNCTYPE(None, _P, _I, _I, _I, _P),
    "mix_words": CFUNCTYPE(None, FiredWords, _I, _P, _P, _I, _P),
    "pack": CFUNCTYPE(None, _P, _I, _F, _P, _P, _P),
    "pack_halves": CFUNCTYPE(None, _P, _I, _F, _P, _P),
    "weave": CFUNCTYPE(None, _P, _I, _I, _I, _I, _P),
    "panel": CFUNCTYPE(None, _P, _P, _I, _P, _I, _P, _I, _I, _P, _I),
    "weigh": CFUNCTYPE(None, _P, _P, _I, _P),
    "exps": CFUNCTYPE(None, _P, _I),
    "dot": CFUNCTYPE(_F, _P, _P, _I),
    "add": CFUNCTYPE(None, _F, _P, _I, _P),
    "widen": CFUNCTYPE(None, _P, _I, _P),
    "words": CFUNCTYPE(None, _P, _I, _P),
    "widen_bytes": CFUNCTYPE(None, _P, _P, _I, _P),
    "lanes": CFUNCTYPE(None, _P, _I, _I, _I, _P),
    "scores": CFUNCTYPE(None, _P, _P, _I, _I, _I, _F, _P, _P),
    "softmax": CFUNCTYPE(None, _P, _I, _P, _P, _P),
    "blend": CFUNCTYPE(None, _P, _P, _I, _I, _I, _P, _I, _P, _I),
    "blend_words": CFUNCTYPE(None, _P, _P, _P, _I, _I, _I, _P, _I, _P, _I, _P),
    "blend_rows": CFUNCTYPE(None, _P, _P, _P, _I, _P, _I, _P, _I),
    "lay_bytes": CFUNCTYPE(None, _P, _L, _I, _I, _P, _P),
    "score_bytes": CFUNCTYPE(None, _P, _P, _P, _P, _I, _P, _I, _I, _P),
    "blend_bytes": CFUNCTYPE(None, _P, _P, _P, _I, _I, _I, _P, _I, _P, _I, _P, _I),
}
_BY_FORMAT = ("tile", "four_tiles", "tile_of_bytes", "two_of_bytes", "row", "rows")
_BY_FORMAT += ("add_rows", "units", "unit_rows", "part_units", "part_rows", "unit_words")
LARGEST, BYTE = ACTIVATIONS["int16"], ACTIVATIONS["int8"]
PANEL = 8191  # PLM_PANEL


class IsaTable(Structure):
    """plm_isa."""

    _fields_ = (
        ("name", c_char_p),
        *(
            (name, kind * len(FORMAT_CODES) if name in _BY_FORMAT else kind)
            for name, kind in _TYPES.items()
        ),
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

    def __init__(self, x, most=LARGEST):
        blocks = len(x) // BLOCK
        self.x = floats(len(x))
        self.x[:] = x
        self.q, self.scale, self.sum = Primitives("scalar").pack(x[: blocks * BLOCK], most)
        self.bytes = self.q.astype(np.int8)  # of use where `most` fits
        arrays = (self.x, self.q, self.scale, self.sum, self.bytes)
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
        function(data.ctypes.data, len(x), ctypes.addressof(act.struct), 1, y.ctypes.data, TILE)
        return y

    def has(self, function, fmt):
        return bool(getattr(self._table, function)[FORMAT_CODES[fmt]])

    def four_tiles(self, fmt, data, x, near=0):
        y, data, act = floats(4 * TILE, np.nan), unaligned(data), Activations(x)
        function, at = self._table.four_tiles[FORMAT_CODES[fmt]], data.ctypes.data
        function(at, len(x), ctypes.addressof(act.struct), y.ctypes.data, at + data.nbytes, near)
        return y

    def tile_of_tokens(self, fmt, data, x, most=LARGEST, by="tile"):
        """X (T, cols) -> (T, 16), or 32; what lies between the rows of the result is left alone."""
        width = 2 * TILE if by == "two_of_bytes" else TILE
        stride = width + 3
        x, data = np.atleast_2d(x), unaligned(data)
        each = [Activations(row, most) for row in x]
        joined = [
            np.concatenate([getattr(a, k) for a in each])
            for k in ("x", "q", "scale", "sum", "bytes")
        ]
        struct = Vectors(*(array.ctypes.data for array in joined))
        y = floats(len(x) * stride, 7)
        function = getattr(self._table, by)[FORMAT_CODES[fmt]]
        arguments = (data.ctypes.data, x.shape[1], ctypes.addressof(struct), len(x))
        function(*arguments, y.ctypes.data, stride)
        rows = y.reshape(len(x), stride)
        assert (rows[:, width:] == 7).all()
        return rows[:, :width].copy()

    def row(self, fmt, data, x):
        data, act = unaligned(data), Activations(x)
        function = self._table.row[FORMAT_CODES[fmt]]
        got = function(data.ctypes.data, len(x), ctypes.addressof(act.struct))
        return np.array([got], np.float32)

    def rows(self, fmt, data, x, ahead=False):
        """Y (count); `data`: the packed rows (count, row bytes). With `ahead` others follow."""
        y, rows, act = floats(len(data), np.nan), unaligned(data), Activations(x)
        function = self._table.rows[FORMAT_CODES[fmt]]
        pointers = (ctypes.addressof(act.struct), len(data), y.ctypes.data)
        at = rows.ctypes.data
        function(at, len(x), *pointers, at + rows.nbytes if ahead else None)
        return y

    def add_rows(self, fmt, data, a, y):
        """Y (n) + a (count) . rows (count, n); `data`: the packed rows."""
        data, out, factors = unaligned(data), floats(len(y)), floats(np.size(a))
        out[:], factors[:] = y, a
        function = self._table.add_rows[FORMAT_CODES[fmt]]
        function(data.ctypes.data, len(y), factors.ctypes.data, len(factors), out.ctypes.data)
        return out

    def units(self, fmt, data, a, y):
        data, out, coefficients = unaligned(data), floats(len(y)), floats(len(a))
        out[:], coefficients[:] = y, a
        nothing_next = np.zeros(512, np.uint8)  # more than a plm_ahead
        pointers = (data.ctypes.data, len(y), coefficients.ctypes.data, len(a), out.ctypes.data)
        self._table.units[FORMAT_CODES[fmt]](*pointers, nothing_next.ctypes.data)
        return out

    def unit_rows(self, fmt, data, width, first, last, count):
        """Weights (count, last - first) of a group."""
        data, y = unaligned(data), floats(count * (last - first), np.nan)
        function = self._table.unit_rows[FORMAT_CODES[fmt]]
        function(data.ctypes.data, width, first, last, count, y.ctypes.data)
        return y.reshape(count, last - first)

    def part_units(self, fmt, data, part, a, y):
        """`units` of group `part` of 256 units, for formats of superblocks."""
        data, out, coefficients = unaligned(data), floats(len(y)), floats(len(a))
        out[:], coefficients[:] = y, a
        pointers = (coefficients.ctypes.data, out.ctypes.data)
        self._table.part_units[FORMAT_CODES[fmt]](data.ctypes.data, len(y), part, *pointers)
        return out

    def part_rows(self, fmt, data, width, part, first, last):
        """Weights (32, last - first) of group `part` of 256 units."""
        data, y = unaligned(data), floats(32 * (last - first), np.nan)
        function = self._table.part_rows[FORMAT_CODES[fmt]]
        function(data.ctypes.data, width, part, first, last, y.ctypes.data)
        return y.reshape(32, last - first)

    def mix(self, a, which, w, y):
        factors, rows, out = floats(len(a)), floats(w.size), floats(len(y))
        factors[:], rows[:], out[:] = a, w.reshape(-1), y
        numbers = np.array(which, np.uint8)
        pointers = (factors.ctypes.data, numbers.ctypes.data, len(a), rows.ctypes.data)
        self._table.mix(*pointers, len(y), out.ctypes.data)
        return out

    def has_words(self, fmt):
        return bool(self._table.unit_words[FORMAT_CODES[fmt]])

    def keep_words(self, x):
        """The integers, the units they are of, and the scale of 32 sums."""
        room, words, which = (
            floats(BLOCK),
            np.full(BLOCK, 99, np.int16),
            np.full(BLOCK, 99, np.uint8),
        )
        scale, room[:] = floats(1, 99), x
        arrays = (room, words, which, scale)
        count = self._table.keep_words(*(array.ctypes.data for array in arrays))
        return words[:count], which[:count], scale[0]

    def mix_words(self, fmt, data, width, ends, fired, y):
        """Y (T, n) + scale * (words . weights) for outputs `ends` of a group.

        fired: (words, which, scale, token) of each entry.
        """
        first, last = ends
        scales = np.ascontiguousarray(data[: 2 * width]).view(np.float16)[first:last]
        scales, out = scales.astype(np.float32), floats(y.size)
        data, w = unaligned(data), np.full((BLOCK, last - first), 99, np.int16)
        out[:] = y.reshape(-1)
        function = self._table.unit_words[FORMAT_CODES[fmt]]
        function(data.ctypes.data, width, first, last, w.ctypes.data)
        words, which, scale, token = zip(*fired, strict=True)
        arrays = (
            np.concatenate(words).astype(np.int16),
            np.concatenate(which).astype(np.uint8),
            np.array([len(part) for part in words], np.uint8),
            np.array(scale, np.float32),
            np.array(token, np.uint16),
        )
        struct = FiredWords(*(array.ctypes.data for array in arrays))
        pointers = (w.ctypes.data, scales.ctypes.data, last - first, out.ctypes.data)
        self._table.mix_words(struct, len(fired), *pointers)
        return out.reshape(y.shape)

    def pack(self, x, most=LARGEST):
        """Returns q (cols), scale (cols / 32), sum (cols / 32)."""
        room = floats(len(x))
        room[:] = x
        q = np.full(len(x), 99, np.int16)
        scale = np.full(len(x) // BLOCK, 99, np.float32)
        total = np.full(len(x) // BLOCK, 99, np.int32)
        arrays = (q, scale, total)
        self._table.pack(room.ctypes.data, len(x), most, *(array.ctypes.data for array in arrays))
        return arrays

    def pack_halves(self, halves, most=PANEL):
        """Returns q (cols), scale (cols / 32)."""
        room = np.empty(len(halves) + 1, np.uint16)[1:]  # at an odd multiple of 2
        room[:] = halves
        q = np.full(len(halves), 99, np.int16)
        scale = np.full(len(halves) // BLOCK, 99, np.float32)
        self._table.pack_halves(
            room.ctypes.data, len(halves), most, q.ctypes.data, scale.ctypes.data
        )
        return q, scale

    def panel(self, lanes, lane_scale, x, x_scale, y, across=False):
        """Y (T, 16) + panel . x: lanes (n, cols) with scales (n, blocks), x (T, cols) with its own.

        across: the panel is woven from the transpose of `lanes`.
        """
        n, cols = lanes.shape
        blocks = cols // BLOCK
        source = np.ascontiguousarray(lanes.T if across else lanes, np.int16)
        steps = (1, n) if across else (cols, 1)
        woven = np.full(TILE * cols, 99, np.int16)
        self._table.weave(source.ctypes.data, *steps, n, cols, woven.ctypes.data)
        scales = np.zeros((blocks, TILE), np.float32)
        scales[:, :n] = lane_scale.T
        rows, row_scales = np.ascontiguousarray(x, np.int16), np.ascontiguousarray(x_scale)
        out = floats(y.size)
        out[:] = y.reshape(-1)
        self._table.panel(
            woven.ctypes.data,
            scales.ctypes.data,
            blocks,
            rows.ctypes.data,
            cols,
            row_scales.ctypes.data,
            blocks,
            len(rows),
            out.ctypes.data,
            TILE,
        )
        return out.reshape(y.shape)

    def weigh(self, a, b):
        left, right = np.array(a, np.int16), np.array(b, np.int16)
        y = np.full(len(left), 99, np.int16)
        self._table.weigh(left.ctypes.data, right.ctypes.data, len(left), y.ctypes.data)
        return y

    def exps(self, x):
        room = floats(len(x))
        room[:] = x
        self._table.exps(room.ctypes.data, len(x))
        return room

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
