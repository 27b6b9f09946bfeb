"""Our logits are nearer to float64 than llama.cpp's, on the same blocks: ten times at least.

A smaller form of benchmarks/fidelity.py. llama.cpp runs the layout `plm` without flash attention,
which it aborts with, and the smallest KL of its caches in F16 and F32 counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import fidelity
import pytest
from fidelity import Case, Logits
from llama_peer import MISSING, llama_logits
from metrics import kl
from mistakes import MISTAKES

pytest.importorskip("llama_cpp", reason=MISSING)

TIMES = 10  # seen: 1,100 times on the demo model, 24,000 on the other


@dataclass(frozen=True)
class Measured:
    case: Case
    want: Logits
    ours: dict[str, Logits]  # by call
    theirs: float  # the smallest KL of llama.cpp, nats


@pytest.fixture(scope="module", params=["demo", "heavy"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("fidelity")
    case = fidelity.make_case(request.param, "Q8_0", folder)
    want = fidelity.true_logits(case.reference(), case.ids)
    ours = {call: fidelity.our_logits(case.latent, case.ids, call) for call in fidelity.CALLS}
    rival = (
        llama_logits(case.plm / "model.gguf", case.ids, cache, fidelity.WINDOW)
        for cache in ("F16", "F32")
    )
    return Measured(case, want, ours, min(kl(want, got) for got in rival))


@pytest.mark.parametrize("call", fidelity.CALLS)
def test_kl_is_at_least_ten_times_smaller(measured: Measured, call: str) -> None:
    assert len(measured.want) == 2048
    ours, theirs = kl(measured.want, measured.ours[call]), measured.theirs
    assert 0 < TIMES * ours < theirs


def test_a_mistake_would_show(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = measured.case.ids[: fidelity.WINDOW]
    monkeypatch.setattr(*MISTAKES["scale of the nope width"])
    bent = fidelity.true_logits(measured.case.reference(), ids)
    for got in measured.ours.values():
        assert TIMES * kl(bent, got[: len(ids)]) > measured.theirs


def test_activations_in_bytes_would_show(measured: Measured) -> None:
    ids = measured.case.ids[: fidelity.WINDOW]
    for call in ("step", "prefill"):
        got = fidelity.our_logits(measured.case.latent, ids, call, activations="int8")
        assert TIMES * kl(measured.want[: len(ids)], got) > measured.theirs


def test_llama_cpp_step_by_step_is_no_nearer(measured: Measured) -> None:
    ids = measured.case.ids[: fidelity.WINDOW]
    got = llama_logits(measured.case.plm / "model.gguf", ids, "F16", steps=True)
    assert kl(measured.want[: len(ids)], got) > measured.theirs / 2
