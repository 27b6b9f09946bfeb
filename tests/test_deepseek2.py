"""Layout deepseek2: the same model in other tensors, as near as docs/layouts.md says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from metrics import close, kl, relative_error
from numpy.typing import NDArray
from tiny import TINY_SHAPES

import plm_edge
from plm_edge.bundle import MODEL_FILE
from plm_edge.deepseek2 import GATE_KEY, UP_KEY, factors_of
from plm_edge.errors import FileFormatError, NumericalError, UnsupportedError
from plm_edge.exporters.deepseek2 import (
    EXACT,
    MOST,
    SHARPNESS,
    SHARPNESS_OF_BLOCKS,
    choose_factors,
    scaled,
)
from plm_edge.exporters.relayout import relayout
from plm_edge.formats import FORMATS, dequantize, quantize
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf
from plm_edge.gguf_weights import GgufWeights
from plm_edge.kinds import relu2
from plm_edge.reference import Reference
from plm_edge.tokenizer.strings import StringArray

Bundles = Callable[..., Path]
PAIR = ("plm", "deepseek2")
IDS: list[int] = np.random.default_rng(5).integers(0, 300, 24).tolist()


def numbers(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a file as the public gguf package reads it."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }


def swiglu(x: NDArray[Any], w: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The units that llama.cpp computes for architecture deepseek2."""
    gate, up = x @ w["ffn_gate"].T.astype(np.float64), x @ w["ffn_up"].T.astype(np.float64)
    units: NDArray[np.float64] = gate / (1 + np.exp(-np.clip(gate, -500, 500))) * up
    return units


class AsLlamaReads(Reference):
    """The float64 model of a deepseek2 file as llama.cpp takes it: SwiGLU, a split kv_b."""

    def __init__(self, path: Path) -> None:
        super().__init__(GgufWeights(path).spec, {})
        self._file = numbers(path)

    def layer_weights(self, i: int) -> dict[str, NDArray[Any]]:
        prefix = f"blk.{i}."
        w: dict[str, NDArray[Any]] = {
            name.split(".")[2]: values
            for name, values in self._file.items()
            if name.startswith(prefix)
        }
        joined = np.concatenate([w["attn_k_b"].transpose(0, 2, 1), w["attn_v_b"]], axis=1)
        return {**w, "attn_kv_b": joined.reshape(-1, self.spec.rank)}

    def _weight(self, name: str) -> NDArray[Any]:
        return self._file[name]


# What the layout costs: the sigmoid that is not quite a step, and W_uk in F16 where kv_b is blocks.
# Seen: up to 2.9e-5 in floats (KL 2e-10), 2.4e-4 in blocks (KL 1.6e-8).
COST = {"F32": 1e-4, "F16": 1e-4, "BF16": 1e-4, "Q8_0": 5e-4, "Q4_0": 5e-4}


@pytest.mark.parametrize("quant", COST)
@pytest.mark.parametrize("shape", ["plain", "wide_rope", "blocks", "wide_value", "plm"])
def test_the_file_is_the_model(
    bundle_of: Bundles, monkeypatch: pytest.MonkeyPatch, shape: str, quant: str
) -> None:
    want = Reference.from_checkpoint(GgufWeights(bundle_of(shape, quant) / MODEL_FILE)).logits(IDS)
    path = bundle_of(shape, quant, "deepseek2") / MODEL_FILE
    monkeypatch.setattr(relu2, "units", swiglu)
    model = AsLlamaReads(path)
    got = model.logits(IDS)
    close(got, want, COST[quant])
    assert kl(want, got) < 1e-7
    for name in ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.attn_k_b.weight"):
        kept = model._file[name]
        model._file[name] = kept * 1.01
        assert relative_error(model.logits(IDS), want) > COST[quant]
        model._file[name] = kept


@pytest.mark.parametrize("quant", COST)
def test_it_is_read_back_as_it_was(bundle_of: Bundles, quant: str) -> None:
    """Every number but those of W_uk in blocks, which stand as F16."""
    want = GgufWeights(bundle_of("blocks", quant) / MODEL_FILE)
    got = GgufWeights(bundle_of("blocks", quant, "deepseek2") / MODEL_FILE)
    assert got.spec == want.spec
    for name in want.tensors:
        rows = want.read(name), got.read(name)
        if name.endswith("attn_kv_b.weight") and quant.startswith("Q"):
            np.testing.assert_allclose(*rows, rtol=2**-11)
        else:
            np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_gate_and_up_share_their_quants(bundle_of: Bundles, quant: str) -> None:
    path = bundle_of("plm", quant, "deepseek2") / MODEL_FILE
    file = GgufFile.open(path)
    plain = GgufFile.open(bundle_of("plm", quant, "plm") / MODEL_FILE)
    size = FORMATS[quant].block_bytes
    for i, each in enumerate(factors_of(file.metadata, spec_from_gguf(file), path.name)):
        up, gate, model = (
            opened.data(f"blk.{i}.{name}.weight").reshape(-1, size)
            for opened, name in ((file, "ffn_up"), (file, "ffn_gate"), (plain, "ffn_up"))
        )
        for blocks, factor in ((up, each.up), (gate, each.gate)):
            np.testing.assert_array_equal(blocks[:, 2:], model[:, 2:])
            scales = np.float32(factor) * model[:, :2].copy().view("<f2")
            np.testing.assert_array_equal(blocks[:, :2].copy().view("<f2"), scales)
    file.close()
    plain.close()


# ---- the choice of the factors


def matrix(deviation: float, quant: str, rows: int = 256) -> NDArray[np.uint8]:
    x = np.random.default_rng(2).standard_normal((rows, 256), np.float32)
    return quantize(quant, deviation * x)


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("norm", [0.02, 0.1, 1.0, 8.0])
@pytest.mark.parametrize("deviation", [0.002, 0.02, 0.2])
def test_factors_are_sharp_and_fit(deviation: float, norm: float, quant: str) -> None:
    packed = matrix(deviation, quant)
    each = choose_factors(quant, packed, np.full(256, norm, np.float32))
    blocks = FORMATS[quant].block > 1
    needed = SHARPNESS_OF_BLOCKS if blocks else SHARPNESS
    sigma = deviation * norm * 16
    assert needed <= each.sharpness * sigma * 1.05 < 2.2 * needed
    assert each.norm * each.norm * each.gate * each.up == 1  # a unit keeps its size
    for factor in (each.norm, each.gate, each.up):
        assert np.frexp(factor)[0] == 0.5  # a power of two
    assert each.up <= 1
    assert each.norm <= 1
    gate = scaled(quant, packed, each.gate)
    assert np.isfinite(dequantize(quant, gate, 256)).all()
    if not blocks:  # all of 1 / s stands in the norm, if the gate's numbers leave it there
        largest = float(np.abs(dequantize(quant, packed, 256)).max())
        assert each.up == 1 or 2 * each.gate * largest > MOST
    elif deviation == 0.02:
        scales = scaled(quant, packed, each.up).reshape(-1, FORMATS[quant].block_bytes)[:, :2]
        sizes = np.abs(scales.copy().view("<f2").astype(np.float64))
        assert (sizes >= EXACT).mean() > 0.98
        assert np.median(sizes) < 8 * EXACT  # and not more than is needed


def test_units_are_off_by_what_is_said() -> None:
    h = np.random.default_rng(3).standard_normal(1_000_000)
    for sharp in (16.0, 64.0):
        error = h * h / (1 + np.exp(-np.clip(sharp * h, -500, 500))) - np.maximum(h, 0) ** 2
        assert np.abs(error).max() < 0.483 / sharp**2
        rms = np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(np.maximum(h, 0) ** 4))
        assert rms == pytest.approx(0.57 / sharp**2.5, rel=0.05)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_a_factor_is_in_the_scales_of_every_block(quant: str) -> None:
    """Q4_K and Q6_K, too: a file of another quantizer is laid out anew."""
    form = FORMATS[quant]
    packed = np.random.default_rng(4).integers(0, 256, (8, 2 * form.block_bytes), np.uint8)
    blocks = packed.reshape(-1, form.block_bytes)
    ends = (0, 2) if quant == "Q4_K" else (form.block_bytes - 2,) if quant == "Q6_K" else (0,)
    for at in ends:
        blocks[:, at : at + 2] = np.array([0.011], "<f2").view(np.uint8)
    want = dequantize(quant, packed, 2 * form.block)
    got = dequantize(quant, scaled(quant, packed, 2.0**-4), 2 * form.block)
    np.testing.assert_array_equal(got, want / 16)
    assert (scaled(quant, packed, 2.0) != packed).sum() <= len(blocks) * 2 * len(ends)


def test_a_layer_of_zeros_stays_one() -> None:
    zeros = quantize("Q8_0", np.zeros((4, 64), np.float32))
    assert choose_factors("Q8_0", zeros, np.ones(64, np.float32)).gate == 1
    np.testing.assert_array_equal(scaled("Q8_0", zeros, 64.0), zeros)


def test_values_that_leave_f16_are_refused() -> None:
    huge = np.full((4, 64), 60000.0, np.float32)
    huge[0] = 0
    with pytest.raises(NumericalError, match="found 60000; use --layout plm"):
        choose_factors("F16", quantize("F16", huge), np.full(64, 1e-7, np.float32))


# ---- what else reads the file


def test_the_native_session_says_where_it_runs(bundle_of: Bundles, tmp_path: Path) -> None:
    folder = bundle_of("plain", "F32", "deepseek2")
    with pytest.raises(UnsupportedError, match=r"is for llama\.cpp; use --backend llama"):
        plm_edge.load(folder, backend="native")
    with pytest.raises(UnsupportedError, match="export from its source"):
        relayout(folder / MODEL_FILE, "latent", tmp_path / "out")


def test_another_deepseek2_is_refused(tmp_path: Path, bundle_of: Bundles) -> None:
    path = bundle_of("plain", "F32", "deepseek2") / MODEL_FILE
    data = path.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(GATE_KEY.encode(), b"x" * len(GATE_KEY)))
    with pytest.raises(UnsupportedError, match="only PLM models are supported"):
        GgufWeights(other)
    at = data.index(GATE_KEY.encode()) + len(GATE_KEY) + 4 + 4 + 8  # kind, kind, length
    other.write_bytes(data[:at] + np.float32(-1).tobytes() + data[at + 4 :])
    with pytest.raises(FileFormatError, match="above 0 for each of 2 layers"):
        GgufWeights(other)


@pytest.mark.parametrize("key", [GATE_KEY, UP_KEY])
@pytest.mark.parametrize(
    "found",
    [
        None,
        7,  # no array
        "2.0",
        StringArray.of(["2.0", "2.0"]),
        np.array([True, True]),
        np.ones(3, np.float32),
        np.ones(1, np.float32),
        np.array([1, np.nan], np.float32),
        np.array([1, np.inf], np.float32),
        np.array([1, 0], np.float32),
        np.array([1, -2], np.float32),
        np.array([1, 3], np.uint32),
        np.array([1, 2.5], np.float32),
    ],
    ids=lambda found: repr(found)[:40],
)
def test_factors_that_are_no_powers_of_two_are_refused(found: Any, key: str) -> None:
    spec = replace(TINY_SHAPES["plain"], layers=2)
    metadata = {GATE_KEY: np.full(2, 4, np.float32), UP_KEY: np.ones(2, np.float32)}
    assert [each.norm for each in factors_of(metadata, spec, "a.gguf")] == [0.5, 0.5]
    expected = rf"a\.gguf: expected {key} to be powers of two above 0 .* found .*; export the model"
    with pytest.raises(FileFormatError, match=expected):
        factors_of({**metadata, key: found}, spec, "a.gguf")


@pytest.mark.parametrize("found", [2.0, 2.0**-1000, 2.0**1000])
def test_factors_without_a_power_of_two_for_the_norm_are_refused(found: float) -> None:
    spec = replace(TINY_SHAPES["plain"], layers=1)
    metadata = {GATE_KEY: np.array([found]), UP_KEY: np.array([found if found != 2 else 1.0])}
    with pytest.raises(FileFormatError, match=r"to be powers of four, found .*; export the model"):
        factors_of(metadata, spec, "a.gguf")


def test_the_plan_counts_up_twice_and_says_the_backend() -> None:
    from plm_edge import devices
    from plm_edge.exporters.synth import SHAPES
    from plm_edge.plan import make_plan

    spec, profile = SHAPES["plm-1.8b"].spec, devices.load("rpi5-4gb")
    plm, deepseek2 = (make_plan(spec, profile, "Q4_0", layout) for layout in ("plm", "deepseek2"))
    assert (plm.backend, deepseek2.backend) == ("native", "llama")
    up = 32 * 8192 * 2048 // 32 * 18
    keys = 32 * 16 * 128 * 512
    assert deepseek2.budget.weights - plm.budget.weights == up + keys * 2 - keys // 32 * 18


@pytest.mark.parametrize("quant", ["F16", "Q8_0"])
def test_inspect_says_what_it_costs(bundle_of: Bundles, quant: str) -> None:
    """In bytes more than layout plm has, and the context that outweighs them in llama.cpp."""
    from plm_edge.inspection import inspect
    from plm_edge.llama_cpp import cache_bytes

    plm, deepseek2 = (bundle_of("plm", quant, layout) / MODEL_FILE for layout in PAIR)
    shown = inspect(deepseek2)
    cost = shown.deepseek2_cost()
    assert cost is not None
    assert inspect(plm).deepseek2_cost() is None
    more, even = cost
    sizes = [sum(tensor.nbytes for tensor in inspect(path).tensors) for path in (plm, deepseek2)]
    assert sizes[1] - sizes[0] == more
    assert shown.spec is not None
    kept = [cache_bytes(layout, shown.spec, "f16", 256) / 256 for layout in PAIR]
    assert even == more // (kept[0] - kept[1])


def test_the_formats_are_those_of_the_model(bundle_of: Bundles) -> None:
    """By the model's own names, which the planner asks for."""
    from plm_edge.cli.prepare import described

    plm, deepseek2 = (described(bundle_of("plm", "Q8_0", layout) / MODEL_FILE) for layout in PAIR)
    assert [plm[0], deepseek2[0]] == list(PAIR)
    assert deepseek2[1:] == plm[1:]
