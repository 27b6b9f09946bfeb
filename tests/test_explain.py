"""What a plan says of itself: levels, reasons, both caches, and how fast it would be."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from plm_edge import devices
from plm_edge.cli.prepare import to_plan
from plm_edge.explain import expanded_bytes, level, report
from plm_edge.exporters.synth import SHAPES
from plm_edge.layouts import file_tensors
from plm_edge.plan import make_plan
from plm_edge.speed import IDLE, MARGIN, Range, estimate
from plm_edge.token_bytes import attention_macs, token_bytes

PLM = SHAPES["plm-1.8b"].spec
MIB = 1 << 20
BOARD = devices.load("rpi")
SMALL = devices.load("rpi5-2gb")
CHOICES = ["device", "fits", "memory", "backend", "layout", "quant", "cache", "context"]
CHOICES += ["threads", "kernels", "batch", "mmap", "speed", "llama.cpp"]


def lines(plan, profile, asked=()):
    return {choice.name: choice for choice in report(plan, PLM, profile, asked)}


def test_every_choice_has_a_reason():
    for name in devices.names()[1:]:
        profile = devices.load(name)
        if profile.ram_bytes >= 1 << 30:
            said = lines(make_plan(PLM, profile), profile)
            assert list(said) == CHOICES
            assert all(choice.why and all(choice.why) for choice in said.values()), name


@pytest.mark.parametrize(
    ("share", "said"), [(1.3, "comfortable"), (1.2, "tight"), (1.0, "tight"), (0.999, "too tight")]
)
def test_levels_by_the_share_of_the_usable_memory(share, said):
    plan = make_plan(PLM, BOARD, quant="Q4_0")
    assert level(plan, replace(BOARD, usable_bytes=int(share * plan.budget.total))) == said


def test_a_board_of_2_gb_runs_plm_with_4096_tokens_and_an_expanded_cache_does_not_fit():
    for board in ("rpi4-2gb", "rpi5-2gb"):
        profile = devices.load(board)
        plan = make_plan(PLM, profile)
        assert (plan.quant, plan.n_ctx, plan.cache_type) == ("Q4_0", 4096, "f16")
        assert plan.budget.total <= profile.usable_bytes < expanded_bytes(plan, PLM)
        assert expanded_bytes(plan, PLM) == plan.budget.weights + 4096 * 32 * 5120 * 2
        said = lines(plan, profile)["llama.cpp"].value
        assert said.startswith("would cache 1,280 MiB of keys and values: 2,408 MiB with the")
        assert said.endswith("690 MiB more than there is")


def test_reasons_say_what_was_asked_and_what_was_chosen():
    plan = make_plan(PLM, SMALL)
    chosen = lines(plan, SMALL)
    assert (
        chosen["quant"].why[0] == "the first of Q8_0, Q4_0 that leaves room for the whole context"
    )
    assert "192 Q4_0, 97 F32, 1 Q8_0" in chosen["quant"].why[1]
    assert "token_embd.weight makes the logits" in chosen["quant"].why[2]
    assert "free -m" in chosen["fits"].why[0]
    asked = lines(plan, SMALL, {"quant", "context", "cache", "threads", "kernels", "layout"})
    for name in ("quant", "cache", "context", "threads", "kernels", "layout"):
        assert asked[name].why[0].startswith("as asked"), name
    tight = replace(SMALL, usable_bytes=1340 * MIB)
    short = lines(make_plan(PLM, tight), tight)
    assert short["context"].why == ("the longest that fits; trained for 4,096",)
    assert short["cache"].why[0] == "rows in f16 would leave no room for the whole context"
    assert short["quant"].why[0].startswith("the smallest of Q8_0, Q4_0; not even that")


def test_tensors_that_fall_back_are_counted():
    odd = replace(PLM, layers=1, d_ffn=8200, vocab=1024)
    said = report(make_plan(odd, BOARD, quant="Q4_0"), odd, BOARD)
    assert any("1 tensors F16: their rows" in why for choice in said for why in choice.why)
    said = report(make_plan(PLM, BOARD, quant="Q4_0"), PLM, BOARD)
    assert not any("tensors F16" in why for choice in said for why in choice.why)


# ---------------------------------------------------------------- speed


def bytes_of(plan, spec=PLM, idle=IDLE):
    tensors = {tensor.name: tensor for tensor in file_tensors(plan.layout, spec, plan.formats)}
    return token_bytes(tensors, spec, idle)


def test_a_token_reads_every_weight_once_but_idle_units():
    plan = make_plan(PLM, BOARD, quant="Q8_0")
    all_of_it = plan.budget.weights + 2048 // 32 * 34  # the row that is looked up is counted too
    assert bytes_of(plan, idle=0) == all_of_it
    quants = 32 * 2048 * 8192  # of ffn_down; its scales are read in any case
    assert bytes_of(plan, idle=0.5) == pytest.approx(all_of_it - quants / 2, rel=1e-6)
    # an embedding that is not the head is looked up, not read
    untied = replace(PLM, tied=False)
    assert bytes_of(make_plan(untied, BOARD, quant="Q8_0"), untied, 0) == all_of_it
    # nothing is skipped in plain rows
    rows = make_plan(PLM, BOARD, quant="Q8_0", layout="plm")
    assert bytes_of(rows, idle=0.5) == bytes_of(rows, idle=0)
    assert attention_macs(PLM) == 32 * 16 * (2 * 512 + 64)


def known(**facts):
    nothing = dict.fromkeys(
        ("nominal_bytes_per_s", "read_bytes_per_s", "decode_bytes_per_s", "f32_flop_per_s")
    )
    return replace(BOARD, **{**nothing, **facts})


def test_what_engines_reached_gives_a_range():
    profile = known(decode_bytes_per_s=(1e10, 2e10), nominal_bytes_per_s=4e10, f32_flop_per_s=1e11)
    plan = make_plan(PLM, profile, quant="Q8_0")
    weights, cache = bytes_of(plan), 144 * MIB
    products = 2 * 4096 * attention_macs(PLM) / 1e11
    speed = estimate(plan, PLM, profile)
    assert speed.empty == Range(1e10 / weights, 2e10 / weights)
    assert speed.full.high == 2e10 / (weights + cache)
    assert speed.full.low == pytest.approx(1 / ((weights + cache) / 1e10 + products))
    assert "25% to 50% of the nominal bandwidth" in " ".join(speed.inputs)
    one = estimate(plan, PLM, known(decode_bytes_per_s=(1e10, 1e10)))
    assert one.empty == Range((1 - MARGIN) * 1e10 / weights, (1 + MARGIN) * 1e10 / weights)
    assert "products are not counted" in " ".join(one.inputs)


def test_a_bandwidth_alone_is_only_an_upper_bound():
    plan = make_plan(PLM, BOARD, quant="Q8_0")
    speed = estimate(plan, PLM, known(nominal_bytes_per_s=1e10))
    assert speed.empty == Range(None, 1e10 / bytes_of(plan))
    assert str(speed.empty) == f"at most {1e10 / bytes_of(plan):.1f}"
    assert estimate(plan, PLM, known(read_bytes_per_s=1e10)).empty == speed.empty
    both = known(nominal_bytes_per_s=1e10, read_bytes_per_s=5e9)  # one basis for all machines
    assert estimate(plan, PLM, both).empty == speed.empty
    assert estimate(plan, PLM, known()) is None
    said = lines(plan, known())["speed"]
    assert said.value == "unknown: no bandwidth of the device is known"
    how = "its kernels were not measured; on the device itself --target host does that first"
    assert said.why == (how,)


def test_rates_of_the_kernels_come_first_and_count_attention():
    rates = {"step_bytes_per_s": {"Q8_0": 2e10}, "attend_mac_per_s": {"f16": 5e10}}
    profile = known(decode_bytes_per_s=(1e10, 1e10), **rates)
    plan = make_plan(PLM, profile, quant="Q8_0")
    speed = estimate(plan, PLM, profile)
    full = bytes_of(plan) / 2e10 + 4096 * attention_macs(PLM) / 5e10
    assert speed.full.low == pytest.approx((1 - MARGIN) / full)
    assert speed.full.high == pytest.approx((1 + MARGIN) / full)
    other = make_plan(PLM, profile, quant="Q4_0")  # not measured: what engines reached
    assert estimate(other, PLM, profile).empty.high == pytest.approx(1.2e10 / bytes_of(other))


def test_a_graphics_card_is_estimated_by_what_was_seen_on_it():
    card = devices.load("gpu")
    plan = make_plan(PLM, card)
    assert estimate(plan, PLM, card).empty.high == pytest.approx(
        max(248e9, 1.2 * (186e9 + 248e9) / 2) / bytes_of(plan)
    )


def test_the_bandwidth_of_memory_says_nothing_of_a_model_in_the_cpus_cache():
    tiny = SHAPES["plm-tiny"].spec
    plan = make_plan(tiny, BOARD)
    assert estimate(plan, tiny, BOARD) is None
    said = {choice.name: choice.value for choice in report(plan, tiny, BOARD)}["speed"]
    assert said == (
        "unknown: a token reads less than 64 MiB of weights: a CPU's cache may hold them, and the "
        "bandwidth of the memory says nothing about its speed"
    )


def test_an_estimate_is_marked_as_one():
    said = lines(make_plan(PLM, SMALL), SMALL)["speed"].value
    number = r"\d+\.\d"
    assert re.fullmatch(
        rf"estimate: {number} to {number} tokens/s at first, {number} to {number} behind 4,096 "
        "tokens",
        said,
    )


def test_a_bundle_is_planned_with_its_own_numbers_and_a_folder_from_its_config(
    bundle_of, checkpoint_of, tmp_path
):
    spec, formats = to_plan(str(bundle_of("blocks", "Q8_0")))
    assert formats["blk.0.ffn_up.weight"] == "Q8_0"
    assert make_plan(spec, BOARD, formats=formats).quant == "Q8_0"
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((checkpoint_of("blocks") / "config.json").read_bytes())
    assert to_plan(str(alone)) == (spec, None)
    assert to_plan("plm-1.8b") == (PLM, None)
