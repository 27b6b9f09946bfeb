"""Stock files with Q4_K and Q6_K: in the native session as they are, and laid out anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from metrics import relative_error
from super_files import MIXES, SPEC, write_stock
from test_isa import SETS

from plm_edge.bundle import MODEL_FILE
from plm_edge.exporters.relayout import relayout
from plm_edge.gguf_weights import GgufWeights
from plm_edge.reference import Reference
from plm_edge.runtime import load

IDS = [int(i) for i in np.random.default_rng(5).integers(0, SPEC.vocab, 41)]


@pytest.fixture(scope="module", params=MIXES)
def stock(request, tmp_path_factory):
    """(the file, the file in layout latent, the reference's logits)."""
    folder = tmp_path_factory.mktemp("stock")
    path, weights = write_stock(folder, request.param)
    relayout(path, "latent", folder / "latent")
    return path, folder / "latent" / MODEL_FILE, Reference(SPEC, weights).logits(IDS)


def logits(path, ids=IDS, steps=False, **how):
    with load(path, **how) as session:
        if steps:
            return np.stack([session.step(token) for token in ids])
        return session.prefill(ids, all_logits=True)


# Activations meet integer weights as 16-bit integers: 2^-16 of a block's maximum each.
@pytest.mark.parametrize("cache_type", ["f32", "f16"])
@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize("latent", [True, False])
def test_logits_equal_the_reference_on_the_same_weights(stock, latent, steps, cache_type):
    got = logits(stock[latent], steps=steps, cache_type=cache_type)
    assert relative_error(got, stock[2]) < (3e-4 if cache_type == "f32" else 3e-3)


@pytest.mark.parametrize("isa", SETS)
def test_every_kernel_set_gives_the_same_answer(stock, isa):
    want = logits(stock[1], isa="scalar")
    assert relative_error(logits(stock[1], isa=isa), want) < 3e-4  # activations round otherwise


def test_the_expanded_way_rounds_no_worse_than_its_cache(stock):
    """kv_b becomes integers of 13 bits there, as the rows of the cache do."""
    path = stock[1]
    with load(path) as session:
        want = logits(path, steps=True)
        session.prefill(IDS[:1])
        rest = session.prefill(IDS[1:], all_logits=True)
    assert relative_error(rest, want[1:]) < 2e-3


def test_blocks_are_moved_and_never_changed(stock):
    path, latent, _ = stock
    ours, theirs = GgufWeights(latent), GgufWeights(path)
    for name, tensor in theirs.tensors.items():
        want = theirs.packed_rows(name, 0, tensor.rows)
        np.testing.assert_array_equal(ours.packed_rows(name, 0, tensor.rows), want)
        assert ours.tensors[name].format == tensor.format
    assert ours.tensors["blk.0.ffn_down.weight"].arrangement == "group32"
    assert ours.tensors["blk.0.ffn_up.weight"].arrangement == "tile16x4"


def test_back_again_is_the_stock_file(tmp_path):
    path, _ = write_stock(tmp_path)
    relayout(path, "latent", tmp_path / "latent")
    relayout(tmp_path / "latent" / MODEL_FILE, "plm", tmp_path / "plm")
    back, first = GgufWeights(tmp_path / "plm" / MODEL_FILE), GgufWeights(path)
    for name, tensor in first.tensors.items():
        rows = first.packed_rows(name, 0, tensor.rows)
        np.testing.assert_array_equal(back.packed_rows(name, 0, tensor.rows), rows)


def test_an_idle_unit_is_a_row_that_is_not_read(tmp_path):
    path, _ = write_stock(tmp_path)
    relayout(path, "latent", tmp_path / "latent")
    with load(Path(tmp_path / "latent")) as session:
        session.step(IDS[0])
        read = int(session._buffers["unit_rows"].sum())
    assert 0 < read < SPEC.layers * SPEC.d_ffn * 3 // 4
