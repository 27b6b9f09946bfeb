"""A GGUF file read back as numbers: the same in both layouts, any rows, exactly what was packed."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.errors import FileFormatError, UsageError
from plm_edge.exporters import export
from plm_edge.formats import dequantize, quantize
from plm_edge.gguf_weights import GgufWeights
from plm_edge.tensors import tensor_table


@pytest.mark.parametrize("layout", ["latent", "plm"])
@pytest.mark.parametrize("quant", ["F32", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("shape", ["blocks", "odd"])
def test_rows_are_the_numbers_that_were_packed(tmp_path, shape, quant, layout):
    folder = write_tiny_checkpoint(tmp_path / "hf", TINY_SHAPES[shape], seed=1)
    manifest = export(str(folder), out=tmp_path / "out", quant=quant, layout=layout)
    weights = GgufWeights(tmp_path / "out" / "model.gguf")
    with open_checkpoint(folder) as checkpoint:
        assert weights.spec == checkpoint.spec
        for info in tensor_table(weights.spec).values():
            if len(info.shape) == 1:
                np.testing.assert_array_equal(weights.read(info.name), checkpoint.read(info.name))
                continue
            rows, cols = info.shape
            fmt = manifest.plan["formats"][info.name]
            want = checkpoint.read_rows(info.name, 0, rows)
            want = dequantize(fmt, quantize(fmt, want), cols)
            np.testing.assert_array_equal(weights.read_rows(info.name, 0, rows), want)
            low, high = rows // 3, rows // 3 + min(5, rows - rows // 3)
            np.testing.assert_array_equal(weights.read_rows(info.name, low, high), want[low:high])
            with pytest.raises(UsageError, match="asked for"):
                weights.read_rows(info.name, 0, rows + 1)


def test_a_bent_byte_shows_in_its_row_only(tmp_path):
    spec = TINY_SHAPES["blocks"]
    folder = write_tiny_checkpoint(tmp_path / "hf", spec, seed=1)
    export(str(folder), out=tmp_path / "out", quant="F32", layout="plm")
    path = tmp_path / "out" / "model.gguf"
    name = f"blk.{spec.layers - 1}.ffn_down.weight"  # the last tensor of the file
    before = GgufWeights(path).read_rows(name, 0, spec.d_model)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80  # the sign of its last value
    path.write_bytes(data)
    after = GgufWeights(path).read_rows(name, 0, spec.d_model)
    assert after[-1, -1] == -before[-1, -1] != 0.0
    np.testing.assert_array_equal(after[:-1], before[:-1])
    np.testing.assert_array_equal(after[-1, :-1], before[-1, :-1])


def test_a_file_of_another_format_is_refused_by_name(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", TINY_SHAPES["blocks"], seed=1)
    export(str(folder), out=tmp_path / "out", quant="F32", layout="plm")
    path = tmp_path / "out" / "model.gguf"
    data = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # dims, two sizes, then the type
    assert data[at : at + 4] == bytes(4)  # F32
    path.write_bytes(data[:at] + (26).to_bytes(4, "little") + data[at + 4 :])  # I32
    with pytest.raises(FileFormatError, match=r"blk\.0\.ffn_up\.weight as F32, F16.*found I32"):
        GgufWeights(path)
