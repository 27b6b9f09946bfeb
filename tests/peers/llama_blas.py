"""llama.cpp's own BLAS backend, with which it multiplies in floats: activations keep their bits.

Its CPU kernels round activations to 8 bits, its BLAS backend does not (ggml-blas.cpp; on a Mac it
is there by default). llama-cpp-python's build leaves it out, so its one file is compiled here from
the same source, unmodified, and loaded as llama.cpp loads backends (ggml_backend_load). The BLAS
behind it is tests/peers/cblas.h: a product, in plain loops. It takes the products of at least 32
tokens, rows and columns whose activations lie together; the others stay with the CPU kernels.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = "ggml-blas.cpp"
FOLDER = Path(os.environ.get("PLM_EDGE_LLAMA_SDIST") or Path.home() / ".cache/plm-edge-peers")
DEFINED = ("GGML_BACKEND_DL", "GGML_BACKEND_SHARED", "GGML_BACKEND_BUILD", "GGML_SHARED")


def compiled(folder: Path) -> Path:
    """The backend as a library in `folder`; skips the test where there is no source."""
    if not (FOLDER / SOURCE).exists():
        pytest.skip(f"no {SOURCE} in {FOLDER}; run tools/fetch_llama_sdist.py")
    out = folder / "libggml-blas.so"
    compiler = [os.environ.get("CXX", "c++"), "-std=c++17", "-shared", "-fPIC"]
    fast = ["-O3", "-march=native", "-fopenmp-simd"]
    defined = [f"-D{name}" for name in DEFINED]
    places = [f"-I{HERE}", f"-I{FOLDER}", str(FOLDER / SOURCE), "-o", str(out)]
    subprocess.run([*compiler, *fast, *defined, *places], check=True)
    return out


def use(backend: Path) -> None:
    """From now on this process' llama.cpp has the backend, and no weights repacked for others."""
    from llama_cpp import llama_cpp as lib

    libraries = Path(lib.__file__).parent / "lib"
    for name in ("libggml-base.so.0", "libggml.so.0"):  # those that libllama.so has loaded
        ggml = ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    assert ggml.ggml_backend_load(bytes(backend)), f"llama.cpp does not load {backend}"
    defaults = lib.llama_model_default_params

    def without_repacking() -> object:
        params = defaults()
        params.use_extra_bufts = False
        return params

    lib.llama_model_default_params = without_repacking
