"""The native session against the reference, against itself on other paths, and its protocol."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from metrics import relative_error
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.errors import (
    ContextOverflow,
    FileFormatError,
    Interrupted,
    OutputError,
    SessionBusy,
    UnsupportedError,
    UsageError,
)
from plm_edge.exporters import export
from plm_edge.formats import dequantize, quantize
from plm_edge.kinds import mla
from plm_edge.kinds.norm import rms_norm
from plm_edge.native import kernels
from plm_edge.reference import Reference
from plm_edge.runtime import Session, any_session, load
from plm_edge.tensors import tensor_table

Bundles = Callable[..., Path]
Checkpoints = Callable[[str], Path]


def ids_of(spec_name: str, n: int) -> list[int]:
    vocab = TINY_SHAPES[spec_name].vocab
    return [int(i) for i in np.random.default_rng(5).integers(0, vocab, n)]


def reference_of(folder: Path, formats: dict[str, str] | None = None) -> Reference:
    """The reference on the weights as stored: rounded to `formats` where those are given."""
    with open_checkpoint(folder) as checkpoint:
        weights = {name: checkpoint.read(name) for name in tensor_table(checkpoint.spec)}
        for name, fmt in (formats or {}).items():
            rows = np.atleast_2d(weights[name])
            stored = dequantize(fmt, quantize(fmt, rows), rows.shape[1])
            weights[name] = stored.reshape(weights[name].shape)
        return Reference(checkpoint.spec, weights)


def formats_of(session: Session) -> dict[str, str]:
    return {name: weight.format for name, weight in session.model.weights.items()}


# 1e-4: float32 sums against float64. 2e-3: rows of the cache rounded to f16 (2^-11 each).
@pytest.mark.parametrize(("cache_type", "tolerance"), [("f32", 1e-4), ("f16", 2e-3)])
@pytest.mark.parametrize("layout", ["latent", "plm"])
@pytest.mark.parametrize("shape", sorted(TINY_SHAPES))
def test_logits_equal_the_reference(
    shape: str,
    layout: str,
    cache_type: str,
    tolerance: float,
    bundle_of: Bundles,
    checkpoint_of: Checkpoints,
) -> None:
    spec = TINY_SHAPES[shape]
    if layout == "plm" and (not spec.tied or spec.eps != spec.latent_eps or spec.nope % 2):
        with pytest.raises(UnsupportedError, match="layout plm"):
            bundle_of(shape, "F32", layout)
        return
    ids = ids_of(shape, 33)
    want = reference_of(checkpoint_of(shape)).logits(ids)
    with load(bundle_of(shape, "F32", layout), cache_type=cache_type) as session:
        got = session.prefill(ids, all_logits=True)
    assert relative_error(got, want) < tolerance


def of_amd() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "AuthenticAMD" in cpu.read_text()


def test_the_first_cache_and_the_maker_say_where_to_ask() -> None:
    try:  # os.sysconf does not know this name
        asked = subprocess.run(["getconf", "LEVEL1_DCACHE_SIZE"], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no such question here")
    if int(asked.stdout or 0) < 48 << 10:
        assert kernels.asks_into() == kernels.SECOND
    else:
        alone = platform.machine() != "x86_64" or of_amd()
        assert kernels.asks_into() == (kernels.FIRST if alone else kernels.BOTH)


def test_a_cpu_of_amd_takes_outputs_from_both_ends() -> None:
    if not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64":
        pytest.skip("no such question here")
    assert kernels.alternates_ends() == of_amd()


@pytest.mark.parametrize(("near", "ends"), [(kernels.SECOND, 1), (kernels.BOTH, 0)])
def test_a_session_reads_as_this_cpu_does(
    near: int, ends: int, bundle_of: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "asks_into", lambda: near)
    monkeypatch.setattr(kernels, "alternates_ends", lambda: ends)
    with load(bundle_of("blocks", "Q8_0")) as session:
        for step in (session._step, session._head_step):
            assert (step.near, step.ends) == (near, ends)


@pytest.mark.parametrize("layout", ["latent", "plm"])
@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_quantized_logits_equal_the_reference_on_the_same_weights(
    quant: str, layout: str, bundle_of: Bundles, checkpoint_of: Checkpoints
) -> None:
    ids = ids_of("blocks", 33)
    with load(bundle_of("blocks", quant, layout), cache_type="f32") as session:
        got = session.prefill(ids, all_logits=True)
        want = reference_of(checkpoint_of("blocks"), formats_of(session)).logits(ids)
    # Activations meet Q8_0 and Q4_0 as 16-bit integers: 2^-16 of a block's maximum each.
    assert relative_error(got, want) < 3e-4


@pytest.mark.parametrize("layout", ["latent", "plm"])
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_activations_in_bytes_round_coarser_and_no_more(
    quant: str, layout: str, bundle_of: Bundles, checkpoint_of: Checkpoints
) -> None:
    ids, bundle = ids_of("blocks", 33), bundle_of("blocks", quant, layout)
    with load(bundle, cache_type="f32", activations="int8") as session:
        got = session.prefill(ids, all_logits=True)
        session.reset()
        steps = np.stack([session.step(token) for token in ids])
        want = reference_of(checkpoint_of("blocks"), formats_of(session)).logits(ids)
    # 2^-8 of a block's maximum each, where 16 bits are within 3e-4
    assert 1e-3 < relative_error(got, want) < 5e-2
    assert 1e-3 < relative_error(steps, want) < 5e-2


def test_unknown_activations_are_refused(bundle_of: Bundles) -> None:
    with pytest.raises(UsageError, match="expected activations of int16, int8, found 'int4'"):
        load(bundle_of("blocks"), activations="int4")


def test_a_bent_weight_would_be_noticed(bundle_of: Bundles, checkpoint_of: Checkpoints) -> None:
    ids = ids_of("odd", 9)
    reference = reference_of(checkpoint_of("odd"))
    bent = dict(reference._weights)
    bent["blk.1.attn_kv_b.weight"] = bent["blk.1.attn_kv_b.weight"] * np.float32(1.01)
    want = Reference(reference.spec, bent).logits(ids)
    with load(bundle_of("odd"), cache_type="f32") as session:
        assert relative_error(session.prefill(ids, all_logits=True), want) > 1e-4


@pytest.mark.parametrize("quant", ["F32", "Q8_0", "Q4_0"])
def test_latent_and_plm_files_differ_by_the_order_of_sums(quant: str, bundle_of: Bundles) -> None:
    ids = ids_of("blocks", 25)
    rows = []
    for layout in ("latent", "plm"):
        with load(bundle_of("blocks", quant, layout), cache_type="f32") as session:
            rows.append(session.prefill(ids, all_logits=True))
    # Q8_0, Q4_0: 16-bit activations round differently where a sum moved by one float32 step.
    assert relative_error(rows[0], rows[1]) < (2e-6 if quant == "F32" else 3e-4)


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("quant", ["F32", "Q4_0"])
@pytest.mark.parametrize("layout", ["latent", "plm"])
def test_prefill_equals_steps_equals_chunks(quant: str, layout: str, bundle_of: Bundles) -> None:
    ids = ids_of("blocks", 40)
    with load(bundle_of("blocks", quant, layout), cache_type="f32") as session:
        whole = session.prefill(ids, all_logits=True)
        session.reset()
        steps = np.array([session.step(i) for i in ids])
        session.reset()
        chunks = np.concatenate(
            [
                session.prefill(ids[a:b], all_logits=True)
                for a, b in ((0, 1), (1, 3), (3, 20), (20, 40))
            ]
        )
        session.reset()
        shifted = session.prefill(ids[1:], all_logits=True)
    tolerance = 2e-6 if quant == "F32" else 3e-4
    assert relative_error(steps, whole) < tolerance
    assert relative_error(chunks, whole) < tolerance
    assert relative_error(shifted, whole[1:]) > 1e-2  # another position would be noticed


@pytest.mark.parametrize("shape", ["odd", "wide_rope", "plm"])
def test_absorbed_equals_expanded(
    shape: str, bundle_of: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, rows = ids_of(shape, 50), {}
    with load(bundle_of(shape), cache_type="f32") as session:
        for expand in (False, True):
            monkeypatch.setattr(mla, "expanding_pays", lambda *_, e=expand: e)
            session.reset()
            session.prefill(ids[:7])
            rows[expand] = session.prefill(ids[7:], all_logits=True)
    assert relative_error(rows[True], rows[False]) < 5e-6
    assert not np.array_equal(rows[True], rows[False])  # two paths indeed


def test_expanding_is_chosen_for_long_prefill_only() -> None:
    spec = replace(TINY_SHAPES["plm"], heads=16)
    assert not mla.expanding_pays(spec, 0, 1)
    assert not mla.expanding_pays(spec, 1000, 20)
    assert mla.expanding_pays(spec, 1000, 200)  # break-even: 170 tokens


def test_a_cache_in_q8_0_costs_672_bytes_a_row_and_little_else(
    bundle_of: Bundles, checkpoint_of: Checkpoints
) -> None:
    ids = ids_of("plm", 33)
    want = reference_of(checkpoint_of("plm")).logits(ids)
    with load(bundle_of("plm"), cache_type="q8_0", n_ctx=64) as session:
        got = session.prefill(ids, all_logits=True)
        session.reset()
        steps = np.array([session.step(i) for i in ids])
        assert session.cache_bytes == 2 * 64 * 672  # layers, tokens, bytes
    # int8 latents: half a step of 1/127 of a block's largest value
    assert 1e-4 < relative_error(got, want) < 3e-2
    assert relative_error(steps, got) < 1e-2  # steps round queries and weights to bytes too
    with (
        load(bundle_of("odd")) as session,
        pytest.raises(UnsupportedError, match="multiple of 32 values, found 20"),
    ):
        session.model.session(cache_type="q8_0")


@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "f32"])
def test_truncate_and_repeat_bit_for_bit(cache_type: str, bundle_of: Bundles) -> None:
    ids = ids_of("blocks", 30)
    with load(bundle_of("blocks", "Q8_0"), cache_type=cache_type) as session:
        session.prefill(ids[:12])
        first = [session.prefill(ids[12:25]), *(session.step(i) for i in ids[25:])]
        rows = session.cached_rows().copy()
        session.truncate(12)
        assert session.n_past == 12
        again = [session.prefill(ids[12:25]), *(session.step(i) for i in ids[25:])]
        assert np.array_equal(first, again)
        assert np.array_equal(rows, session.cached_rows())


@pytest.mark.parametrize("activations", kernels.ACTIVATIONS)
def test_any_number_of_threads_gives_the_same_bits(activations: str, bundle_of: Bundles) -> None:
    ids, rows = ids_of("blocks", 30), []
    for threads in (1, 2, 5):
        bundle = bundle_of("blocks", "Q4_0")
        with load(bundle, threads=threads, activations=activations) as session:
            rows.append([session.prefill(ids), session.step(3), session.step(4)])
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_two_sessions_share_the_weights_and_nothing_else(bundle_of: Bundles) -> None:
    ids = ids_of("plain", 10)
    with load(bundle_of("plain")) as one, one.model.session(n_ctx=16) as two:
        want = one.prefill(ids)
        two.prefill([1, 2, 3])
        assert (one.n_past, two.n_past) == (10, 3)
        two.reset()
        assert np.array_equal(two.prefill(ids), want)


# ---------------------------------------------------------------- the reason to exist


@pytest.mark.parametrize("heads", [1, 16])
def test_the_cache_is_latent_whatever_the_number_of_heads(heads: int, tmp_path: Path) -> None:
    """PLM-1.8B's rows: 32 layers, 512 + 64 values, f16, 4,096 tokens."""
    spec = replace(
        TINY_SHAPES["plain"], layers=32, rank=512, rope=64, nope=8, v_head=8, d_model=32, d_ffn=32,
        heads=heads, n_ctx_train=4096,
    )  # fmt: skip
    folder = write_tiny_checkpoint(tmp_path / "hf", spec)
    export(str(folder), out=tmp_path / "out", quant="F16")
    with load(tmp_path / "out", n_ctx=4096, cache_type="f16") as session:
        assert session.cache_bytes == 150_994_944
        session.prefill([1, 2, 3])
        assert session.cached_rows().shape == (32, 3, 576)


def test_cached_rows_are_the_latents_and_rope_keys_of_the_paper(
    bundle_of: Bundles, checkpoint_of: Checkpoints
) -> None:
    ids, spec = ids_of("wide_rope", 11), TINY_SHAPES["wide_rope"]
    reference = reference_of(checkpoint_of("wide_rope"))
    x = rms_norm(reference.embed(ids), reference._weight("blk.0.attn_norm.weight"), spec.eps)
    want = np.concatenate(mla.cache_rows(x, reference.layer_weights(0), spec), axis=-1)
    with load(bundle_of("wide_rope"), cache_type="f32") as session:
        session.prefill(ids)
        assert relative_error(session.cached_rows()[0], want) < 1e-5


# ---------------------------------------------------------------- protocol


def test_wrong_calls_are_refused_before_anything_is_appended(bundle_of: Bundles) -> None:
    with load(bundle_of("plain"), n_ctx=8) as session:
        session.prefill([1, 2, 3])
        cases = [
            (lambda: session.prefill([]), UsageError, "at least one token id"),
            (lambda: session.prefill([1, 333]), UsageError, "found 333"),
            (lambda: session.prefill([1, -1]), UsageError, "found -1"),
            (lambda: session.prefill([1.5]), UsageError, "expected token ids"),  # type: ignore[list-item]
            (lambda: session.prefill([1] * 6), ContextOverflow, "at most 8 tokens, found 3 \\+ 6"),
            (lambda: session.truncate(4), UsageError, "0 to 3"),
            (lambda: session.truncate(-1), UsageError, "0 to 3"),
        ]
        for call, error, message in cases:
            with pytest.raises(error, match=message):
                call()
            assert session.n_past == 3
        session.prefill([1] * 5)  # exactly full
        with pytest.raises(ContextOverflow):
            session.step(1)
        assert session.n_past == 8


def test_all_logits_above_the_stated_size_are_refused(
    bundle_of: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_session, "ALL_LOGITS_BYTES", 4 * 333 * 5)
    with load(bundle_of("plain")) as session:
        session.prefill([1] * 5, all_logits=True)
        with pytest.raises(UsageError, match="at most 5 tokens with all_logits"):
            session.prefill([1] * 6, all_logits=True)


def test_cancel_from_another_thread_stops_and_restores(bundle_of: Bundles) -> None:
    with load(bundle_of("plm"), isa="scalar", threads=1) as session:
        session.prefill([1, 2, 3])
        before = session.cached_rows().copy()
        stop = threading.Event()

        def keep_cancelling() -> None:
            while not stop.wait(0.001):
                session.cancel()

        thread = threading.Thread(target=keep_cancelling)
        thread.start()

        def prefill_until_it_is_cancelled() -> None:
            for _ in range(100):
                session.prefill(ids_of("plm", 100))
                session.truncate(3)

        with pytest.raises(Interrupted):
            prefill_until_it_is_cancelled()
        stop.set()
        thread.join()
        assert session.n_past == 3
        assert np.array_equal(session.cached_rows(), before)
        session.prefill(ids_of("plm", 5))  # and it goes on


def test_a_second_thread_gets_session_busy(bundle_of: Bundles) -> None:
    with load(bundle_of("plm"), isa="scalar", threads=1) as session:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                for _ in range(200):
                    session.prefill(ids_of("plm", 20))
                    session.truncate(0)
            except SessionBusy as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors


def test_a_busy_session_looks_at_nothing_else(bundle_of: Bundles) -> None:
    """What is checked before the lock is taken may be another thing once it is."""
    with load(bundle_of("plain"), n_ctx=8) as session:
        calls: tuple[Callable[[], object], ...] = (
            lambda: session.prefill([1] * 9),
            lambda: session.step(-1),
            lambda: session.truncate(4),
            session.close,
        )
        with session._running():
            for call in calls:
                with pytest.raises(SessionBusy):
                    call()
        session.prefill([1] * 8)  # still open


def test_a_session_outlives_its_closed_model(bundle_of: Bundles) -> None:
    with load(bundle_of("plain")) as session:
        want = session.prefill([1, 2, 3])
        session.model.close()
        session.reset()
        assert np.array_equal(session.prefill([1, 2, 3]), want)


def test_a_closed_session_says_so(bundle_of: Bundles) -> None:
    session = load(bundle_of("plain"))
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.prefill([1])


def test_a_session_that_nobody_closes_ends_its_threads(bundle_of: Bundles) -> None:
    """They live in memory that goes with it."""
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    session = load(bundle_of("plain"), n_ctx=8, threads=3)
    session.prefill([1])
    assert len(list(tasks.iterdir())) == before + 2
    del session
    assert len(list(tasks.iterdir())) == before


def test_a_session_that_cannot_be_is_refused(bundle_of: Bundles) -> None:
    with load(bundle_of("plain")) as session:
        with pytest.raises(UnsupportedError, match="'avx9'"):
            session.model.session(isa="avx9")
        with pytest.raises(UsageError, match="at least 1 token, found 0"):
            session.model.session(n_ctx=0)
        with pytest.raises(UsageError, match="1 to 256 threads, found 257"):
            session.model.session(threads=257)


# ---------------------------------------------------------------- on disk


def test_a_saved_session_goes_on_where_it_was(bundle_of: Bundles, tmp_path: Path) -> None:
    ids, file = ids_of("plain", 12), tmp_path / "s.plms"
    with load(bundle_of("plain")) as session:
        session.prefill(ids)
        session.save(file)
        want = session.step(7)
    with load(bundle_of("plain")) as session:
        session.prefill([9, 9, 9])
        session.restore(file)
        assert session.ids == tuple(ids)
        assert np.array_equal(session.step(7), want)


def test_what_is_no_plain_file_is_no_saved_session(bundle_of: Bundles, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with load(bundle_of("plain")) as session:
        session.prefill([1, 2, 3])
        for path in (tmp_path / "fifo", Path(os.devnull)):
            with pytest.raises(FileFormatError, match="expected a plain file"):
                session.restore(path)
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(OutputError, match="cannot read"):
                session.restore(path)
        assert session.ids == (1, 2, 3)


def test_a_file_larger_than_any_session_is_not_read(bundle_of: Bundles, tmp_path: Path) -> None:
    file = tmp_path / "s.plms"
    with load(bundle_of("plain")) as session:
        session.prefill([1, 2, 3])
        session.save(file)
        most = 16 + 2**26 + session.cache_bytes
        os.truncate(file, most)  # a hole; its last rows are not those that were saved
        with pytest.raises(FileFormatError, match="damaged file"):
            session.restore(file)
        os.truncate(file, most + 1)
        with pytest.raises(FileFormatError, match=f"at most 128 tokens, {most} bytes, found"):
            session.restore(file)
        os.truncate(file, 2**40)  # more than memory holds
        with pytest.raises(FileFormatError, match="at most 128 tokens"):
            session.restore(file)


def test_a_saved_session_is_bound_to_its_weights(bundle_of: Bundles, tmp_path: Path) -> None:
    file = tmp_path / "s.plms"
    with load(bundle_of("plain")) as session:
        session.prefill([1, 2, 3])
        session.save(file)
        whole = file.read_bytes()
        for at in (0, 5, 20, len(whole) // 2, len(whole) - 1):
            torn = bytearray(whole)
            torn[at] ^= 1
            file.write_bytes(torn)
            with pytest.raises(FileFormatError):
                session.restore(file)
            assert session.ids == (1, 2, 3)
        for size in (0, 10, 40, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(FileFormatError):
                session.restore(file)
        file.write_bytes(whole)
    with load(bundle_of("plain", "F16")) as other, pytest.raises(FileFormatError, match="weights"):
        other.restore(file)
    with (
        load(bundle_of("plain"), cache_type="f32") as other,
        pytest.raises(FileFormatError, match="cache_type"),
    ):
        other.restore(file)
