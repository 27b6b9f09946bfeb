"""Run kernels from the tests: numpy arrays as the structs of plm.h, lists of kernels on a pool."""

from __future__ import annotations

from ctypes import c_int, pointer

import numpy as np
from primitives import Primitives, floats, unaligned

from plm_edge.arrangements import arrange
from plm_edge.formats import dequantize, quantize
from plm_edge.native import kernels


def run(*calls, threads=1, cancel=None):
    """Run (name, args) in order; whether the list came to its end."""
    ops = kernels.op_array([kernels.op(name, args) for name, args in calls])
    pool = kernels.Pool(threads)
    try:
        return pool.run(ops, 0, len(ops), c_int(0) if cancel is None else cancel)
    finally:
        pool.close()


def step(n_tokens, n_past=0, first=0, threads=1):
    return pointer(kernels.Step(n_past, n_tokens, first, threads))


def isa(name):
    return kernels.find_isa(name)[1]


class Weight:
    """A random matrix as a file has it: `struct` for kernels, `values` (rows, cols) in float64."""

    def __init__(self, fmt, arrangement, rows, cols, seed=0):
        rng = np.random.default_rng((seed, rows, cols))
        packed = quantize(fmt, rng.normal(size=(rows, cols)).astype(np.float32))
        self.values = dequantize(fmt, packed, cols).astype(np.float64)
        self._data = unaligned(arrange(arrangement, fmt, packed, cols))
        self.struct = kernels.Matrix(
            self._data.ctypes.data,
            rows,
            cols,
            kernels.FORMAT_CODES[fmt],
            kernels.ARRANGEMENT_CODES[arrangement],
        )


class Rows:
    """Activations x (T, cols) as plm_vectors: floats, and integers where cols is whole blocks."""

    def __init__(self, x):
        x = np.atleast_2d(x)
        self.x = floats(x.size).reshape(x.shape)
        self.x[:] = x
        pointers = [self.x.ctypes.data, None, None, None]
        if x.shape[1] % 32 == 0:
            self.q, self.scale, self.sum = Primitives("scalar").pack(self.x.reshape(-1))
            pointers[1:] = [array.ctypes.data for array in (self.q, self.scale, self.sum)]
        self.struct = kernels.Vectors(*pointers)

    @classmethod
    def empty(cls, tokens, cols):
        """Room for a kernel to fill: NaN, and integers that no packing gives."""
        made = cls(np.zeros((tokens, cols)))
        made.x[:], made.q[:], made.scale[:], made.sum[:] = np.nan, -32768, np.nan, 0
        return made
