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


def llama_logits(
    path: Path,
    ids: Sequence[int],
    cache: str = "F32",
    window: int = 0,
    steps: bool = False,
    flash: bool = False,
    blas: Path | None = None,
) -> NDArray[np.float32]:
    """The file's logits (len(ids), vocab) on the CPU.

    Flash attention, llama.cpp's default, aborts on architecture `plm` (assert in ggml_set_rows).
    The cache would be F16 unless told otherwise: 4e-4 to 8e-4 by itself. `window`: begin anew after
    so many ids; `steps`: one id at a time; `blas`: with this backend (llama_blas.py).
    """
    return _run(path, ids, cache, window, steps, flash, blas)[0]


def llama_state_bytes(path: Path, ids: Sequence[int], flash: bool = False) -> int:
    """What llama.cpp says that the state of a sequence takes after these ids, F16 cache."""
    return _run(path, ids, "F16", 0, False, flash)[1]


def _run(
    path: Path,
    ids: Sequence[int],
    cache: str,
    window: int,
    steps: bool,
    flash: bool,
    blas: Path | None = None,
) -> tuple[NDArray[np.float32], int]:
    how = {
        "ids": list(ids),
        "cache": cache,
        "window": window or len(ids),
        "steps": steps,
        "flash": flash,
        "blas": blas and str(blas),
    }
    command = [sys.executable, __file__, str(path), json.dumps(how)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, f"llama.cpp failed on {path.name}:\n{done.stderr.decode()[-2000:]}"
    said = io.BytesIO(done.stdout)
    logits: NDArray[np.float32] = np.load(said)
    return logits, int(np.load(said))


def main(
    path: str, ids: list[int], cache: str, window: int, steps: bool, flash: bool, blas: str | None
) -> None:
    import llama_cpp

    if blas:
        from llama_blas import use

        use(Path(blas))
    cached = {"F16": llama_cpp.GGML_TYPE_F16, "F32": llama_cpp.GGML_TYPE_F32}[cache]
    model = llama_cpp.Llama(
        path,
        n_ctx=window,
        n_gpu_layers=0,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        flash_attn=flash,
        type_k=cached,
        type_v=cached,
        verbose=False,
    )
    rows = []
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        model.reset()
        for at in range(0, len(part), 1 if steps else len(part)):
            model.eval(part[at : at + 1] if steps else part)
        rows.append(model.scores[: len(part)].astype(np.float32))
    np.save(sys.stdout.buffer, np.concatenate(rows))
    np.save(sys.stdout.buffer, llama_cpp.llama_state_seq_get_size(model.ctx, 0))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
