"""What a graphics card gets: llama.cpp's layouts, the smaller of them with its cache."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Run
from tiny import TINY_SHAPES, write_tiny_checkpoint

import plm_edge
from plm_edge import devices
from plm_edge.exporters.synth import SHAPES
from plm_edge.llama_cpp import (
    cache_bytes,
    layers_that_fit,
    layout_for,
    layout_on_cpu,
    smaller_layout,
)
from plm_edge.plan import make_plan
from plm_edge.quant_plan import choose_formats

PLM = SHAPES["plm-1.8b"].spec
CARD = devices.load("gpu")


def test_the_cache_is_that_of_llama_cpp() -> None:
    """PLM-1.8B: 5,120 values a token and layer, or 576; contexts are multiples of 256."""
    assert cache_bytes("plm", PLM, "f16", 4096) == 2 * 5120 * 4096 * 32
    assert cache_bytes("deepseek2", PLM, "f16", 4096) == 2 * 576 * 4096 * 32 == 150_994_944
    assert cache_bytes("plm", PLM, "q8_0", 4096) == 16 * (204 + 256) * 4096 * 32
    assert cache_bytes("deepseek2", PLM, "q8_0", 4096) == 612 * 4096 * 32
    assert cache_bytes("deepseek2", PLM, "f16", 257) == 2 * 576 * 512 * 32


@pytest.mark.parametrize(("quant", "even_at"), [("Q4_0", 1204), ("Q8_0", 2070)])
def test_a_card_gets_the_smaller_layout(quant: str, even_at: int) -> None:
    formats = choose_formats(PLM, quant)
    chosen = {n: layout_for(CARD, PLM, formats, n) for n in (256, even_at - 256, even_at + 256)}
    assert list(chosen.values()) == ["plm", "plm", "deepseek2"]
    for n_ctx, layout in chosen.items():
        plan = make_plan(PLM, CARD, quant, n_ctx=n_ctx)
        assert (plan.layout, plan.backend) == (layout, "llama")
        assert plan.budget.cache == cache_bytes(layout, PLM, "f16", n_ctx)
        other = {"plm": "deepseek2", "deepseek2": "plm"}[layout]
        theirs = make_plan(PLM, CARD, quant, other, n_ctx).budget
        assert plan.budget.weights + plan.budget.cache < theirs.weights + theirs.cache


def test_others_get_latent_and_what_cannot_be_said_is_left_out() -> None:
    formats = choose_formats(PLM, "Q4_0")
    for name in ("rpi", "laptop", "jetson", "apple-m1"):
        assert layout_for(devices.load(name), PLM, formats, 4096) == "latent"
    untied = replace(PLM, tied=False)
    assert layout_for(CARD, untied, choose_formats(untied, "Q4_0"), 256) == "deepseek2"
    other_eps = replace(PLM, latent_eps=1e-5)
    assert layout_for(CARD, other_eps, formats, 4096) == "latent"


def test_a_cpu_gets_plm_where_it_fits() -> None:
    formats = choose_formats(PLM, "Q4_0")
    assert smaller_layout(PLM, formats, 4096) == "deepseek2"
    assert layout_on_cpu(PLM, formats, 4096, 3 << 30) == "plm"
    assert layout_on_cpu(PLM, formats, 4096, 2 << 30) == "deepseek2"
    untied = replace(PLM, tied=False)
    assert layout_on_cpu(untied, choose_formats(untied, "Q4_0"), 256, 9 << 30) == "deepseek2"


def test_layers_go_to_the_card_that_was_planned_for_as_far_as_they_fit() -> None:
    plan = make_plan(PLM, CARD, "Q8_0")
    assert layers_that_fit(CARD.name, PLM, plan) == 33
    assert layers_that_fit("a machine of no profile", PLM, plan) == 33
    larger = replace(plan, budget=replace(plan.budget, cache=12 << 30))
    weights = plan.budget.weights - 151936 * 2048 // 32 * 34
    each = (weights + larger.budget.cache) / 32
    room = CARD.usable_bytes - plan.budget.scratch
    assert larger.budget.cache + plan.budget.weights > room
    assert layers_that_fit(CARD.name, PLM, larger) == pytest.approx(room / each, abs=1)


def test_an_export_for_a_card(tmp_path: Path) -> None:
    spec = replace(TINY_SHAPES["plm"], heads=16, d_ffn=128)
    checkpoint = write_tiny_checkpoint(tmp_path / "hf", spec)
    manifest = plm_edge.export(checkpoint, "gpu", tmp_path / "out", quant="Q4_0")
    assert (manifest.plan["layout"], manifest.plan["backend"]) == ("deepseek2", "llama")
    named = plm_edge.export(checkpoint, "gpu", tmp_path / "named", quant="Q4_0", layout="plm")
    assert (named.plan["layout"], named.plan["backend"]) == ("plm", "llama")


def test_a_card_without_llama_cpp_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "hf", TINY_SHAPES["plm"])
    plm_edge.export(checkpoint, "gpu", tmp_path / "out", quant="Q4_0", layout="plm")
    module = importlib.import_module("plm_edge.runtime.load")  # the package has a function load
    monkeypatch.setattr(module, "is_installed", lambda: False)
    with plm_edge.load(tmp_path / "out") as session:
        assert session.step(1).size
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "backend" in line]
    assert said.startswith("plm-edge: backend native, not llama as planned for GeForce RTX 3060")
    assert said.endswith("llama-cpp-python is not installed; pip install 'plm-edge[llama]'")


def test_an_export_says_which_extra_runs_it(inside: Run, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "hf", TINY_SHAPES["plm"])

    def hint(*arguments: str) -> str:
        ran = inside("export", checkpoint, "--target", "host", "--force", "-o", "out", *arguments)
        return next(line for line in ran.out.splitlines() if line.startswith("wrote "))

    assert hint().endswith("plm-edge chat out")
    assert hint("--layout", "deepseek2").endswith("chat out (after pip install 'plm-edge[llama]')")
    assert hint("--format", "onnx").endswith("chat out (after pip install 'plm-edge[onnx]')")
    assert hint("--format", "both").endswith("chat out")
