"""Logits from llama.cpp, in a process of its own: where it asserts, it ends the process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MISSING = "llama-cpp-python is not installed; `make test-peers` brings it"


def llama_logits(path: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """The file's logits (len(ids), vocab): flash attention off, cache in F32, on the CPU.

    Flash attention, llama.cpp's default, aborts on architecture `plm` (assert in ggml_set_rows).
    The cache would be F16 unless told otherwise: 4e-4 to 8e-4 by itself.
    """
    command = [sys.executable, __file__, str(path), json.dumps(list(ids))]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, f"llama.cpp failed on {path.name}:\n{done.stderr.decode()[-2000:]}"
    logits: NDArray[np.float32] = np.load(io.BytesIO(done.stdout))
    return logits


def main(path: str, ids: list[int]) -> None:
    import llama_cpp

    model = llama_cpp.Llama(
        path,
        n_ctx=len(ids),
        n_gpu_layers=0,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(ids)
    np.save(sys.stdout.buffer, model.scores[: len(ids)].astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
