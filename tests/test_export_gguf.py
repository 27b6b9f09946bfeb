"""Exports of GGUF files and bundles: no checkpoint is needed, and no block changes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from super_files import SPEC, write_stock
from tiny import write_tiny_checkpoint

from plm_edge.bundle import MODEL_FILE
from plm_edge.errors import DoesNotFit, FileFormatError, UnsupportedError, UsageError
from plm_edge.exporters import export
from plm_edge.exporters import gguf_writer as writer
from plm_edge.gguf_weights import GgufWeights
from plm_edge.runtime import load


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return write_stock(tmp_path_factory.mktemp("stock"))[0]


@pytest.mark.parametrize("layout", ["latent", "plm"])
def test_a_stock_file_keeps_its_blocks(stock, layout, tmp_path):
    manifest = export(stock, "rpi", tmp_path / "out", layout=layout)
    assert manifest.plan["quant"] == "Q4_K"
    assert manifest.plan["formats"]["token_embd.weight"] == "Q6_K"
    ours, theirs = GgufWeights(tmp_path / "out" / MODEL_FILE), GgufWeights(stock)
    for name, tensor in theirs.tensors.items():
        want = theirs.packed_rows(name, 0, tensor.rows)
        np.testing.assert_array_equal(ours.packed_rows(name, 0, tensor.rows), want)
    with load(tmp_path / "out") as session, load(stock) as first:
        np.testing.assert_allclose(session.prefill([1, 2]), first.prefill([1, 2]), atol=1e-3)


def test_a_bundle_is_exported_like_its_file(stock, tmp_path):
    export(stock, "rpi", tmp_path / "latent")
    export(tmp_path / "latent", "rpi", tmp_path / "from_bundle")
    export(tmp_path / "latent" / MODEL_FILE, "rpi", tmp_path / "from_file")
    files = [tmp_path / name / MODEL_FILE for name in ("latent", "from_bundle", "from_file")]
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_floats_are_quantized_as_those_of_the_checkpoint(quant, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", SPEC)
    export(folder, "rpi", tmp_path / "f32", quant="F32", layout="plm")
    export(tmp_path / "f32" / MODEL_FILE, "rpi", tmp_path / "again", quant=quant)
    export(folder, "rpi", tmp_path / "once", quant=quant)
    again, once = (tmp_path / name / MODEL_FILE for name in ("again", "once"))
    assert again.read_bytes() == once.read_bytes()


def test_what_is_quantized_is_not_rounded_again(stock, tmp_path):
    with pytest.raises(UnsupportedError, match=r"--quant Q4_0, found Q4_K, Q6_K; leave --quant"):
        export(stock, "rpi", tmp_path / "out", quant="Q4_0")
    with pytest.raises(UsageError, match="found 'Q9'"):
        export(stock, "rpi", tmp_path / "out", quant="Q9")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_says_so(stock, tmp_path):
    small = tmp_path / "board.toml"
    lines = ['name = "small"', "[memory]", 'total = "2 MB"', 'usable = "1 MB"']
    lines += ["[memory.source]", 'total = "given"', 'usable = "given"']
    small.write_text("\n".join(lines))
    with pytest.raises(DoesNotFit, match="Q4_K with a context of 128 needs"):
        export(stock, str(small), tmp_path / "out")


def test_a_file_that_changes_meanwhile_is_refused(stock, tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(stock.read_bytes())
    arrange = writer.arrange

    def touched(*args):
        os.utime(file, ns=(1, 1))
        return arrange(*args)

    monkeypatch.setattr(writer, "arrange", touched)
    with pytest.raises(FileFormatError, match=r"model.gguf changed while it was read"):
        export(file, "rpi", tmp_path / "out")
    assert not (tmp_path / "out").exists()
