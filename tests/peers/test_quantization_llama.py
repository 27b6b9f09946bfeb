"""Our quantization of the demo model beside llama.cpp's own, at no more bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_peer import MISSING, llama_logits
from llama_quantizer import llama_quantize
from metrics import kl
from quantization import HELD_OUT, MODEL, Numbers, imatrix, matrix_bits

import plm_edge
from plm_edge.bundle import MODEL_FILE
from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.hub import resolve_model
from plm_edge.reference import Reference
from plm_edge.tokenizer import Tokenizer

pytest.importorskip("llama_cpp", reason=MISSING)

WINDOW, WINDOWS = 512, 4


def test_a_mix_is_nearer_than_q4_k_m_with_an_imatrix(tmp_path: Path) -> None:
    folder = resolve_model(MODEL)
    ids = Tokenizer.from_hf(folder).encode(HELD_OUT.read_text(encoding="utf-8"))
    windows = [ids[at : at + WINDOW] for at in range(0, WINDOW * WINDOWS, WINDOW)]
    plm_edge.export(MODEL, out=tmp_path / "full", quant="F32", layout="plm")
    known = imatrix(folder)
    with open_checkpoint(folder) as checkpoint:
        spec, reference = checkpoint.spec, Reference.from_checkpoint(checkpoint)
        want = np.concatenate([reference.logits(window) for window in windows])

    def logits(file: Path) -> np.ndarray:
        model = Reference.from_checkpoint(Numbers(file, spec))
        return np.concatenate([model.logits(window) for window in windows])

    theirs = {}
    for name, given in (("plain", None), ("imatrix", known)):
        file = tmp_path / f"{name}.gguf"
        llama_quantize(tmp_path / "full" / MODEL_FILE, file, "Q4_K_M", given)
        theirs[name] = kl(want, logits(file))
    bits = matrix_bits(tmp_path / "imatrix.gguf")
    plm_edge.export(MODEL, out=tmp_path / "ours", layout="plm", bits=bits)
    ours = tmp_path / "ours" / MODEL_FILE
    assert ours.stat().st_size <= (tmp_path / "imatrix.gguf").stat().st_size
    exact = logits(ours)
    assert kl(want, exact) < 0.5 * theirs["imatrix"] < theirs["plain"]
    # llama.cpp reads the same numbers; what is left are its 8-bit activations (3e-4 seen).
    assert kl(exact, llama_logits(ours, ids[: WINDOW * WINDOWS], window=WINDOW)) < 2e-3
