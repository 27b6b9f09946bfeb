"""The demo model that ships with the package: what docs/demo-model.md promises of it."""

from __future__ import annotations

import numpy as np
from demo_quality import HELD_OUT, bits_per_byte, longest_copies, tale, words

from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.hub import resolve_model
from plm_edge.formats import dequantize, quantize
from plm_edge.reference import Reference
from plm_edge.runtime import Session
from plm_edge.tensors import tensor_table


def test_it_is_small_and_whole() -> None:
    with open_checkpoint(resolve_model("demo")) as checkpoint:
        table = tensor_table(checkpoint.spec)
        assert sum(int(np.prod(info.shape)) for info in table.values()) < 7_000_000
        assert checkpoint.spec.tied


def test_held_out_text_costs_at_most_1_8_bits_a_byte(demo: Session) -> None:
    text = HELD_OUT.read_text(encoding="utf-8")[:20_000]
    bits = bits_per_byte(demo, text)
    assert bits < 1.8
    shuffled = " ".join(np.random.default_rng(0).permutation(text.split()))
    assert bits_per_byte(demo, shuffled) > bits + 0.5  # order counts


def test_it_tells_of_what_it_is_asked_for(demo: Session) -> None:
    tales = [tale(demo, "fox", seed) for seed in (1, 2, 3)]
    assert sum("fox" in words(reply) for reply in tales) >= 2
    assert len(set(tales)) == 3
    assert all(len(words(reply)) > 20 for reply in tales)
    assert tale(demo, "fox", 1) == tales[0]


def test_the_session_agrees_with_the_reference_on_real_weights(demo: Session) -> None:
    ids = demo.tokenizer.encode("Once upon a time there was a fox who lived in a wood.")
    with open_checkpoint(resolve_model("demo")) as checkpoint:
        weights = {}
        for name, weight in demo.model.weights.items():
            rows = np.atleast_2d(checkpoint.read(name))
            stored = dequantize(weight.format, quantize(weight.format, rows), rows.shape[1])
            weights[name] = stored.reshape(checkpoint.read(name).shape)
        want = Reference(checkpoint.spec, weights).logits(ids)
    with demo.model.session(cache_type="f32") as exact:
        got = exact.prefill(ids, all_logits=True)
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-3  # 16-bit activations
    assert (got.argmax(axis=-1) == want.argmax(axis=-1)).mean() > 0.95


def test_copies_are_found() -> None:
    corpus = words("The fox went out in the night to look for a goose and found one.")
    found = longest_copies({"a": [corpus[3:9], corpus[:2]], "b": [corpus[::-1]], "c": []}, corpus)
    assert found == {"a": 6, "b": 1, "c": 0}
