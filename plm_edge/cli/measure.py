"""This machine's profile with what is measured now: a plain read of memory, and the kernels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plm_edge.devices import DeviceProfile
    from plm_edge.planned import Plan
    from plm_edge.spec import ModelSpec

SHAPE, QUANTS = "plm-1.8b", ("Q4_0", "Q8_0")  # what a profile's rates are measured with
ROOM_BYTES = 512 << 20  # usable; the probe takes about as much


def measured_host(profile: DeviceProfile) -> DeviceProfile:
    """Measured in the shape of PLM-1.8B; as it was, and said so, where memory is short."""
    from plm_edge.exporters.synth import SHAPES
    from plm_edge.plan import make_plan

    if profile.usable_bytes < ROOM_BYTES:
        room = f"{ROOM_BYTES >> 20} MiB"
        print(f"nothing measured: that takes {room} of usable memory", file=sys.stderr)
        return profile
    spec = SHAPES[SHAPE].spec
    # planned as if it fitted: a part of the model is timed, not the whole of it
    endless = replace(profile, usable_bytes=1 << 40)
    plans = [make_plan(spec, endless, quant, cache_type="f16") for quant in QUANTS]
    return measured(profile, spec, plans)


def measured(profile: DeviceProfile, spec: ModelSpec, plans: Sequence[Plan]) -> DeviceProfile:
    """The profile of this machine with what its kernels reach now on those plans."""
    from plm_edge.exporters.synth_vocabulary import made_up_vocabulary
    from plm_edge.runtime import probe
    from plm_edge.tokenizer import Tokenizer

    tokenizer = Tokenizer(made_up_vocabulary(0))
    rates = [probe.measure(spec, plan, tokenizer) for plan in plans]
    threads, day = plans[0].threads, date.today().isoformat()
    how = f"measured {day}: {threads} threads, kernels {plans[0].isa}, runtime/probe.py"
    keys = ("read_bytes_per_s", "step_bytes_per_s", "attend_mac_per_s")
    named = list(zip(plans, rates, strict=True))
    attend: dict[str, float] = {}
    for plan, rate in named:
        attend[plan.cache_type] = max(attend.get(plan.cache_type, 0), rate.attend_mac_per_s)
    return replace(
        profile,
        read_bytes_per_s=_four_digits(max(rate.read_bytes_per_s for rate in rates)),
        step_bytes_per_s={p.quant: _four_digits(rate.step_bytes_per_s) for p, rate in named},
        attend_mac_per_s={kind: _four_digits(value) for kind, value in attend.items()},
        sources={**profile.sources, **dict.fromkeys(keys, how)},
    )


def _four_digits(value: float) -> float:
    """As many as a profile shows."""
    return float(f"{value:.4g}")
