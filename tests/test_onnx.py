"""The ONNX graphs and the session in onnxruntime against the reference, and each other."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, one_line
from metrics import Array, close, kl, relative_error
from tiny import TINY_SHAPES, write_tiny_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_run import Growing, InPlace, in_pieces, stored_weights  # noqa: E402

import plm_edge  # noqa: E402
from plm_edge import onnx_names as names  # noqa: E402
from plm_edge.bundle import model_file, read_bundle, verify_bundle  # noqa: E402
from plm_edge.checkpoint import open_checkpoint  # noqa: E402
from plm_edge.cli.prepare import in_layout  # noqa: E402
from plm_edge.errors import (  # noqa: E402
    ContextOverflow,
    FileFormatError,
    Interrupted,
    UnsupportedError,
    UsageError,
)
from plm_edge.exporters import Files, export  # noqa: E402
from plm_edge.onnx_file import OnnxFile  # noqa: E402
from plm_edge.quant_plan import choose_formats  # noqa: E402
from plm_edge.reference import Reference  # noqa: E402
from plm_edge.runtime import load  # noqa: E402
from plm_edge.runtime.load import exported_plan  # noqa: E402
from plm_edge.tensors import tensor_table  # noqa: E402

ROOM = 320  # tokens that these models are trained for
Bundles = Callable[..., Path]


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """(shape, quant="F32", standard=False) -> bundle folder with the ONNX files."""
    root = tmp_path_factory.mktemp("onnx")

    @functools.cache
    def make(shape: str, quant: str, standard: bool) -> Path:
        out = root / f"{shape}-{quant}-{standard}"
        export(str(checkpoint(shape)), out=out, quant=quant, files=Files("onnx", standard))
        return out

    @functools.cache
    def checkpoint(shape: str) -> Path:
        return write_tiny_checkpoint(root / shape, replace(TINY_SHAPES[shape], n_ctx_train=ROOM))

    def make_once(shape: str, quant: str = "F32", standard: bool = False) -> Path:
        return make(shape, quant, standard)

    make_once.checkpoint = checkpoint  # type: ignore[attr-defined]
    return make_once


def weights_of(folder: Path) -> dict[str, Array]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in tensor_table(checkpoint.spec)}


@pytest.fixture(scope="session")
def wanted(onnx_bundle: Bundles) -> Callable[[str], tuple[Array, Array]]:
    """Shape -> ids (3, 300) and their logits by the reference (3, 300, vocab)."""

    @functools.cache
    def compute(shape: str) -> tuple[Array, Array]:
        folder = onnx_bundle.checkpoint(shape)  # type: ignore[attr-defined]
        spec = replace(TINY_SHAPES[shape], n_ctx_train=ROOM)
        ids = np.random.default_rng(5).integers(0, spec.vocab, (3, 300))
        reference = Reference(spec, weights_of(folder))
        return ids, np.stack([reference.logits(row) for row in ids])

    return compute


LENGTHS = (1, 2, 17, 300)
SHAPES = sorted(TINY_SHAPES)


# 1e-4: float32 sums against float64. 5e-3: weights rounded to f16, 2^-11 each.
@pytest.mark.parametrize(("quant", "tolerance"), [("F32", 1e-4), ("F16", 5e-3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_graphs_equal_the_reference(
    shape: str, quant: str, tolerance: float, onnx_bundle: Bundles, wanted: Callable[..., Array]
) -> None:
    folder, (ids, want) = onnx_bundle(shape, quant), wanted(shape)
    for batch in (1, 3):
        for n in LENGTHS:
            close(Growing(folder, batch).feed(ids[:batch, :n]), want[:batch, :n], tolerance)
            close(InPlace(folder, batch, n).feed(ids[:batch, :n]), want[:batch, :n], tolerance)


@pytest.mark.parametrize("ends", [(1, 2, 17, 300), (299, 300), (100, 101, 102, 250, 300)])
@pytest.mark.parametrize("shape", ["odd", "plm", "wide_rope", "untied"])
def test_any_split_into_chunks_and_steps_is_the_whole(
    shape: str, ends: tuple[int, ...], onnx_bundle: Bundles, wanted: Callable[..., Array]
) -> None:
    folder, (ids, want) = onnx_bundle(shape), wanted(shape)
    for batch in (1, 3):
        close(in_pieces(Growing(folder, batch), ids[:batch], ends), want[:batch], 1e-4)
        close(in_pieces(InPlace(folder, batch, 300), ids[:batch], ends), want[:batch], 1e-4)
    with load(folder, "onnx") as session:
        last = session.prefill([int(i) for i in ids[0, : ends[-1]]])  # more than one chunk
        close(last, want[0, ends[-1] - 1], 1e-4)
        session.reset()
        starts = (0, *ends[:-1])
        for a, b in zip(starts, ends, strict=True):
            part = [int(i) for i in ids[0, a:b]]
            got = session.step(part[0])[None] if b - a == 1 else session.prefill(part, True)
            close(got, want[0, a:b], 1e-4)


def test_a_bent_weight_or_position_would_be_noticed(
    onnx_bundle: Bundles, wanted: Callable[..., Array]
) -> None:
    folder, (ids, want) = onnx_bundle("odd"), wanted("odd")
    spec = read_bundle(folder).spec
    weights = weights_of(onnx_bundle.checkpoint("odd"))  # type: ignore[attr-defined]
    weights["blk.1.attn_kv_b.weight"] = weights["blk.1.attn_kv_b.weight"] * np.float32(1.01)
    got = Growing(folder).feed(ids[:1, :17])
    assert relative_error(got[0], Reference(spec, weights).logits(ids[0, :17])) > 1e-4
    shifted = Growing(folder)
    shifted.feed(ids[:1, :1])
    assert relative_error(shifted.feed(ids[:1, 1:17])[0], want[0, :16]) > 1e-2


def test_padding_in_front_changes_nothing(
    onnx_bundle: Bundles, wanted: Callable[..., Array]
) -> None:
    folder, (ids, want) = onnx_bundle("plm"), wanted("plm")
    padded = np.concatenate([np.zeros((1, 5), np.int64), ids[:1, :12]], axis=1)
    mask = np.array([[0] * 5 + [1] * 12])
    positions = np.array([[0] * 5 + list(range(12))])
    got = Growing(folder).feed(padded, mask, positions)
    close(got[:, 5:], want[:1, :12], 1e-4)
    assert np.isfinite(got).all()


# Activations meet Q4_0 and Q8_0 as 8-bit integers with a scale for each 32: of a block's largest
# value 2^-8 each. --onnx-standard computes in float32.
@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("shape", ["blocks", "plm", "plain"])
def test_quantized_weights_are_those_of_the_formats(
    shape: str, quant: str, onnx_bundle: Bundles, wanted: Callable[..., Array]
) -> None:
    ids = wanted(shape)[0][:1, :33]
    weights = weights_of(onnx_bundle.checkpoint(shape))  # type: ignore[attr-defined]
    for standard, tolerance in ((True, 1e-5), (False, 5e-2)):
        folder = onnx_bundle(shape, quant, standard)
        want = stored_weights(weights, read_bundle(folder).spec, folder).logits(ids[0])
        for run in (Growing(folder), InPlace(folder, 1, 33)):
            close(run.feed(ids)[0], want, tolerance)
    assert relative_error(want, wanted(shape)[1][0, :33]) > 1e-3  # rounding shows


@pytest.mark.parametrize("heads", [3, 6])  # by one, by two
def test_heads_that_share_a_node_keep_their_own_products(heads: int, tmp_path: Path) -> None:
    spec = replace(TINY_SHAPES["blocks"], heads=heads, n_ctx_train=ROOM)
    folder, out = write_tiny_checkpoint(tmp_path / "tiny", spec), tmp_path / "out"
    export(str(folder), out=out, quant="Q8_0", files=Files("onnx"))
    ids = np.random.default_rng(3).integers(0, spec.vocab, (1, 9))
    want = stored_weights(weights_of(folder), read_bundle(out).spec, out).logits(ids[0])
    for run in (Growing(out), InPlace(out, 1, 9)):
        close(in_pieces(run, ids, (5, 6, 9))[0], want, 5e-2)


@pytest.mark.parametrize("finer", ["attn_q", "attn_kv_a_mqa"])
def test_two_matrices_of_different_formats_are_not_put_together(
    finer: str, onnx_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(*given: Any) -> dict[str, str]:
        formats = choose_formats(*given)
        return formats | {name: "Q8_0" for name in formats if f".{finer}." in name}

    monkeypatch.setattr("plm_edge.plan.choose_formats", mixed)
    folder, out = onnx_bundle.checkpoint("blocks"), tmp_path / "out"  # type: ignore[attr-defined]
    export(str(folder), out=out, quant="Q4_0", files=Files("onnx"))
    stored = {array.name for array in OnnxFile.read(out / names.MODEL).stored}
    assert {"blk.0.attn_q.weight.q", "blk.0.attn_kv_a_mqa.weight.q"} <= stored
    ids = np.random.default_rng(3).integers(0, 300, (1, 9))
    want = stored_weights(weights_of(folder), read_bundle(out).spec, out).logits(ids[0])
    close(in_pieces(Growing(out), ids, (5, 6, 9))[0], want, 5e-2)


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("standard", [False, True])
def test_graphs_pass_the_checker_and_shape_inference(
    quant: str, standard: bool, onnx_bundle: Bundles
) -> None:
    folder = onnx_bundle("plm", quant, standard)
    for name in (names.MODEL, names.IN_PLACE):
        model = onnx.load(folder / name, load_external_data=False)
        contrib = {node.op_type for node in model.graph.node if node.domain}
        assert contrib == (
            {"MatMulNBits", "GatherBlockQuantized"} if quant[0] == "Q" and not standard else set()
        )
        onnx.checker.check_model(folder / name, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
        assert known >= {output for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
def test_the_tied_matrix_lies_in_the_file_once_and_all_is_aligned(
    quant: str, onnx_bundle: Bundles
) -> None:
    folder = onnx_bundle("plm", quant)
    files = [OnnxFile.read(folder / name) for name in (names.MODEL, names.IN_PLACE)]
    assert {(a.name, a.offset) for a in files[0].stored} == {
        (a.name, a.offset) for a in files[1].stored
    }  # two graphs, one file of weights
    arrays = files[0].stored
    embedding = {a.offset: a.length for a in arrays if a.name.startswith("token_embd")}
    assert len(embedding) == (2 if quant[0] == "Q" else 1)  # integers and scales, or floats
    spans = sorted({(a.offset, a.offset + a.length) for a in arrays})
    for (_, end), (start, _) in pairwise(spans):
        assert 0 <= start - end < 4096
    assert spans[0][0] == 0
    assert spans[-1][1] == (folder / names.DATA).stat().st_size
    for array in arrays:
        assert array.offset % (4096 if array.length >= 4096 else 64) == 0


def test_the_same_model_gives_the_same_bytes(onnx_bundle: Bundles, tmp_path: Path) -> None:
    folder = onnx_bundle("blocks", "Q4_0")
    again = tmp_path / "again"
    export(
        str(onnx_bundle.checkpoint("blocks")),  # type: ignore[attr-defined]
        out=again, quant="Q4_0", files=Files("onnx"),
    )  # fmt: skip
    assert read_bundle(again).files == verify_bundle(folder).files


# ---------------------------------------------------------------- the session


def test_the_cache_is_one_latent_row_a_token_and_layer(onnx_bundle: Bundles) -> None:
    with load(onnx_bundle("plm"), "onnx", n_ctx=256) as session:
        session.prefill([1, 2, 3])
        assert session.cached_rows().shape == (2, 3, 512 + 64)
        assert session.cache_bytes == 2 * 256 * (512 + 64) * 4
        assert session.cached_rows().base is session._rows.base or session._rows.base is None
        assert np.abs(session.cached_rows()).min(axis=-1).max() > 0  # every row was written
        assert not session.cached_rows_of(4)[:, 3].any()


def test_a_session_keeps_the_protocol(onnx_bundle: Bundles, tmp_path: Path) -> None:
    with load(onnx_bundle("plm"), "onnx", n_ctx=64) as session:
        first = session.prefill([5, 6, 7])
        assert session.ids == (5, 6, 7)
        after = session.step(8)
        session.truncate(3)
        np.testing.assert_array_equal(session.step(8), after)
        session.save(tmp_path / "saved")
        session.reset()
        assert session.n_past == 0
        np.testing.assert_array_equal(session.prefill([5, 6, 7]), first)
        session.restore(tmp_path / "saved")
        assert session.ids == (5, 6, 7, 8)
        for ids, error in (([], UsageError), ([-1], UsageError), ([1] * 61, ContextOverflow)):
            with pytest.raises(error):
                session.prefill(ids)
            assert session.n_past == 4
        with session.model.session(n_ctx=16) as other:
            np.testing.assert_array_equal(other.prefill([5, 6, 7]), first)
    with pytest.raises(UsageError, match="closed"):
        session.step(1)


def test_what_the_backend_cannot_do_is_refused_in_a_line(onnx_bundle: Bundles) -> None:
    folder = onnx_bundle("plm")
    for backend, options, error, said in (
        ("onnx", {"cache_type": "f16"}, UnsupportedError, "expected cache type f32"),
        ("onnx", {"isa": "scalar"}, UnsupportedError, "expected no --isa"),
        ("onnx", {"head": "screened"}, UnsupportedError, "expected no --head"),
        ("onnx:cuda", {}, UnsupportedError, "found one with cpu"),
        ("onnx:abacus", {}, UsageError, "found 'abacus'"),
        ("onnx:", {}, UsageError, "found ''"),
        ("native:cpu", {}, UsageError, "found 'native:cpu'"),
    ):
        with pytest.raises(error, match=said):
            load(folder, backend, **options)
    with pytest.raises(FileFormatError, match=r"expected model\.gguf"):
        load(folder, "native")
    with load(folder) as session:  # auto: what is there
        assert session.cache_type == "f32"


def test_where_the_gguf_file_is_needed_its_absence_is_said(
    onnx_bundle: Bundles, inside: Run, tmp_path: Path
) -> None:
    folder = onnx_bundle("plm")
    said = "expected model.gguf, found ONNX files only; export with --format gguf or both"
    one_line(inside("bench", folder, "-p", 1, "-n", 1, "-d", 0, "-r", 1), 3, said)
    one_line(inside("export", folder, "--target", "rpi", "-o", tmp_path / "again"), 3, said)
    one_line(inside("chat", folder, "-p", "a", "--backend", "native"), 3, said)
    assert inside("plan", folder, "--target", "rpi").code == 0
    for call in (
        lambda: in_layout(folder, "plm"),
        lambda: exported_plan(folder),
        lambda: model_file(folder),
    ):
        with pytest.raises(FileFormatError, match=said):
            call()
    with pytest.raises(FileFormatError, match=r"expected model\.gguf, found none"):
        model_file(tmp_path)


def test_both_formats_in_one_bundle(onnx_bundle: Bundles, tmp_path: Path) -> None:
    out = tmp_path / "both"
    export(str(onnx_bundle.checkpoint("blocks")), out=out, files=Files("both"))  # type: ignore[attr-defined]
    rows = []
    for backend in ("native", "onnx"):
        with load(out, backend) as session:
            rows.append(session.prefill(list(range(20)), all_logits=True))
    assert kl(rows[0], rows[1]) < 1e-3
    assert not np.array_equal(rows[0], rows[1])


# ---------------------------------------------------------------- the standard's operators


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_file_of_standard_operators_runs_in_the_reference_evaluator(
    quant: str, onnx_bundle: Bundles, wanted: Callable[..., Array]
) -> None:
    from onnx.reference import ReferenceEvaluator

    folder, (ids, _) = onnx_bundle("plm", quant, True), wanted("plm")
    spec = read_bundle(folder).spec
    weights = weights_of(onnx_bundle.checkpoint("plm"))  # type: ignore[attr-defined]
    want = stored_weights(weights, spec, folder).logits(ids[0, :9])
    for run in (Growing(folder), InPlace(folder, 1, 9)):
        run._run = ReferenceEvaluator(str(folder / run.FILE)).run
        got = in_pieces(run, ids[:1, :9], (5, 6, 9))[0]
        close(got, want, 1e-4)  # float32 against float64


def test_int4_of_the_demo_is_near_its_own_weights(tmp_path: Path) -> None:
    export("demo", out=tmp_path / "out", quant="Q4_0", pure=True, files=Files("onnx"))
    text = (Path(plm_edge.__file__).parent / "texts" / "held_out.txt").read_text()
    with load(tmp_path / "out", "onnx", n_ctx=512) as session:
        ids = session.tokenizer.encode(text[:20_000])[: 4 * 512]
        with open_checkpoint(Path(plm_edge.__file__).parent / "demo") as checkpoint:
            weights = {name: checkpoint.read(name) for name in tensor_table(checkpoint.spec)}
        reference = stored_weights(weights, session.spec, tmp_path / "out")
        assert len(ids) == 2048
        mean = 0.0
        for start in range(0, 2048, 512):
            session.reset()
            got = session.prefill(ids[start : start + 512], all_logits=True)
            mean += kl(reference.logits(ids[start : start + 512]), got) / 4
    # activations of 8 bits: a hundred times what 16-bit ones cost, and far below the bar of 1e-2
    assert 1e-6 < mean < 1e-3


# ---------------------------------------------------------------- memory, interrupts, packages

STEP_AT_4096 = """
import sys
import numpy as np
from plm_edge.runtime import load
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
session = load(sys.argv[1], "onnx", n_ctx=4096, threads=1)
session._rows[:] = 0.01
session._ids = [1] * 4090
session.step(1)
before = peak()
for _ in range(4):
    session.step(1)
print(before, peak())
"""


def test_memory_at_4096_tokens_does_not_grow_with_heads(tmp_path: Path) -> None:
    peaks = []
    for heads in (4, 64):
        spec = replace(
            TINY_SHAPES["plain"], heads=heads, rank=256, v_head=4, rope=4, n_ctx_train=4096
        )
        folder = write_tiny_checkpoint(tmp_path / f"{heads}", spec)
        export(str(folder), out=tmp_path / f"{heads}-out", quant="F32", files=Files("onnx"))
        code = [sys.executable, "-c", STEP_AT_4096, str(tmp_path / f"{heads}-out")]
        peaks.append([int(word) for word in subprocess.check_output(code, text=True).split()])
    weights = 64 * 60 * (20 + 4) * 4 * 2 + 2 * 60 * 20 * 256 * 4  # 60 more heads: W_q, W_o, kv_b
    scores = 60 * 4096 * 4  # of them, in one layer
    grown = peaks[1][1] - peaks[0][1]
    # Products, masked, softmax; weights are in memory packed, and while they are packed. Keys and
    # values of one layer would be 60 * (16 + 4 + 4) * 4096 * 4 = 23.6 MB, of both 47.2.
    assert grown < 4 * scores + 3 * weights + 4_000_000
    assert 4 * scores + 3 * weights + 4_000_000 < 2 * 60 * 24 * 4096 * 4


def test_a_cancelled_call_leaves_the_session_as_it_was(onnx_bundle: Bundles) -> None:
    with load(onnx_bundle("plm"), "onnx") as session:
        session.prefill([1, 2])
        bound = session._bound

        def cancelled(ids: list[int], logits: Array) -> object:
            session.cancel()
            return bound(ids, logits)

        session._bound = cancelled
        with pytest.raises(Interrupted):
            session.step(3)
        assert session.ids == (1, 2)
        session._bound = bound
        session.step(3)


def test_a_signal_does_not_wait_for_a_chunk(onnx_bundle: Bundles) -> None:
    """What runs here runs until it is told to stop, away from the thread that handles signals."""

    class Endless:
        def run_with_iobinding(self, binding: object, options: Any) -> None:
            assert threading.current_thread() is not threading.main_thread()
            for _ in range(1000):
                if options.terminate:
                    raise RuntimeError("terminated")
                time.sleep(0.01)

        def io_binding(self) -> object:
            return model.io_binding()

    with load(onnx_bundle("plm"), "onnx") as session:
        model, session._inference = session._inference, Endless()
        for handler, error in (
            (signal.default_int_handler, KeyboardInterrupt),
            (lambda *_: session.cancel(), Interrupted),
        ):
            before = signal.signal(signal.SIGINT, handler)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                with pytest.raises(error):
                    session.prefill([1, 2])
            finally:
                signal.signal(signal.SIGINT, before)
            assert session.ids == ()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_said_in_a_line(
    package: str, onnx_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = onnx_bundle("plm")
    monkeypatch.setitem(sys.modules, package, None)
    act = {
        "onnx": lambda: export("demo", out=tmp_path / "out", files=Files("onnx")),
        "onnxruntime": lambda: load(folder, "onnx"),
    }[package]
    with pytest.raises(UnsupportedError, match=f"expected the package {package}") as error:
        act()
    assert "pip install" in str(error.value)
    assert not (tmp_path / "out").exists()
