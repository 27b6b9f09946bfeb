"""Quantization: bytes that every reader knows, errors that are made good, sizes that are kept."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import Run, one_line
from metrics import close, kl
from tiny import TINY_SHAPES, tiny_weights, write_tiny_checkpoint

from plm_edge.bundle import MODEL_FILE
from plm_edge.checkpoint import open_checkpoint
from plm_edge.cli.calibrate import export
from plm_edge.errors import NumericalError
from plm_edge.exporters.files import Files
from plm_edge.exporters.quantize.blocks import BLOCKS, Q4K, fit_line
from plm_edge.exporters.quantize.feedback import Factor, damped, factor
from plm_edge.exporters.quantize.fitted import Fitted, Fitting
from plm_edge.exporters.quantize.mix import Choice, least_loss
from plm_edge.exporters.quantize.moments import Moments
from plm_edge.exporters.quantize.rows import quantize_rows
from plm_edge.exporters.quantize.sensitivity import between
from plm_edge.formats import dequantize, format_of, quantize
from plm_edge.gguf_weights import GgufWeights
from plm_edge.kinds import mla, relu2
from plm_edge.kinds.norm import rms_norm
from plm_edge.reference import Reference
from plm_edge.tokenizer import Tokenizer

FORMATS = list(BLOCKS)
WORDS = "once upon a time there was little house by the sea and wind told her stories out night"


def words(seed: int, count: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS.split(), count))


TEXT = words(1, 2500)


def inputs(cols: int, seed: int = 3) -> np.ndarray:
    """Inputs that have much in common: (4 cols, cols)."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((4 * cols, cols // 4)) @ rng.standard_normal((cols // 4, cols))
    return few / np.sqrt(cols / 4) + 0.3 * rng.standard_normal((4 * cols, cols))


def moment(cols: int) -> np.ndarray:
    x = inputs(cols)
    return (x.T @ x / len(x)).astype(np.float32)


def matrix(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((rows, cols), dtype=np.float32)


def error(fmt: str, rows: np.ndarray, packed: np.ndarray, h: np.ndarray) -> float:
    lost = rows.astype(np.float64) - dequantize(fmt, packed, rows.shape[1])
    return float(np.einsum("rk,kj,rj->", lost, h.astype(np.float64), lost))


# ---------------------------------------------------------------- one matrix


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("known", [False, True])
def test_the_bytes_are_the_gguf_packages(fmt: str, known: bool) -> None:
    """What its reader makes of them is near the rows, and the same bits as ours."""
    rows = matrix(5, 512)
    packed = quantize_rows(fmt, rows, factor(damped(moment(512), 0.02)) if known else None)
    assert packed.shape == (5, format_of(fmt).row_bytes(512))
    theirs = gguf.dequantize(packed, gguf.GGMLQuantizationType[fmt])
    assert np.array_equal(theirs, dequantize(fmt, packed, 512))
    if not known:
        assert (
            np.abs(theirs - rows).max()
            < {"Q4_0": 0.4, "Q4_K": 0.3, "Q6_K": 0.09, "Q8_0": 0.03}[fmt]
        )


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_column_makes_good_what_later_ones_lost(fmt: str) -> None:
    """With the scales that were chosen, the quants are those of the rule, column by column."""
    rows, known = matrix(3, 512), factor(damped(moment(512), 0.02))
    stored = dequantize(fmt, quantize_rows(fmt, rows, known), 512).astype(np.float64)
    lower = known.lower.astype(np.float64)
    lost = rows - stored
    part = BLOCKS[fmt].part
    apart = 0
    for r, at in itertools.product(range(3), range(0, 512, part)):
        levels = np.unique(stored[r, at : at + part])
        step = np.diff(levels).min() if len(levels) > 1 else 1.0
        for k in range(at, at + part):
            wanted = rows[r, k] + lost[r, k + 1 :] @ lower[k + 1 :, k]
            inside = levels.min() <= wanted <= levels.max()
            apart += inside and abs(wanted - stored[r, k]) > 0.51 * step
    assert apart == 0


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_error_on_true_inputs_falls(fmt: str) -> None:
    rows, h = matrix(24, 512), moment(512)
    fitted = error(fmt, rows, quantize_rows(fmt, rows, factor(damped(h, 0.02))), h)
    assert fitted < 0.6 * error(fmt, rows, quantize_rows(fmt, rows, None), h)
    known = factor(damped(h, 0.02))
    wrong = Factor(known.lower.T.copy(), known.weights)  # nothing below the diagonal
    assert error(fmt, rows, quantize_rows(fmt, rows, wrong), h) > fitted


def test_the_scale_is_the_one_that_leaves_the_least() -> None:
    """Of the last 32 columns, which nothing later bends: every way, worked out in float64."""
    rows, known = matrix(6, 256), factor(damped(moment(256), 0.02))
    packed = quantize_rows("Q4_0", rows, known).reshape(6, 8, 18)
    last = rows[:, 224:]
    scales = BLOCKS["Q4_0"].scales(last, known.weights[224:], BLOCKS["Q4_0"].shared(last, last[0]))
    for r in range(6):
        losses = []
        for scale in scales.scale[r].astype(np.float64):
            lost, loss = np.zeros(32), 0.0
            for k in reversed(range(32)):
                wanted = last[r, k] + lost[k + 1 :] @ known.lower[225 + k :, 224 + k]
                stored = scale * np.clip(np.rint(wanted / scale), -8, 7)
                lost[k], loss = (
                    last[r, k] - stored,
                    loss + known.weights[224 + k] * (wanted - stored) ** 2,
                )
            losses.append(loss)
        chosen = packed[r, 7, :2].copy().view("<f2")[0]
        assert chosen == scales.scale[r, int(np.argmin(losses))]


def test_the_factor_is_that_of_the_moment() -> None:
    h = moment(64)
    known = factor(damped(h, 0.1))
    want = h + 0.1 * np.diagonal(h).mean() * np.eye(64)
    close(known.lower @ np.diag(known.weights) @ known.lower.T, want, 1e-5)  # float32
    assert np.array_equal(np.diagonal(known.lower), np.ones(64))
    assert np.isfinite(factor(np.zeros((8, 8), np.float32)).lower).all()  # no input at all
    one = np.ones((64, 64), np.float32)  # of rank 1
    assert np.isfinite(factor(one).lower).all()


def test_each_row_is_by_itself() -> None:
    """So that a matrix can be written in blocks of rows."""
    rows, known = matrix(7, 256), factor(damped(moment(256), 0.02))
    for fmt in FORMATS:
        whole = quantize_rows(fmt, rows, known)
        each = [quantize_rows(fmt, rows[i : i + 1], known) for i in range(7)]
        near = dequantize(fmt, np.concatenate(each), 256) - dequantize(fmt, whole, 256)
        assert (near != 0).mean() < 0.01  # other orders of the same sums


@pytest.mark.parametrize("fmt", FORMATS)
def test_zeros_constants_and_what_cannot_be_held(fmt: str) -> None:
    for value in (0.0, 1e-9, -2.5):
        rows = np.full((2, 256), value, np.float32)
        got = dequantize(fmt, quantize_rows(fmt, rows, None), 256)
        assert np.abs(got - rows).max() <= 0.02 * abs(value) + 1e-7
    for bad in (np.nan, np.inf, 3e38):
        rows = np.zeros((3, 256), np.float32)
        rows[1, 70] = bad
        with pytest.raises(NumericalError, match=r"^row 41: "):
            quantize_rows(fmt, rows, None, first_row=40)


def test_a_line_is_the_best_of_its_kind() -> None:
    """No line of a fine grid with a least of 0 or more is 3 % better."""
    x = np.random.default_rng(1).standard_normal((20, 32)).astype(np.float32)
    x[10:] = np.abs(x[10:]) + 1.5  # far above 0: lines that pass above it
    w = np.random.default_rng(2).uniform(0.1, 3.0, 32).astype(np.float32)
    scale, least = fit_line(x, w)
    assert (least >= 0).all()

    def loss(s: np.ndarray, m: np.ndarray) -> np.ndarray:
        q = np.clip(np.rint((x + m[:, None]) / s[:, None]), 0, 15)
        return (w * (s[:, None] * q - m[:, None] - x) ** 2).sum(axis=1)

    span = x.max(axis=1) - np.minimum(x.min(axis=1), 0)
    grid = [
        loss(span / 15 * a, -np.minimum(x.min(axis=1), 0) * b)
        for a in np.linspace(0.8, 1.1, 31)
        for b in np.linspace(0.8, 1.1, 31)
    ]
    assert loss(scale, least).sum() < 1.1 * np.min(grid, axis=0).sum()


def test_six_bits_of_scale_and_least_come_back() -> None:
    codes = np.stack([np.arange(8) * 9, 63 - np.arange(8) * 9], axis=1)[None]
    q4k = Q4K()
    shared = q4k.shared(np.full((1, 256), -1.0, np.float32), np.ones(256, np.float32))
    packed = q4k.pack(np.full((1, 256), 5, np.int16), codes, shared)
    got = dequantize("Q4_K", packed, 256).reshape(8, 32)
    d, dmin = packed[0, :4].view("<f2").astype(np.float32)
    want = d * codes[0, :, 0] * 5 - dmin * codes[0, :, 1]
    assert np.array_equal(got[:, 0], want.astype(np.float32))


# ---------------------------------------------------------------- a mix


def test_the_mix_is_the_best_there_is() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        choices = {
            str(n): tuple(
                Choice(fmt, int(rng.integers(1, 60)), float(rng.uniform(0, 1))) for fmt in "abc"
            )
            for n in range(5)
        }
        for budget in (40, 90, 150, 300):
            found = least_loss(choices, budget)
            allowed = [
                sum(way.loss for way in ways)
                for ways in itertools.product(*choices.values())
                if sum(way.nbytes for way in ways) <= budget
            ]
            assert (found is None) == (not allowed)
            if found is not None:
                assert sum(way.nbytes for way in found.values()) <= budget
                assert sum(w.loss for w in found.values()) == pytest.approx(min(allowed), abs=1e-12)


def test_a_large_budget_is_kept_too() -> None:
    """Sizes are counted in steps, rounded up."""
    rng = np.random.default_rng(12)
    choices = {
        str(n): tuple(
            Choice(fmt, int(size * n_values), float(rng.uniform()) / size**2)
            for fmt, size in (("a", 0.5625), ("b", 0.82), ("c", 1.0625))
        )
        for n, n_values in enumerate(rng.integers(100_000, 20_000_000, 161))
    }
    budget = int(1.2 * sum(ways[0].nbytes for ways in choices.values()))
    found = least_loss(choices, budget)
    assert found is not None
    used = sum(way.nbytes for way in found.values())
    assert 0.99 * budget < used <= budget
    many = {str(n): (Choice("a", 0, 1.0), Choice("b", 1_000_999, 0.0)) for n in range(500)}
    kept = least_loss(many, 8192 * 1000)  # steps of 1,000 bytes: rounded down, 8 would take 8,008
    assert kept is not None
    assert sum(way.nbytes for way in kept.values()) <= 8192 * 1000


def test_layers_between_lie_between() -> None:
    spec = TINY_SHAPES["plm"].__class__(**{**TINY_SHAPES["plm"].to_dict(), "layers": 15})
    found = between(
        spec, {f"blk.{i}.ffn_up.weight": 10.0**-i for i in range(0, 15, 2)} | {"a": 3.0}
    )
    assert found["a"] == 3.0
    for i in range(15):
        assert found[f"blk.{i}.ffn_up.weight"] == pytest.approx(10.0**-i)


# ---------------------------------------------------------------- a model


def test_moments_are_those_of_the_inputs(checkpoint_of: Callable[[str], Path]) -> None:
    rng = np.random.default_rng(4)
    windows = [rng.integers(0, 300, 40).tolist() for _ in range(3)]
    with open_checkpoint(checkpoint_of("blocks")) as checkpoint:
        spec, reference = checkpoint.spec, Reference.from_checkpoint(checkpoint)
        sums: dict[str, np.ndarray] = {}

        def met(name: str, x: np.ndarray) -> None:
            sums[name] = sums.get(name, 0) + x.T @ x / 120

        for ids in windows:
            x = reference.embed(ids)
            for i in range(spec.layers):
                w = reference.layer_weights(i)
                h = rms_norm(x, w["attn_norm"], spec.eps)
                latent, _ = mla.cache_rows(h, w, spec)
                for kind in ("attn_q", "attn_kv_a_mqa"):
                    met(f"blk.{i}.{kind}.weight", h)
                met(f"blk.{i}.attn_kv_b.weight", latent)
                x = x + mla.absorbed(h, w, spec)
                h = rms_norm(x, w["ffn_norm"], spec.eps)
                met(f"blk.{i}.ffn_up.weight", h)
                met(f"blk.{i}.ffn_down.weight", relu2.units(h, w))
                x = x + relu2.output(relu2.units(h, w), w)
            met("token_embd.weight", rms_norm(x, reference._weight("output_norm.weight"), spec.eps))
        said: list[str] = []
        moments = Moments(reference, spec, windows, said.append)
        order = ["token_embd.weight", *[n for n in sums if n != "token_embd.weight"]]
        for name in [*order, *reversed(order)]:  # forwards as a file is written, and back
            got = moments.of(name)
            assert got is not None
            close(got, sums[name], 1e-5)
        moments = Moments(reference, spec, windows, said.append)
        moments.of("token_embd.weight")  # all layers have run, and nothing of them is kept
        heads = moments.of("blk.1.attn_output.weight")
        assert heads is not None
        out = reference.layer_weights(1)["attn_output"]
        assert heads.shape == (out.shape[1],) * 2
        assert said[0] == "calibration: layer 1 of 2"
    with open_checkpoint(checkpoint_of("untied")) as checkpoint:
        moments = Moments(
            Reference.from_checkpoint(checkpoint), checkpoint.spec, windows, said.append
        )
        assert moments.of("token_embd.weight") is None
        assert moments.of("output.weight") is not None


@pytest.fixture(scope="module")
def peaked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose activations have a few large channels, as those of trained models."""
    spec = TINY_SHAPES["plm"]
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("peaked") / "model", spec, seed=2)
    from safetensors.numpy import save_file

    weights = tiny_weights(spec, 2)
    gains = np.exp(np.random.default_rng(9).standard_normal(spec.d_model)).astype(np.float32)
    for name, values in weights.items():
        if name.endswith("layernorm.weight") and len(values) == spec.d_model:
            weights[name] = values * gains
    save_file(weights, folder / "model.safetensors")
    return folder


def distance(checkpoint: Path, bundle: Path) -> float:
    """KL on ids that no calibration has seen."""
    ids = Tokenizer.from_hf(checkpoint).encode(words(2, 100))[:100]
    with open_checkpoint(checkpoint) as opened:
        want = Reference.from_checkpoint(opened).logits(ids)
    return kl(want, Reference.from_checkpoint(GgufWeights(bundle / MODEL_FILE)).logits(ids))


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K"])
def test_fitting_helps_the_logits(peaked: Path, tmp_path: Path, quant: str) -> None:
    (tmp_path / "text").write_text(TEXT)
    export(peaked, out=tmp_path / "rounded", quant=quant)
    export(peaked, out=tmp_path / "fitted", quant=quant, calibration=tmp_path / "text")
    rounded, fitted = (tmp_path / name / MODEL_FILE for name in ("rounded", "fitted"))
    assert rounded.stat().st_size == fitted.stat().st_size
    assert distance(peaked, fitted.parent) < 0.9 * distance(peaked, rounded.parent)
    report = json.loads((fitted.parent / "quantization.json").read_text())
    matrices = [n for n, t in GgufWeights(fitted).tensors.items() if t.rows > 1]
    assert list(report["tensors"]) == matrices
    assert all(g["fitted"] < g["rounded"] for g in report["tensors"].values())
    assert not (rounded.parent / "quantization.json").exists()


def test_a_mix_keeps_its_size_and_spends_it_well(peaked: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    losses = []
    for bits in (4.6, 5.5, 7.0):
        out = tmp_path / str(bits)
        export(peaked, out=out, layout="plm", bits=bits, calibration=tmp_path / "text")
        tensors = [t for t in GgufWeights(out / MODEL_FILE).tensors.values() if t.rows > 1]
        used = 8 * sum(t.nbytes for t in tensors) / sum(t.rows * t.cols for t in tensors)
        assert bits - 0.5 < used <= bits
        losses.append(distance(peaked, out))
        report = json.loads((out / "quantization.json").read_text())["tensors"]
        assert {t.format for t in tensors} == {g["format"] for g in report.values()}
        assert 0.2 < sum(g["kl"] for g in report.values()) / losses[-1] < 3.0  # as foretold
    assert losses[0] > 1.5 * losses[1] > 1.5 * losses[2]


def test_a_mix_may_be_kept_to_some_formats(peaked: Path) -> None:
    """Those that ONNX files have."""
    with open_checkpoint(peaked) as checkpoint:
        ids = Tokenizer.from_hf(peaked).encode(TEXT)
        fitted = Fitted(checkpoint, Fitting(TEXT, Reference.from_checkpoint), ids)
        formats = fitted.mix(6.5, Files("onnx").mixed)
        assert set(formats.values()) == {"F32", "Q4_0", "Q8_0"}
        assert set(Files("gguf").mixed) > {"Q4_K", "Q6_K"}


def test_the_same_text_gives_the_same_bytes(peaked: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    for out in ("one", "two"):
        export(peaked, out=tmp_path / out, bits=5.0, calibration=tmp_path / "text")
    for file in (MODEL_FILE, "quantization.json", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_command(inside: Run, peaked: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    call = ["export", peaked, "--target", "rpi", "-o", "out", "--calibration", tmp_path / "text"]
    shown = inside(*call, "--bits", "5")
    assert shown.code == 0, shown.err
    assert re.search(r"fitted to \d[\d,]* tokens; error of the products", shown.out)
    assert re.search(r"\nffn_up +Q\d_\w +\d  +\d\.\de-\d\d -> \d\.\de-\d\d\n", shown.out)
    assert inside("verify", "out").code == 0
    plain = inside("export", peaked, "--target", "rpi", "-o", "plain", "--quant", "q4_k")
    assert "Q4_K in layout latent" in plain.out
    assert "fitted" not in plain.out


@pytest.mark.parametrize(("more", "code", "part"), [
    (["--bits", "4.2"], 2, "--bits of 4.50 to 16 for this model, found 4.2"),
    (["--bits", "5", "--quant", "Q4_0"], 2, "--bits or --quant"),
    (["--bits", "nan"], 2, "found nan"),
    (["--bits", "5", "--pure"], 2, "--bits or --pure"),
    (["--bits", "5", "--calibration", "{short}"], 2, "at least 171 tokens"),
    (["--calibration", "none.txt"], 2, "check --calibration"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    inside: Run, peaked: Path, tmp_path: Path, more: list[str], code: int, part: str
) -> None:
    (tmp_path / "short").write_text("once")
    places = {"short": tmp_path / "short"}
    given = [word.format(**places) for word in more]
    one_line(inside("export", peaked, "--target", "rpi", "-o", "out", *given), code, part)
    assert not (tmp_path / "out").exists()


def test_ggmls_rounding_stays_where_no_text_is_given(tmp_path: Path, peaked: Path) -> None:
    export(peaked, out=tmp_path / "out", quant="Q4_0", layout="plm")
    with open_checkpoint(peaked) as checkpoint:
        want = quantize("Q4_0", checkpoint.read("blk.0.ffn_up.weight"))
    got = GgufWeights(tmp_path / "out" / MODEL_FILE).packed_rows(
        "blk.0.ffn_up.weight", 0, len(want)
    )
    assert np.array_equal(got, want)
