"""Binding of bandwidth.c: how fast memory can be read by some threads."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
from numpy.typing import NDArray

from plm_edge.native import lib
from plm_edge.native.kernels import aligned

BUFFER_BYTES = 512 << 20  # many times a last-level cache, so that memory is what is read
PASSES = 3
_LINE = 64


def read(data: NDArray[np.uint8]) -> int:
    """Read whole lines of 64 contiguous bytes; the sum of the first 64-bit words, mod 2^64."""
    function = lib().plm_read
    function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_size_t)
    return int(function(data.ctypes.data, data.size))


class Reader:
    """Keeps a buffer of its own; it must not fit into the caches of the CPU."""

    def __init__(self, nbytes: int = BUFFER_BYTES) -> None:
        self._data = aligned(nbytes)
        self._data[:] = 1  # pages never written to are all the same page of zeros

    def bytes_per_s(self, threads: int) -> float:
        """The best of some passes: what a program could reach that did nothing but read."""
        return max(self._one_pass(threads) for _ in range(PASSES))

    def _one_pass(self, threads: int) -> float:
        part = self._data.size // threads // _LINE * _LINE
        begin = threading.Barrier(threads)
        spans = np.zeros((threads, 2))  # seconds: begin and end of each thread

        def run(i: int) -> None:
            begin.wait()
            started = time.perf_counter()
            read(self._data[i * part : (i + 1) * part])
            spans[i] = started, time.perf_counter()

        workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return float(part * threads / (spans[:, 1].max() - spans[:, 0].min()))
