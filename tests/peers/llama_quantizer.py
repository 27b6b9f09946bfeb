"""llama.cpp's own quantizer (llama_model_quantize), with an importance matrix or without.

python tests/peers/llama_quantizer.py F16.gguf OUT.gguf Q4_K_M [--threads N]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q6_K": 18}  # of llama.h


@functools.cache  # llama.cpp calls it for as long as the process lives
def _silent() -> Any:
    from llama_cpp import llama_cpp as lib

    return lib.llama_log_callback(lambda level, text, data: None)


def llama_quantize(
    source: Path,
    out: Path,
    file_type: str,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    threads: int = 1,
    pure: bool = False,
) -> None:
    """Write `out` from a GGUF file of floats; `imatrix`: mean squares of inputs by tensor.

    `threads` 0: as many as there are. `pure`: all matrices in that type.
    """
    from llama_cpp import llama_cpp as lib

    lib.llama_log_set(_silent(), ctypes.c_void_p(0))
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = threads, FILE_TYPES[file_type], pure
    entries = (lib.llama_model_imatrix_data * (len(imatrix or {}) + 1))()  # the last has no name
    kept = {
        name: np.ascontiguousarray(values, np.float32) for name, values in (imatrix or {}).items()
    }
    for entry, (name, values) in zip(entries, kept.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if kept:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(lib.llama_model_imatrix_data))
    code = lib.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert code == 0, f"llama_model_quantize returned {code} for {source}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("file_type", choices=FILE_TYPES)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    llama_quantize(args.source, args.out, args.file_type, threads=args.threads)
