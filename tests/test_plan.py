"""Plans: exact budgets, what is chosen on which device, what is said when nothing fits."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from dataclasses import replace

import pytest
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge import devices
from plm_edge.bundle import read_bundle
from plm_edge.cache_layout import CacheLayout
from plm_edge.errors import DoesNotFit, FileFormatError, UnsupportedError, UsageError
from plm_edge.exporters import export
from plm_edge.exporters.synth import SHAPES
from plm_edge.layouts import data_bytes, file_tensors
from plm_edge.native.kernels import isa_table
from plm_edge.plan import Budget, Overrides, Plan, make_plan, plan_of_file, replan_for_load
from plm_edge.quant_plan import choose_formats
from plm_edge.runtime import load
from plm_edge.workspace import workspace

PLM = SHAPES["plm-1.8b"].spec
MIB = 1 << 20
BOARD = devices.load("rpi")
SMALL = devices.load("rpi4-2gb")


def board(usable_mib: float) -> devices.DeviceProfile:
    return replace(BOARD, name="Board", usable_bytes=int(usable_mib * MIB))


def test_the_budget_is_what_file_cache_and_session_take():
    plan = make_plan(PLM, SMALL, quant="Q4_0", n_ctx=4096)
    formats = choose_formats(PLM, "Q4_0")
    assert plan.budget.weights == data_bytes("latent", file_tensors("latent", PLM, formats))
    assert plan.budget.cache == 4096 * 32 * 576 * 2 == 144 * MIB
    assert plan.budget.cache == CacheLayout(512, 64, "f16").bytes(4096, 32)
    buffers = workspace(PLM, 4096, plan.prefill_chunk, plan.threads)
    assert plan.budget.scratch == sum(buffer.nbytes for buffer in buffers)


def test_plm_at_4_bits_and_4096_tokens_fits_a_board_of_2_gb():
    plan = make_plan(PLM, SMALL, quant="Q4_0")
    assert plan.n_ctx == 4096
    assert plan.budget.total < SMALL.usable_bytes < 2 << 30
    expanded = 4096 * 32 * 5120 * 2  # what other runtimes cache: that does not fit
    assert plan.budget.total - plan.budget.cache + expanded > SMALL.usable_bytes


def test_weights_of_plm_are_the_known_number_of_values():
    plan = make_plan(PLM, devices.load("rpi4"), quant="Q8_0")
    assert plan.budget.weights == (1_825_458_176 - 149_504) // 32 * 34 + 149_504 * 4
    assert 149_504 == 2048 + 32 * (2 * 2048 + 512)  # norms


@pytest.mark.parametrize(("usable", "quant"), [(3400, "Q8_0"), (2300, "Q8_0"), (2070, "Q4_0")])
def test_the_best_numbers_that_fit_are_chosen(usable, quant):
    plan = make_plan(PLM, board(usable))
    assert (plan.quant, plan.n_ctx) == (quant, 4096)
    assert plan.budget.total <= usable * MIB


def test_the_context_shrinks_last_and_no_further_than_needed():
    plan = make_plan(PLM, board(1340))
    assert (plan.quant, plan.cache_type) == ("Q4_0", "q8_0")
    assert 256 <= plan.n_ctx < 4096
    assert plan.budget.total <= 1340 * MIB
    with pytest.raises(DoesNotFit):
        make_plan(PLM, board(1340), quant="Q4_0", n_ctx=plan.n_ctx + 64)


def test_wide_floats_are_taken_only_when_asked_for():
    wide = board(1 << 20)
    assert make_plan(PLM, wide).quant == "Q8_0"
    assert make_plan(PLM, wide, quant="F16").formats["blk.0.ffn_up.weight"] == "F16"


def test_what_is_asked_for_is_done():
    plan = make_plan(PLM, BOARD, "Q4_0", "plm", 512, "f32", 3, "scalar")
    got = (plan.quant, plan.layout, plan.n_ctx, plan.cache_type, plan.threads, plan.isa)
    assert got == ("Q4_0", "plm", 512, "f32", 3, "scalar")
    assert plan.budget.cache == 512 * 32 * 576 * 4
    assert make_plan(PLM, BOARD).threads == BOARD.performance_cores


def test_does_not_fit_says_need_have_and_what_would_fit():
    with pytest.raises(DoesNotFit) as error:
        make_plan(PLM, board(2147), quant="Q8_0", n_ctx=4096, cache_type="f16")
    said = str(error.value)
    assert "Q8_0 with a context of 4096 needs 2,180 MiB (weights 1,850 MiB, cache 144 MiB" in said
    assert "Board leaves 2,147 MiB, 33 MiB less: try -ctk q8_0 or -c " in said
    assert said.endswith(" or --quant Q4_0")
    make_plan(PLM, board(2147), quant="Q8_0", n_ctx=4096, cache_type="q8_0")
    context = int(said.split("-c ")[1].split()[0])
    f16 = {"quant": "Q8_0", "cache_type": "f16"}
    assert make_plan(PLM, board(2147), n_ctx=context, **f16).n_ctx == context
    with pytest.raises(DoesNotFit):
        make_plan(PLM, board(2147), n_ctx=context + 64, **f16)
    make_plan(PLM, board(2147), quant="Q4_0", n_ctx=4096)


def test_does_not_fit_offers_both_changes_when_one_is_not_enough():
    with pytest.raises(DoesNotFit, match=r"try --quant Q4_0 -c \d+$"):
        make_plan(PLM, board(1340), quant="Q8_0", n_ctx=4096)
    with pytest.raises(DoesNotFit, match=r"no context and no quantization is small enough; Q4_0"):
        make_plan(PLM, board(900))


def test_the_cache_is_narrowed_before_the_numbers_and_the_context():
    for usable, chosen in (
        (2200, ("Q8_0", "f16", 4096)),
        (2150, ("Q8_0", "q8_0", 4096)),
        (1500, ("Q4_0", "f16", 4096)),
        (1440, ("Q4_0", "q8_0", 4096)),
    ):
        plan = make_plan(PLM, board(usable))
        assert (plan.quant, plan.cache_type, plan.n_ctx) == chosen
        assert plan.budget.total <= usable * MIB
    odd = replace(PLM, rank=500)  # q8_0 rows want whole blocks
    assert make_plan(odd, board(1380)).cache_type == "f16"


def test_a_graphics_card_gets_what_llama_cpp_runs_there():
    plan = make_plan(PLM, devices.load("gpu"))
    assert (plan.layout, plan.backend, plan.isa, plan.threads) == (
        "deepseek2",
        "llama",
        "scalar",
        1,
    )
    assert make_plan(PLM, devices.load("igpu")).backend == "native"
    assert make_plan(PLM, devices.load("gpu"), layout="latent").backend == "native"


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"n_ctx": 0}, UsageError, "context of 0 tokens, expected 1..4096"),
        ({"n_ctx": 10**9}, UsageError, "expected 1..4096"),
        ({"threads": 0}, UsageError, "0 threads, expected 1..256"),
        ({"threads": 257}, UsageError, "257 threads, expected 1..256"),
        ({"isa": "mmx"}, UsageError, "unknown kernel set 'mmx', expected one of scalar"),
        ({"cache_type": "q3"}, UsageError, "cache type 'q3', expected one of f16"),
        ({"quant": "Q9"}, UsageError, "found 'Q9'"),
        ({"layout": "flat"}, UsageError, "found 'flat'"),
    ],
)
def test_what_cannot_be_is_refused(asked, error, said):
    with pytest.raises(error) as caught:
        make_plan(PLM, BOARD, **asked)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("device", "sets"),
    [
        ("rpi4-4gb", "scalar, neon, neon-dotprod, neon-i8mm"),
        ("laptop-avx2", "scalar, avx2, avx-vnni, avx512-vnni"),
        ("gpu", ", ".join(devices.ISAS)),  # the CPU beside it is not known
        ("host", ", ".join(isa_table())),
    ],
)
def test_the_kernel_sets_of_a_device_are_named(device, sets):
    with pytest.raises(UsageError, match=f"expected one of {sets}$"):
        make_plan(PLM, devices.load(device), isa="mmx")


@pytest.mark.parametrize(
    ("device", "isa", "sets"),
    [
        ("rpi4-4gb", "avx2", "scalar, neon, neon-dotprod, neon-i8mm"),
        ("laptop-avx2", "neon", "scalar, avx2, avx-vnni, avx512-vnni"),
    ],
)
def test_a_kernel_set_of_another_architecture_is_refused(device, isa, sets):
    profile = devices.load(device)
    said = f"kernel set '{isa}' is none of {profile.name}; expected one of {sets}"
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        make_plan(PLM, profile, isa=isa)
    assert make_plan(PLM, devices.load("gpu"), isa=isa).isa == isa  # its CPU is not known


def test_a_layout_that_a_file_names_is_no_mistake_of_the_users():
    plan = replace(make_plan(PLM, BOARD), layout="flat")
    with pytest.raises(UnsupportedError, match="found 'flat'"):
        replan_for_load(PLM, plan, BOARD)


def test_a_matrix_that_is_not_whole_blocks_is_f16():
    odd = replace(PLM, layers=1, d_ffn=8200, vocab=1024)
    plan = make_plan(odd, BOARD, quant="Q4_0")
    assert plan.formats["blk.0.ffn_down.weight"] == "F16"
    assert plan.formats["blk.0.ffn_up.weight"] == "Q4_0"


def test_a_plan_survives_json():
    plan = make_plan(PLM, BOARD)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again != replace(plan, threads=plan.threads + 1)


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (lambda d: d.pop("threads"), "'threads' is missing from plan of the manifest"),
        (lambda d: d.update(colour=1), "'colour' is unknown in plan of the manifest"),
        (lambda d: d.update(n_ctx="4096"), "plan.n_ctx of the manifest is '4096', expected int"),
        (lambda d: d["budget"].pop("cache"), "'cache' is missing from plan.budget"),
        (lambda d: d["formats"].update(x=1), "plan.formats.x of the manifest is 1, expected str"),
    ],
)
def test_a_bent_plan_is_refused_by_name(bend, said):
    plain = json.loads(json.dumps(make_plan(PLM, BOARD).to_dict()))
    bend(plain)
    with pytest.raises(FileFormatError) as error:
        Plan.from_dict(plain)
    assert said in str(error.value)


def test_a_session_allocates_what_was_planned(bundle_of):
    manifest = read_bundle(bundle_of("blocks", "Q8_0"))
    with contextlib.closing(load(bundle_of("blocks", "Q8_0"), threads=2)) as session:
        plan = make_plan(manifest.spec, devices.detect(), quant="Q8_0", threads=2)
        assert session.n_ctx == plan.n_ctx
        assert session.cache_bytes == plan.budget.cache
        assert session.workspace_bytes == plan.budget.scratch
        assert sum(t.nbytes for t in session.model.file.tensors.values()) <= plan.budget.weights
        assert plan.budget.weights < (bundle_of("blocks", "Q8_0") / "model.gguf").stat().st_size


def test_the_loading_machine_decides_threads_and_kernels_and_says_so():
    plan = make_plan(PLM, BOARD, quant="Q4_0")
    here, said = replan_for_load(PLM, plan, replace(BOARD, performance_cores=2, isa="avx2"))
    assert (here.threads, here.isa, here.n_ctx) == (2, "avx2", 4096)
    assert said == [
        "threads 2, not 4 as planned for Raspberry Pi 5, 4 GB",
        "kernels avx2, not neon-dotprod as planned for Raspberry Pi 5, 4 GB",
    ]
    assert (here.layout, here.quant, here.formats) == (plan.layout, plan.quant, plan.formats)
    assert here.budget.weights == plan.budget.weights
    assert replan_for_load(PLM, plan, BOARD)[1] == []


def test_at_load_the_context_shrinks_unless_it_was_asked_for():
    plan = make_plan(PLM, BOARD, quant="Q4_0")
    here, said = replan_for_load(PLM, plan, board(1400))
    assert here.n_ctx < 4096
    assert here.budget.total <= 1400 * MIB
    assert said == [f"context {here.n_ctx}, not 4096 as planned for Raspberry Pi 5, 4 GB"]
    with pytest.raises(DoesNotFit, match="try -c"):
        replan_for_load(PLM, plan, board(1400), Overrides(n_ctx=4096))
    with pytest.raises(DoesNotFit, match="no context and no quantization is small enough"):
        replan_for_load(PLM, plan, board(900))
    wide = make_plan(PLM, board(9000), quant="F16")
    with pytest.raises(DoesNotFit, match=r"try an export with --quant Q4_0$"):
        replan_for_load(PLM, wide, board(1500))


def test_at_load_the_users_word_goes_first():
    plan = make_plan(PLM, BOARD, quant="Q4_0")
    asked = Overrides(n_ctx=100, cache_type="f32", threads=1, isa="scalar")
    here, said = replan_for_load(PLM, plan, BOARD, asked)
    assert (here.n_ctx, here.cache_type, here.threads, here.isa) == (100, "f32", 1, "scalar")
    assert here.budget.cache == 100 * 32 * 576 * 4
    assert said == []
    with pytest.raises(UsageError, match="context of 0 tokens"):
        replan_for_load(PLM, plan, BOARD, Overrides(n_ctx=0))


@pytest.mark.parametrize("inside", ["", "model.gguf"])
def test_a_context_shortened_for_memory_is_said(inside, tmp_path, monkeypatch, capsys):
    spec = replace(TINY_SHAPES["plain"], n_ctx_train=1 << 20)
    export(str(write_tiny_checkpoint(tmp_path / "hf", spec)), out=tmp_path / "made", quant="F32")
    lean = replace(devices.detect(), usable_bytes=100 * MIB)
    monkeypatch.setattr(sys.modules["plm_edge.runtime.load"], "detect", lambda: lean)
    with load(tmp_path / "made" / inside) as session:
        assert session.n_ctx < 1 << 20
        said = f"plm-edge: context {session.n_ctx}, not 1048576 as planned for host\n"
        assert capsys.readouterr().err == said
    with load(tmp_path / "made" / inside, n_ctx=64):
        assert capsys.readouterr().err == ""


def test_force_lifts_the_trained_context_but_not_the_memory():
    plan = make_plan(PLM, BOARD, quant="Q4_0")
    with pytest.raises(UsageError, match=r"context of 5000 tokens, expected 1\.\.4096"):
        replan_for_load(PLM, plan, BOARD, Overrides(n_ctx=5000))
    here, said = replan_for_load(PLM, plan, BOARD, Overrides(n_ctx=5000, beyond_trained=True))
    assert (here.n_ctx, here.budget.cache, said) == (5000, 5000 * 32 * 1152, [])
    with pytest.raises(DoesNotFit, match=r"context of 5000 needs .*: try -ctk q8_0 or -c \d+$"):
        replan_for_load(PLM, plan, board(1440), Overrides(n_ctx=5000, beyond_trained=True))
    with pytest.raises(UsageError, match="context of 0 tokens"):
        replan_for_load(PLM, plan, BOARD, Overrides(n_ctx=0, beyond_trained=True))
    wide = make_plan(PLM, board(9000), quant="F16")
    with pytest.raises(DoesNotFit, match="an export with --quant Q4_0"):
        replan_for_load(PLM, wide, board(1500), Overrides(n_ctx=5000, beyond_trained=True))


def test_a_file_without_a_plan_is_planned_for_this_machine():
    exported = make_plan(PLM, BOARD, quant="Q4_0", layout="plm")
    bare = plan_of_file(PLM, SMALL, "plm", exported.formats, exported.budget.weights)
    assert (bare.quant, bare.layout, bare.n_ctx, bare.isa) == ("Q4_0", "plm", 4096, "neon")
    assert replan_for_load(PLM, bare, SMALL)[0].budget.weights == exported.budget.weights
    with pytest.raises(DoesNotFit, match="Board leaves 900 MiB"):
        replan_for_load(PLM, bare, board(900))


def test_a_machine_of_many_cores_uses_as_many_threads_as_a_session_may_have():
    large = replace(BOARD, performance_cores=300)
    assert make_plan(PLM, large, quant="Q4_0", n_ctx=64).threads == 256


def test_the_sum_of_a_budget_counts_every_part():
    parts = {"weights": 1, "cache": 10, "scratch": 100, "runtime": 1000}
    assert Budget(**parts).total == math.fsum(parts.values()) == 1111
