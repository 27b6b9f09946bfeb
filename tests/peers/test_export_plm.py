"""llama.cpp runs what is exported with --layout plm, and computes the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_peer import MISSING, llama_logits
from metrics import close, relative_error
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.exporters import export
from plm_edge.formats import dequantize
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.layouts import file_tensors
from plm_edge.reference import Reference
from plm_edge.tokenizer import Tokenizer

pytest.importorskip("llama_cpp", reason=MISSING)

# What llama.cpp adds to the stored weights: F32 nothing (3e-7 seen); F16 and BF16 round activations
# to 16 bits; Q8_0 and Q4_0 round them to 8 bits, in blocks of 32 (2.7e-2 seen).
TOLERANCE = {"F32": 5e-6, "F16": 2e-3, "BF16": 1e-2, "Q8_0": 5e-2, "Q4_0": 5e-2}


def reference(path: Path) -> tuple[Reference, Tokenizer]:
    """The float64 model on exactly the numbers in the file."""
    file = GgufFile.open(path)
    spec = spec_from_gguf(file)
    kinds = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 30: "BF16"}
    formats = {name: kinds[tensor.ggml_type] for name, tensor in file.tensors.items()}
    weights = {}
    for tensor in file_tensors("plm", spec, formats):
        data = file.data(tensor.file_name).reshape(tensor.rows, -1)
        x = dequantize(tensor.format, data, tensor.cols)
        weights[tensor.name] = x if len(tensor.file_shape) == 2 else x[0]
    tokenizer = Tokenizer.from_gguf(file.metadata)
    file.close()
    return Reference(spec, weights), tokenizer


@pytest.mark.parametrize("quant", TOLERANCE)
@pytest.mark.parametrize("shape", ["plain", "blocks"])
def test_llama_cpp_agrees_with_the_reference_on_the_exported_file(tmp_path, shape, quant):
    folder = write_tiny_checkpoint(tmp_path / "tiny", TINY_SHAPES[shape], seed=7)
    export(folder, out=tmp_path / "out", quant=quant, layout="plm")
    path = tmp_path / "out" / "model.gguf"
    model, tokenizer = reference(path)
    ids = tokenizer.encode("once upon a time there was a little house by the sea")
    want = model.logits(ids)
    got = llama_logits(path, ids)
    close(got, want, TOLERANCE[quant])
    changed = model.logits([*ids[:-1], ids[0]])
    assert relative_error(got, changed) > 5 * TOLERANCE[quant]
    assert np.isfinite(got).all()
