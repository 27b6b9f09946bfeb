"""Binding of quantize.c: rows of float32 to ggml blocks and back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plm_edge.native import lib

UNKNOWN = ctypes.c_size_t(-1).value  # PLM_FORMAT_UNKNOWN

_Function = Callable[[int, int | None, int, int, int | None], int]


@functools.cache
def _function(name: str) -> _Function:
    function = getattr(lib(), name)
    size = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, size, size, ctypes.c_void_p]
    function.restype = size
    return function  # type: ignore[no-any-return]


def quantize(ggml_type: int, x: NDArray[np.float32], packed: NDArray[np.uint8]) -> int:
    """Fill packed (rows, row bytes) from x (rows, cols), both contiguous; returns the good rows.

    UNKNOWN where that type can only be read.
    """
    rows, cols = x.shape
    return _function("plm_quantize")(ggml_type, x.ctypes.data, rows, cols, packed.ctypes.data)


def dequantize(ggml_type: int, packed: NDArray[np.uint8], x: NDArray[np.float32]) -> int:
    """Fill x (rows, cols) from packed (rows, row bytes), both contiguous; returns the good rows."""
    rows, cols = x.shape
    return _function("plm_dequantize")(ggml_type, packed.ctypes.data, rows, cols, x.ctypes.data)
