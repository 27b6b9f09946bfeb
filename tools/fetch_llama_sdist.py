"""Fetch the source of llama-cpp-python and unpack from it what the peer tests read.

    python tools/fetch_llama_sdist.py

prints the folder: $PLM_EDGE_LLAMA_SDIST, or ~/.cache/plm-edge-peers. pip fetches it once (77 MB).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
WANTED = (
    "/models/ggml-vocab-qwen2.gguf",  # and its .inp and .out
    "/ggml/src/ggml-blas/ggml-blas.cpp",
    "/ggml/include/",  # and what else ggml-blas.cpp includes
    "/ggml/src/ggml-impl.h",
    "/ggml/src/ggml-backend-impl.h",
)


def sdist_folder() -> Path:
    """Where the archive and what was unpacked from it lie."""
    return Path(os.environ.get("PLM_EDGE_LLAMA_SDIST") or Path.home() / ".cache/plm-edge-peers")


def fetch(folder: Path) -> None:
    """Download the archive unless it is there; unpack a vocabulary, its vectors, one backend."""
    archive = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        package = [f"llama-cpp-python=={VERSION}", "--no-binary", "llama-cpp-python"]
        subprocess.run([*pip, *package], check=True, stdout=sys.stderr)
    with tarfile.open(archive) as tar:
        for member in tar:
            if (
                any(f"/vendor/llama.cpp{part}" in member.name for part in WANTED)
                and member.isfile()
            ):
                source = tar.extractfile(member)
                assert source is not None  # it is a file
                (folder / Path(member.name).name).write_bytes(source.read())


if __name__ == "__main__":
    fetch(sdist_folder())
    print(sdist_folder())
