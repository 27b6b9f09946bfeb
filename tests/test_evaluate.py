"""plm-edge eval: its figures against the tests' own measures, its files byte by byte."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, one_line
from metrics import kl, log_softmax

from plm_edge.bundle import MODEL_FILE
from plm_edge.errors import FileFormatError, NumericalError, UsageError
from plm_edge.gguf_weights import GgufWeights
from plm_edge.reference import Reference
from plm_edge.runtime import load
from plm_edge.runtime.evaluate import Evaluation, evaluate
from plm_edge.runtime.evaluate import log_softmax as ours
from plm_edge.runtime.logit_file import LogitFile, header, scored, write_rows

WINDOW, WINDOWS = 32, 3
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 300, WINDOW * WINDOWS + 7)]
Bundles = Callable[..., Path]


def true_rows(bundle: Path) -> tuple[np.ndarray, list[int]]:
    """Float64 logits of the scored positions of all windows, and the ids that follow."""
    reference = Reference.from_checkpoint(GgufWeights(bundle / MODEL_FILE))
    rows, following = [], []
    for start in range(0, WINDOW * WINDOWS, WINDOW):
        text = IDS[start : start + WINDOW]
        rows.append(reference.logits(text)[WINDOW // 2 : WINDOW - 1])
        following += text[WINDOW // 2 + 1 :]
    return np.concatenate(rows), following


def measured(model: Path, against: Path | LogitFile | None = None, **more: object) -> Evaluation:
    with load(model, n_ctx=WINDOW, cache_type="f32") as session:
        if not isinstance(against, Path):
            return evaluate(session, IDS, WINDOW, against, **more)  # type: ignore[arg-type]
        with load(against, n_ctx=WINDOW, cache_type="f32") as other:
            return evaluate(session, IDS, WINDOW, other, **more)  # type: ignore[arg-type]


def test_perplexity_is_float64s(bundle_of: Bundles) -> None:
    rows, following = true_rows(bundle_of("blocks"))
    found = measured(bundle_of("blocks"))
    nll = -log_softmax(rows)[np.arange(len(rows)), following]
    assert found.positions == len(nll) == WINDOWS * (WINDOW - 1 - WINDOW // 2)
    assert found.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    error = math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(len(nll))
    assert found.perplexity_error == pytest.approx(error, rel=1e-4)
    assert found.compared is None
    shifted = math.exp(-log_softmax(rows)[np.arange(len(rows)), np.roll(following, 1)].mean())
    assert abs(found.perplexity / shifted - 1) > 1e-3  # another id than the next would show


def test_kl_and_top_1_are_those_of_the_tests_own_measures(bundle_of: Bundles) -> None:
    full, small = bundle_of("blocks"), bundle_of("blocks", "Q4_0")
    (want, following), (got, _) = true_rows(full), true_rows(small)
    compared = measured(small, full).compared
    assert compared is not None
    assert compared.kl == pytest.approx(kl(want, got), rel=1e-3)
    assert compared.same_top == np.mean(want.argmax(axis=1) == got.argmax(axis=1))
    each = [kl(want[i : i + 1], got[i : i + 1]) for i in range(len(want))]
    assert compared.kl_max == pytest.approx(max(each), rel=1e-3)
    assert compared.kl_median == pytest.approx(np.median(each), rel=1e-3)
    nll = -log_softmax(want)[np.arange(len(want)), following].mean()
    assert compared.reference_perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    swapped = measured(full, small).compared
    assert swapped is not None
    assert swapped.kl != pytest.approx(compared.kl, rel=1e-3)


def test_saved_logits_stand_for_the_model(bundle_of: Bundles, tmp_path: Path) -> None:
    full, small = bundle_of("blocks"), bundle_of("blocks", "Q4_0")
    first = measured(full, save=tmp_path / "saved")
    assert first == measured(full)
    saved = LogitFile(tmp_path / "saved")
    assert saved.ids == IDS[: WINDOW * WINDOWS]
    live, read = measured(small, full).compared, measured(small, saved).compared
    assert live is not None
    assert read is not None
    assert read.kl == pytest.approx(live.kl, abs=1e-5)  # 16 bits for 16 nats
    assert read.reference_perplexity == pytest.approx(live.reference_perplexity, rel=1e-4)
    fewer = measured(small, saved, windows=2)
    assert (fewer.windows, fewer.positions) == (2, 2 * len(scored(WINDOW)))


def test_the_file_is_llama_perplexitys_byte_by_byte(tmp_path: Path) -> None:
    log_p = np.array([[-0.1, -8.1, -40.0]])
    with (tmp_path / "saved").open("wb") as file:
        file.write(header(4, 3, [7, 8, 9, 10]))
        write_rows(file, log_p)
    want = b"_logits_" + struct.pack("<Iii4i", 4, 3, 1, 7, 8, 9, 10)
    # 16 nats in 65,535 steps, half of them down; 3 tokens and one to pad
    want += struct.pack("<ff4H", 16 / 65535, -16.1, 65535, 32768, 0, 0)
    assert (tmp_path / "saved").read_bytes() == want
    read = LogitFile(tmp_path / "saved").log_probs(0, 0, 1)
    np.testing.assert_allclose(read, [[-0.1, -8.1, -16.1]], atol=2e-4)


def test_what_a_file_cannot_hold_does_not_count(tmp_path: Path) -> None:
    """A token 20 nats down is stored as 16 down; with 1,000 of them that would be 1e-4 each."""
    logits = np.full((1, 1001), -20.0, np.float32)
    logits[0, 0] = 0.0
    log_p = ours(logits)
    with (tmp_path / "saved").open("wb") as file:
        file.write(header(4, 1001, [1, 2, 3, 4]))
        write_rows(file, log_p)
    read = LogitFile(tmp_path / "saved").log_probs(0, 0, 1)
    assert (read[0, 1:] < -16.0).all()


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda data: data[:-1], "bytes"),
    (lambda data: data + b"\0", "bytes"),
    (lambda data: data[:10], "starts with"),
    (lambda data: b"_logitz_" + data[8:], "starts with"),
    (lambda data: data[:8] + struct.pack("<Iii", 0, 0, 0), "windows, ids"),
    (lambda data: data[:8] + struct.pack("<Iii", 2**31, 2**31 - 1, 2**31 - 1), "bytes"),
    (lambda data: data[:-16] + struct.pack("<f", math.nan) + data[-12:], "NaN"),
])  # fmt: skip
def test_a_damaged_file_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], said: str
) -> None:
    row = struct.pack("<ff4H", 1e-4, -9.0, 65535, 0, 0, 0)
    data = header(4, 3, [7, 8, 9, 10]) + row
    (tmp_path / "saved").write_bytes(data)
    LogitFile(tmp_path / "saved").log_probs(0, 0, 1)
    (tmp_path / "saved").write_bytes(spoil(data))
    with pytest.raises(FileFormatError, match=said):
        LogitFile(tmp_path / "saved").log_probs(0, 0, 1)


def test_wrong_calls_say_what_is_wrong(bundle_of: Bundles, tmp_path: Path) -> None:
    model = bundle_of("blocks")
    measured(model, save=tmp_path / "saved")
    saved = LogitFile(tmp_path / "saved")
    with load(model, n_ctx=WINDOW) as session, load(bundle_of("plain")) as other:
        for call, said in (
            (lambda: evaluate(session, IDS[:20], WINDOW), "at least 32 tokens, found 20"),
            (lambda: evaluate(session, IDS, WINDOW + 1), "windows of 3 to 32 tokens"),
            (lambda: evaluate(session, IDS, 2), "found 2; give another -c"),
            (lambda: evaluate(session, IDS, WINDOW, windows=0), "found 0; give --chunks more, or"),
            (lambda: evaluate(session, IDS, WINDOW, other), "same vocabulary"),
            (lambda: evaluate(session, IDS[1:], WINDOW, saved), "logits of this text"),
            (lambda: evaluate(session, IDS, 16, saved), "logits of this text"),
        ):
            with pytest.raises(UsageError, match=said):
                call()
    with pytest.raises(NumericalError, match="finite logits"):
        ours(np.array([[1.0, np.nan]], np.float32))


def test_the_command(inside: Run, checkpoint_of: Bundles, tmp_path: Path) -> None:
    """A checkpoint is rounded to be judged, and not rounded to judge."""
    model, text = str(checkpoint_of("blocks")), tmp_path / "text.txt"
    text.write_text("once upon a time there was a house by the sea " * 8)
    both = inside("eval", model, "-f", text, "--against", model, "-c", "32", "--json")
    found = json.loads(both.out)
    assert 0.0 < found["compared"]["kl"] < 1e-3
    saved = inside("eval", model, "-f", text, "-c", "32", "--save-logits", "saved")
    assert re.match(r"perplexity  \d+\.\d+ \+- .* windows of 32\n$", saved.out)
    read = inside("eval", model, "-f", text, "--against", "saved")
    assert re.search(r"\nKL          -?\d\.\d+e-\d+ \+- .*\ntop-1       100\.00%", read.out)
    assert "Traceback" not in both.err + saved.err + read.err


def test_what_onnx_reads_is_exported_for_it(
    inside: Run, checkpoint_of: Bundles, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.txt").write_text("once upon a time there was a house by the sea " * 8)
    asked = ("-f", "text.txt", "-c", "32", "--chunks", "1", "--backend", "onnx", "--json")
    found = inside("eval", "demo", *asked, "--against", "demo")
    assert found.code == 0, found.err
    assert json.loads(found.out)["compared"]["kl"] < 0.1
    assert inside("eval", checkpoint_of("blocks"), *asked).code == 0


@pytest.mark.parametrize(("arguments", "code", "part"), [
    (["-f", "none.txt"], 2, "check -f"),
    (["-f", "{bytes}"], 2, "UTF-8"),
    (["-f", "{text}", "-c", "4000"], 2, "context of 4000"),
    (["-f", "{text}", "-c", "100", "--against", "./none"], 2, "./none"),
    (["-f", "{text}", "-c", "100"], 2, "at least 100 tokens"),
    (["-f", "{text}", "-c", "4", "--against", "{other}"], 2, "same"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    inside: Run, bundle_of: Bundles, tmp_path: Path, arguments: list[str], code: int, part: str,
) -> None:  # fmt: skip
    (tmp_path / "text").write_text("once upon a time")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    places = {"text": tmp_path / "text", "bytes": tmp_path / "bytes", "other": bundle_of("plain")}
    given = [argument.format(**places) for argument in arguments]
    one_line(inside("eval", bundle_of("blocks"), *given), code, part)
