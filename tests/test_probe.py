"""The probe runs the kernels that a session runs, on as many bytes as the model would read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plm_edge import devices
from plm_edge.exporters.synth import SHAPES
from plm_edge.exporters.synth_vocabulary import made_up_vocabulary
from plm_edge.plan import make_plan
from plm_edge.runtime import probe
from plm_edge.speed import IDLE
from plm_edge.tokenizer import Tokenizer

SPEC = SHAPES["plm-tiny"].spec
TOKENIZER = Tokenizer(made_up_vocabulary(0))


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize("layout", ["latent", "plm"])
def test_rates_are_positive_for_every_format(quant, layout, monkeypatch):
    monkeypatch.setattr(probe, "READ_BYTES", 4 << 20)
    plan = make_plan(SPEC, devices.detect(), quant, layout, cache_type="q8_0")
    rates = probe.measure(SPEC, plan, TOKENIZER)
    assert rates.step_bytes_per_s > 0
    assert rates.attend_mac_per_s > 0
    assert rates.read_bytes_per_s > 0


def test_random_weights_leave_as_many_units_idle_as_the_estimate_says():
    wide = replace(SPEC, d_ffn=8192)
    plan = make_plan(wide, devices.detect(), "Q4_0")
    with probe.RandomModel(wide, plan, TOKENIZER).session(16) as session:
        for token in range(8):
            session.step(token)
            idle = 1 - float(session._buffers["unit_rows"].sum()) / (wide.layers * wide.d_ffn)
            assert abs(idle - IDLE) < 0.05


def test_the_part_keeps_the_proportions_of_the_whole():
    plm = SHAPES["plm-1.8b"].spec
    plan = make_plan(plm, devices.load("rpi"), "Q4_0")
    part = probe._part(plm, plan)
    assert (part.layers, part.d_model) == (3, plm.d_model)
    assert part.vocab / plm.vocab == pytest.approx(3 / 32, rel=0.01)
    assert probe._part(SPEC, make_plan(SPEC, devices.load("rpi"))).layers == SPEC.layers
