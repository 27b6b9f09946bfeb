"""The session against float64 and against itself on the demo model and on one of heavy tails.

Beside llama.cpp: tests/peers/test_fidelity_llama.py. Longer: benchmarks/fidelity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import fidelity
import numpy as np
import pytest
from fidelity import Case
from heavy_tails import MERGES, SPEC, HeavyTails
from metrics import equal_greedy, kl, relative_error
from mistakes import MISTAKES
from numpy.typing import NDArray

from plm_edge.gguf_weights import GgufWeights
from plm_edge.kinds import mla, relu2
from plm_edge.kinds.norm import rms_norm
from plm_edge.reference import Reference
from plm_edge.runtime import load

Cases = Callable[[str, str], Case]
EXACT = 1e-5  # of the largest logit: float32 sums in another order; 5e-7 to 1.3e-6 seen


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """(model, quant) -> its files, written once."""
    root = tmp_path_factory.mktemp("fidelity")
    return cache(lambda model, quant: fidelity.make_case(model, quant, root))


def reference_of(case: Case) -> Reference:
    return Reference.from_checkpoint(GgufWeights(case.latent / "model.gguf"))


# ---------------------------------------------------------------- the model of heavy tails


def test_a_few_channels_are_tens_of_times_larger(case_of: Cases) -> None:
    case, largest = case_of("heavy", "Q8_0"), []
    weights = GgufWeights(case.latent / "model.gguf")
    entering = weights.read("token_embd.weight")[case.ids[:256]]
    for place in ("attn_norm", "ffn_norm"):
        normed = rms_norm(entering, weights.read(f"blk.0.{place}.weight"), SPEC.eps)
        sizes = np.sqrt(np.mean(normed**2, axis=0))  # by channel
        largest.append(sizes.max() / np.median(sizes))
        assert 3 <= np.sum(sizes > 20 * np.median(sizes)) <= 20
    assert all(30 < ratio < 150 for ratio in largest), largest
    assert case.vocab == 256 + MERGES + 3


def test_the_gains_keep_the_variance_of_what_a_matrix_makes() -> None:
    heavy, n = HeavyTails(SPEC), SPEC.d_model
    x = np.random.default_rng(2).standard_normal((400, n))
    made = (x * heavy.read("blk.1.attn_norm.weight")) @ heavy.read("blk.1.attn_q.weight").T
    plain = heavy._plain
    want = (x * plain.read("blk.1.attn_norm.weight")) @ plain.read("blk.1.attn_q.weight").T
    assert made.std() == pytest.approx(want.std(), rel=0.1)
    assert not np.array_equal(heavy.gains("blk.0", "attn_q"), heavy.gains("blk.1", "attn_q"))


# ---------------------------------------------------------------- cache


def test_a_cache_in_q8_0_says_what_one_in_f16_says(case_of: Cases) -> None:
    case = case_of("demo", "Q8_0")
    for call in ("step", "prefill"):
        f16, q8_0 = (fidelity.our_logits(case.latent, case.ids, call, c) for c in ("f16", "q8_0"))
        assert len(f16) == 2048
        assert 0 < kl(f16, q8_0) < 1e-4


def test_a_coarser_cache_would_show(case_of: Cases) -> None:
    case = case_of("demo", "Q8_0")
    ids, half = case.ids[:512], 256
    rows = {}
    for cache_type in ("f16", "q8_0"):
        with load(case.latent, n_ctx=512, cache_type=cache_type) as session:
            session.prefill(ids[:half])
            if cache_type == "q8_0":  # 4 bits of 8
                session.cached_rows()[:, :, : session.spec.rank] &= 0xF0
            rows[cache_type] = session.prefill(ids[half:], all_logits=True)
    assert kl(rows["f16"], rows["q8_0"]) > 1e-4


# ---------------------------------------------------------------- greedy tokens


@pytest.mark.parametrize(("model", "prompt", "decided"), [("demo", 1, 256), ("heavy", 3, 60)])
def test_greedy_tokens_are_the_reference_s(
    model: str, prompt: int, decided: int, case_of: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(model, "Q8_0")
    ids = fidelity.prompts(case)[prompt]
    tokens = fidelity.greedy(case, ids)
    fed, at = [*ids, *tokens[:-1]], len(ids) - 1
    equal, undecided = equal_greedy(reference_of(case).logits(fed)[at:], tokens)
    assert equal >= undecided >= decided
    monkeypatch.setattr(*MISTAKES["scale of the nope width"])
    equal, undecided = equal_greedy(reference_of(case).logits(fed)[at:], tokens)
    assert equal < undecided


# ---------------------------------------------------------------- skipping


@pytest.mark.parametrize("model", ["demo", "heavy"])
def test_skipping_idle_units_changes_no_logit(
    model: str, case_of: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(model, "F32")
    ids = case.ids[:256]
    assert fidelity.rows_skipped(case, ids) > 0.5
    want = fidelity.true_logits(reference_of(case), ids)
    rows = {}
    for call in ("step", "prefill"):
        skipping, dense = (
            fidelity.our_logits(path, ids, call, "f32") for path in (case.latent, case.plm)
        )
        assert relative_error(skipping, want) < EXACT
        assert relative_error(skipping, dense) < EXACT
        rows[call] = skipping
    assert not np.array_equal(rows["step"], rows["prefill"])  # two paths indeed
    monkeypatch.setattr(relu2, "units", _one_lost)
    bent = fidelity.true_logits(reference_of(case), ids)
    assert all(relative_error(got, bent) > EXACT for got in rows.values())


_units = relu2.units


def _one_lost(x: NDArray[Any], w: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The units, the middle one of those that fired taken for idle in each token."""
    units = _units(x, w)
    for row in units:
        fired = np.flatnonzero(row)
        row[fired[np.argsort(row[fired])[len(fired) // 2]]] = 0.0
    return units


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("model", ["demo", "heavy"])
def test_the_calls_take_both_paths_of_attention(model: str, case_of: Cases) -> None:
    spec = GgufWeights(case_of(model, "Q8_0").latent / "model.gguf").spec
    assert mla.expanding_pays(spec, 0, 256)
    assert mla.expanding_pays(spec, 256, 256)
    small = fidelity.CALLS["prefill by 16"]
    assert not any(mla.expanding_pays(spec, past, small) for past in range(small, 512, small))
