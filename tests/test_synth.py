"""Synth: seeded weights of true shape, a chosen share of idle units, a made-up vocabulary."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from metrics import relative_error

from plm_edge.bundle import verify_bundle
from plm_edge.errors import UsageError
from plm_edge.exporters.synth import SHAPES, synth
from plm_edge.exporters.synth_check import measure_activity
from plm_edge.exporters.synth_vocabulary import made_up_vocabulary
from plm_edge.exporters.synth_weights import BLOCK_ROWS, CONSTANT, SynthWeights
from plm_edge.gguf_weights import GgufWeights
from plm_edge.layouts import file_tensors
from plm_edge.reference import Reference
from plm_edge.runtime import load
from plm_edge.template import CHATML
from plm_edge.tensors import tensor_table
from plm_edge.tokenizer import Tokenizer

TINY = SHAPES["plm-tiny"].spec
IDS = np.random.default_rng(7).integers(0, TINY.vocab, 64)


def test_rows_are_the_same_in_any_order_and_block():
    weights = SynthWeights(TINY, 0.8, seed=3)
    for info in tensor_table(TINY).values():
        if len(info.shape) == 1:
            assert weights.read(info.name).shape == info.shape
            continue
        rows = info.shape[0]
        whole = weights.read_rows(info.name, 0, rows)
        assert whole.shape == info.shape
        assert whole.dtype == np.float32
        parts = [weights.read_rows(info.name, r, min(r + 37, rows)) for r in range(0, rows, 37)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_seed_and_name_matter():
    name = "blk.0.ffn_up.weight"
    one = SynthWeights(TINY, 0.8, seed=1).read_rows(name, 0, 8)
    assert not np.array_equal(one, SynthWeights(TINY, 0.8, seed=2).read_rows(name, 0, 8))
    other = SynthWeights(TINY, 0.8, seed=1).read_rows("blk.1.ffn_up.weight", 0, 8)
    assert not np.array_equal(one[:, CONSTANT:], other[:, CONSTANT:])


def test_no_two_rows_are_alike():
    rows = SynthWeights(TINY, 0.8, seed=1).read("blk.0.ffn_up.weight")
    assert len(np.unique(rows, axis=0)) == len(rows) == 2 * BLOCK_ROWS


def test_no_layer_writes_to_the_constant_of_the_stream():
    weights = SynthWeights(TINY, 0.8, seed=1)
    for kind in ("attn_output", "ffn_down"):
        rows = weights.read(f"blk.1.{kind}.weight")
        assert not rows[:CONSTANT].any()
        assert rows[CONSTANT:].any(axis=1).all()


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9])
def test_every_layer_has_the_share_of_idle_units_and_no_common_set(zeros):
    for layer in measure_activity(SynthWeights(TINY, zeros, seed=0), IDS):
        assert abs(layer.zeros - zeros) < 0.05
        assert layer.jaccard < layer.chance + 0.1


class Bent(SynthWeights):
    """The same weights with the constant of the stream a third larger."""

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = super().read_rows(name, start, stop)
        if name == "token_embd.weight":
            rows[:, :CONSTANT] *= 4 / 3
        return rows


def test_the_measurement_notices_another_share_and_equal_tokens():
    bent = measure_activity(Bent(TINY, 0.8, seed=0), IDS)
    assert all(layer.zeros > 0.85 for layer in bent)
    same = measure_activity(SynthWeights(TINY, 0.8, seed=0), np.full(8, 5))
    assert same[0].jaccard > same[0].chance + 0.5


@pytest.mark.parametrize(
    ("zeros", "seed", "said"),
    [
        (0.0, 0, "--zeros is 0.0, expected a share between 0 and 1"),
        (1.0, 0, "--zeros is 1.0"),
        (float("nan"), 0, "--zeros is nan"),
        (0.8, -1, "--seed is -1, expected 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(zeros, seed, said):
    with pytest.raises(UsageError) as error:
        SynthWeights(TINY, zeros, seed)
    assert said in str(error.value)


def test_shapes_have_a_token_for_most_rows():
    for shape in SHAPES.values():
        assert 256 + shape.merges + 3 <= shape.spec.vocab
    plm = SHAPES["plm-1.8b"]
    values = sum(int(np.prod(info.shape)) for info in tensor_table(plm.spec).values())
    assert values == 1_825_458_176  # of the published checkpoint, by its size
    assert 256 + plm.merges + 3 == 151_646


@pytest.mark.parametrize("merges", [SHAPES["plm-tiny"].merges, 40_000])
def test_the_vocabulary_is_one(merges):
    tokenizer = Tokenizer(made_up_vocabulary(merges))  # checks every merge and its parts
    assert tokenizer.n_tokens == 256 + merges + 3
    assert tokenizer.special_ids["<|im_end|>"] == tokenizer.n_tokens - 1
    text = "What was there in the garden?\n\tÉté 日本 🦊"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    again = Tokenizer.from_gguf(tokenizer.to_gguf(merges + 300))
    assert again.encode(text) == ids


def test_frequent_letters_merge_with_the_space_before_them():
    tokenizer = Tokenizer(made_up_vocabulary(60_000))
    ids = tokenizer.encode("the the that")
    assert [tokenizer.decode([i]) for i in ids] == ["the", " the", " that"]


def test_the_template_is_the_published_one():
    # Of tokenizer_config.json of PLM-1.8B-Instruct.
    digest = "af9c0233881b083b52ff773580215222b5440ac3d0beeeca99b76329b048f8db"
    assert hashlib.sha256(CHATML.encode()).hexdigest() == digest


def test_a_shape_without_room_for_the_constant_is_refused():
    narrow = replace(TINY, d_model=32)
    with pytest.raises(UsageError, match="tied and wider than 32"):
        SynthWeights(narrow, 0.8, 0)


@pytest.mark.parametrize(("quant", "layout"), [("Q4_0", "latent"), ("Q8_0", "plm"), ("F16", "plm")])
def test_the_written_model_has_the_share_and_runs(tmp_path, quant, layout):
    report = synth("plm-tiny", tmp_path / "out", zeros=0.8, quant=quant, layout=layout)
    assert all(abs(layer.zeros - 0.8) < 0.05 for layer in report.layers)
    assert all(layer.jaccard < layer.chance + 0.1 for layer in report.layers)
    assert f"zeros    {report.zeros:.3f}" in str(report)
    assert f"jaccard  {report.jaccard:.3f}" in str(report)

    manifest = verify_bundle(tmp_path / "out")
    assert manifest.plan["quant"] == quant
    assert manifest.plan["budget"]["weights"] >= sum(
        tensor.nbytes for tensor in file_tensors(layout, TINY, manifest.plan["formats"])
    )
    reference = Reference.from_checkpoint(GgufWeights(tmp_path / "out" / "model.gguf"))
    with contextlib.closing(load(tmp_path / "out", threads=1, cache_type="f32")) as session:
        ids = session.tokenizer.encode("there was a model")
        got = session.prefill(ids, all_logits=True)
    # float32 against float64, integer products of 16-bit activations between
    assert relative_error(got, reference.logits(ids)) < 1e-3
    assert not relative_error(got, reference.logits(ids[::-1])) < 1e-3
    assert np.std(got) > 1.0


def test_the_next_token_is_not_the_last_one_again(tmp_path):
    synth("plm-tiny", tmp_path / "out")
    reference = Reference.from_checkpoint(GgufWeights(tmp_path / "out" / "model.gguf"))
    ids = IDS[:32].tolist()
    said = reference.logits(ids).argmax(axis=-1)
    assert np.mean(said == np.array(ids)) < 0.2
    assert len(set(said.tolist())) > 8


def test_same_arguments_same_bytes_and_the_seed_counts(tmp_path):
    reports = [synth("plm-tiny", tmp_path / f"{i}", seed=seed) for i, seed in enumerate((5, 5, 6))]
    hashes = [report.file.sha256 for report in reports]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_unknown_shape_lists_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"unknown shape 'plm-9b', expected one of plm-1\.8b"):
        synth("plm-9b", tmp_path / "out")
    assert not list(tmp_path.iterdir())
