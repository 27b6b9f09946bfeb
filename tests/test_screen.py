"""The screened head: what it keeps exactly, what it misses, how a file carries it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from metrics import kl, log_softmax
from numpy.typing import NDArray
from tiny import TINY_SHAPES

import plm_edge
from plm_edge import head_screen
from plm_edge.arrangements import TILE
from plm_edge.bundle import MODEL_FILE, read_bundle
from plm_edge.cli.calibrate import export, hidden_states
from plm_edge.cli.texts import CALIBRATION as TEXT
from plm_edge.errors import (
    FileFormatError,
    NumericalError,
    UnsupportedError,
    UsageError,
)
from plm_edge.exporters.relayout import relayout
from plm_edge.exporters.screen import (
    WINDOW,
    HeadRows,
    from_states,
    leading_axes,
    random_screen,
    ranks,
)
from plm_edge.exporters.synth import SHAPES, synth
from plm_edge.gguf_weights import GgufWeights
from plm_edge.layouts import file_tensors
from plm_edge.planned import Plan
from plm_edge.quant_plan import choose_formats
from plm_edge.runtime import Model, Session, load
from plm_edge.runtime.bench import subject

Float32 = NDArray[np.float32]
HELD_OUT = subject.TEXT


# ---- the axes


def spread_states(tokens: int, width: int, strong: int) -> Float32:
    """States that lie in `strong` directions but for a hundredth."""
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    size = np.where(np.arange(width) < strong, 1.0, 0.01)
    return (rng.normal(size=(tokens, width)) * size @ axes.T).astype(np.float32)


def test_leading_axes_hold_what_the_states_hold() -> None:
    states = spread_states(1000, 64, 20)
    axes = leading_axes(states, 32)
    np.testing.assert_allclose(axes @ axes.T, np.eye(32), atol=1e-5)
    lost = np.linalg.norm(states - states @ axes.T @ axes) / np.linalg.norm(states)
    assert lost < 0.02
    plain = np.eye(64, dtype=np.float32)[:32]
    assert np.linalg.norm(states - states @ plain.T @ plain) / np.linalg.norm(states) > 0.3


def test_tiles_are_what_the_windows_left_out_need() -> None:
    rows = np.random.default_rng(1).normal(size=(4000, 64)).astype(np.float32)
    head = HeadRows(4000, lambda start, stop: rows[start:stop])
    states = spread_states(16 * WINDOW, 64, 40)
    screen = from_states(head, 32, states)
    left_out = np.arange(len(states)) // WINDOW % 4 == 3
    missed = ranks(head, screen.rotation, states[left_out])
    assert screen.tiles == min(-(-2 * (missed.max() + 1) // 32) * 32, 250)
    coarse = states @ screen.rotation.T @ (rows @ screen.rotation.T).T  # not rounded to 4 bits
    peaks = coarse.reshape(len(states), -1, TILE).max(axis=2)
    own = peaks[np.arange(len(states)), (states @ rows.T).argmax(axis=1) // TILE]
    close = (peaks > own[:, None]).sum(axis=1)
    assert np.abs(close - ranks(head, screen.rotation, states)).mean() < 5
    worse = ranks(head, np.eye(64, dtype=np.float32)[:32], states[left_out])
    assert worse.mean() > 2 * missed.mean()


def test_states_that_cannot_be_are_refused() -> None:
    head = HeadRows(16, lambda start, stop: np.zeros((stop - start, 64), np.float32))
    with pytest.raises(UsageError, match="at least 2048 tokens, found 2047; give a longer one"):
        from_states(head, 32, np.zeros((2047, 64), np.float32))
    with pytest.raises(NumericalError, match="found NaN or infinity"):
        from_states(head, 32, np.full((2048, 64), np.nan, np.float32))


def test_random_axes_are_orthogonal_and_seeded() -> None:
    spec = SHAPES["plm-tiny"].spec
    one, again, other = (random_screen(spec, seed).rotation for seed in (1, 1, 2))
    np.testing.assert_allclose(one @ one.T, np.eye(head_screen.width(spec)), atol=1e-5)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


# ---- the demo model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("screened") / "demo"
    export("demo", out=out, quant="Q8_0", head="screened")
    return out


@pytest.fixture(scope="module")
def full(bundle: Path) -> Iterator[Session]:
    with load(bundle) as session:
        yield session


@pytest.fixture(scope="module")
def logits(full: Session) -> tuple[Float32, Float32]:
    """Held-out text in windows of 256: logits of the full and the screened head, step by step."""
    ids = full.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"))[:2304]
    found: tuple[list[Float32], list[Float32]] = ([], [])
    with full.model.session(256, head="screened") as screened:
        for start in range(0, len(ids), 256):
            for session, rows in zip((full, screened), found, strict=True):
                session.reset()
                rows += [session.step(i) for i in ids[start : start + 256]]
    return np.stack(found[0]), np.stack(found[1])


def test_what_is_read_is_exact(full: Session, logits: tuple[Float32, Float32]) -> None:
    want, got = logits
    assert full.model.screen_tiles is not None
    same = (want == got).reshape(len(want), -1, TILE).all(axis=2).sum(axis=1)
    assert same.min() >= full.model.screen_tiles
    assert same.max() < head_screen.tiles_of(full.spec) * 3 // 4


def test_the_likeliest_token_is_found(logits: tuple[Float32, Float32]) -> None:
    want, got = logits
    assert len(want) >= 2048
    assert (want.argmax(axis=1) == got.argmax(axis=1)).mean() >= 0.999


def test_the_estimated_mass_is_close(logits: tuple[Float32, Float32]) -> None:
    """KL 0.014 nats; without the rows outside it is infinite."""
    want, got = logits
    assert kl(want, got) < 0.02
    outside = want != got
    true, estimated = (
        np.where(outside, np.exp(log_softmax(x)), 0.0).sum(axis=1) for x in (want, got)
    )
    assert true.mean() > 0.02
    assert abs(estimated.mean() - true.mean()) < 0.01
    assert kl(want, np.where(outside, got + 1.0, got)) > 0.02  # the bar would see another level


def test_prefill_and_steps_agree(full: Session) -> None:
    ids = full.tokenizer.encode("Once upon a time there was a fox")
    with full.model.session(64, "f32", head="screened") as session:
        last = session.prefill(ids)
        every = session.prefill(ids, all_logits=True)
        session.truncate(len(ids))
        session.reset()
        for i in ids:
            stepped = session.step(i)
        session.reset()
        np.testing.assert_array_equal(session.prefill(ids), last)
        assert np.abs(stepped - last).max() < 1e-3
    with full.model.session(64, "f32") as session:
        session.prefill(ids)
        np.testing.assert_array_equal(session.prefill(ids, all_logits=True), every)


def test_hidden_states_are_what_the_head_multiplies(full: Session) -> None:
    ids = full.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"))[:300]
    head = GgufWeights(full.model.path).read("token_embd.weight")
    full.reset()
    states = full.hidden_states(ids)
    full.reset()
    want = full.prefill(ids, all_logits=True)
    assert np.abs(states @ head.T - want).max() / np.abs(want).max() < 1e-3
    assert full.n_past == len(ids)


def test_fewer_bytes_are_read(full: Session) -> None:
    spec, tiles = full.spec, full.model.screen_tiles
    assert tiles is not None
    with full.model.session(512, head="screened") as screened:
        for session in (full, screened):
            session.reset()
            session.step(1)
        # the active units are the same
        saved = full.bytes_read - screened.bytes_read
    head = full.model.head.data.nbytes - tiles * TILE * spec.d_model // 32 * 34
    k = head_screen.width(spec)
    assert saved == head - 2 * k * spec.d_model - spec.vocab * k // 32 * 18


# ---- files


def test_the_plan_counts_every_byte(bundle: Path, full: Session) -> None:
    plan = Plan.from_dict(read_bundle(bundle).plan)
    assert plan.budget.weights == full.model.weight_bytes
    assert plan.budget.scratch == full.workspace_bytes
    tensors = file_tensors("latent", full.spec, plan.formats)
    spec, k = full.spec, head_screen.width(full.spec)
    assert [(t.name, t.format, t.file_shape) for t in tensors[-2:]] == [
        (head_screen.ROTATION, "F16", (k, spec.d_model)),
        (head_screen.COARSE, "Q4_0", (spec.vocab, k)),
    ]
    assert plan.budget.weights > sum(t.nbytes for t in tensors[:-2])


def test_the_same_export_gives_the_same_bytes(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    def exported(name: str, text: Path) -> bytes:
        out = tmp_path / name
        export(checkpoint_of("blocks"), out=out, quant="Q4_0", head="screened", calibration=text)
        files = ["manifest.json", MODEL_FILE, "quantization.json"]
        assert sorted(path.name for path in out.iterdir()) == files
        return (out / MODEL_FILE).read_bytes()

    one = exported("one", TEXT)
    assert exported("two", TEXT) == one
    assert exported("other", HELD_OUT) != one


def test_the_file_is_that_of_a_full_head_and_more(bundle: Path, tmp_path: Path) -> None:
    export("demo", out=tmp_path / "full", quant="Q8_0")
    more, less = (gguf.GGUFReader(folder / MODEL_FILE) for folder in (bundle, tmp_path / "full"))
    assert set(more.fields) - set(less.fields) == {head_screen.TILES_KEY}
    known = {tensor.name: tensor for tensor in more.tensors}
    for tensor in less.tensors:
        np.testing.assert_array_equal(known.pop(tensor.name).data, tensor.data)
    assert set(known) == {f"{name}.tile16x4" for name in head_screen.FORMATS}


def rewritten(bundle: Path, out: Path, edit: Callable[[bytearray, Model], None]) -> Path:
    """A copy of the bundle's GGUF file with some bytes changed."""
    model = Model(bundle / MODEL_FILE)
    data = bytearray((bundle / MODEL_FILE).read_bytes())
    edit(data, model)
    model.close()
    out.write_bytes(data)
    return out


def rename(old: str, new: str) -> Callable[[bytearray, Any], None]:
    def edit(data: bytearray, _: Any) -> None:
        assert len(old) == len(new)
        assert data.count(old.encode()) == 1
        at = data.index(old.encode())
        data[at : at + len(old)] = new.encode()

    return edit


def tiles(value: int) -> Callable[[bytearray, Any], None]:
    def edit(data: bytearray, _: Any) -> None:
        at = data.index(head_screen.TILES_KEY.encode()) + len(head_screen.TILES_KEY) + 4
        data[at : at + 4] = value.to_bytes(4, "little")

    return edit


def kind(name: str, old: int, new: int) -> Callable[[bytearray, Any], None]:
    """Another ggml type of a tensor of two dimensions."""

    def edit(data: bytearray, _: Any) -> None:
        at = data.index(f"{name}.tile16x4".encode()) + len(name) + 9 + 4 + 16
        assert data[at] == old
        data[at] = new

    return edit


@pytest.mark.parametrize(("edit", "said"), [
    (rename("head_screen_rotation.weight.tile16x4", "head_screen_totation.weight.tile16x4"),
     "expected tensor head_screen_rotation.weight.tile16x4, found none"),
    (rename("head_screen.weight.tile16x4", "head_scream.weight.tile16x4"),
     "expected tensor head_screen.weight.tile16x4, found none"),
    (rename("plm_edge.head_screen.tiles", "plm_edge.head_screen.titles"[:26]),
     "expected plm_edge.head_screen.tiles of 1 to 256, found None"),
    (tiles(0), "of 1 to 256, found 0"),
    (tiles(257), "of 1 to 256, found 257"),
    (kind(head_screen.ROTATION, 1, 30), "as F16, found BF16"),
])  # fmt: skip
def test_a_damaged_screen_is_refused(
    bundle: Path, tmp_path: Path, edit: Callable[[bytearray, Any], None], said: str
) -> None:
    file = rewritten(bundle, tmp_path / "bent.gguf", edit)
    with pytest.raises(FileFormatError, match=said):
        Model(file)
    Model(rewritten(bundle, tmp_path / "good.gguf", lambda data, model: None)).close()


def test_a_file_without_it_is_refused(bundle_of: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="found the full one alone; export the model with"):
        load(bundle_of("plain"), head="screened")
    with pytest.raises(UsageError, match="expected a head of full, screened, found 'half'"):
        load(bundle_of("plain"), head="half")


def test_what_cannot_be_exported(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    out, plain = tmp_path / "out", checkpoint_of("plain")
    with pytest.raises(UnsupportedError, match="layout plm: expected the full head alone"):
        export(plain, out=out, layout="plm", head="screened")
    with pytest.raises(UsageError, match="found 'half'"):
        export(plain, out=out, head="half")
    with pytest.raises(UsageError, match="found no file"):
        export(plain, out=out, head="screened", calibration=tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("once upon a time")
    with pytest.raises(UsageError, match=r"at least \d+ tokens, found \d+; give a longer one"):
        export(plain, out=out, head="screened", calibration=tmp_path / "short.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="expected UTF-8 text"):
        export(plain, out=out, head="screened", calibration=tmp_path / "latin.txt")
    with pytest.raises(UnsupportedError, match="a d_model of at least 32, found 20"):
        head_screen.width(replace(TINY_SHAPES["plain"], d_model=20))
    assert not out.exists()


def test_a_model_of_any_width_can_be_screened(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """A d_model of 33 and a head of its own: nothing is whole blocks or whole tiles."""
    for shape in ("one_head", "untied"):
        out = tmp_path / shape
        plm_edge.export(checkpoint_of(shape), out=out, quant="F16", head="screened")
        with load(out) as session, session.model.session(head="screened") as screened:
            want, got = session.prefill([1, 2, 3]), screened.prefill([1, 2, 3])
            assert session.model.screen_tiles is not None
            assert (want == got).sum() >= session.model.screen_tiles * TILE - TILE
            assert want.argmax() == got.argmax()


def test_another_layout_leaves_it_out(bundle: Path, tmp_path: Path) -> None:
    relayout(bundle / MODEL_FILE, "plm", tmp_path / "plm")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "plm" / MODEL_FILE).tensors}
    assert "token_embd.weight" in names
    assert not any("screen" in name for name in names)


def test_synth_takes_random_axes(tmp_path: Path) -> None:
    synth("plm-tiny", tmp_path / "one", screen=True)
    synth("plm-tiny", tmp_path / "two", screen=True)
    one, two = ((tmp_path / name / MODEL_FILE).read_bytes() for name in ("one", "two"))
    assert one == two
    with load(tmp_path / "one", head="screened") as session:
        assert session.model.screen_tiles == head_screen.tiles_of(session.spec)
        assert np.isfinite(session.prefill([1, 2, 3])).all()


def test_formats_name_it_only_where_asked() -> None:
    spec = SHAPES["plm-1.8b"].spec
    plain = choose_formats(spec, "Q4_0")
    assert choose_formats(spec, "Q4_0", screened=True) == plain | head_screen.FORMATS
    assert head_screen.width(spec) == 704


def test_windows_start_afresh(bundle: Path) -> None:
    words = "once upon a time there was a fox in the wood and the fox said to the bear " * 60
    states = hidden_states(bundle / MODEL_FILE, words)
    assert len(states) % WINDOW == 0
    assert len(states) >= 2 * WINDOW
    twice = hidden_states(bundle / MODEL_FILE, words + words)
    np.testing.assert_array_equal(twice[: len(states)], states)


def test_the_command_line_takes_it(
    bundle: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("plm-edge"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    chat = ("-p", "Tell me a tale", "-n", 12, "--temp", 0, "--head")
    told = [ran("chat", bundle, *chat, head) for head in ("full", "screened")]
    assert told[0].stdout == told[1].stdout != "\n"
    assert [done.returncode for done in told] == [0, 0]
    out, tiny = tmp_path / "out", checkpoint_of("blocks")
    export = ("export", tiny, "--target", "host", "-o", out)
    done = ran(*export, "--head", "screened")
    assert done.returncode == 0, done.stderr
    assert ran("chat", out, "-p", "a", "-n", 1, "--head", "screened").returncode == 0
    assert ran(*export, "--force").returncode == 0
    refused = ran("chat", out, "-p", "a", "--head", "screened")
    assert (refused.returncode, refused.stdout) == (6, "")
    assert refused.stderr.count("\n") == 1
    assert "found the full one alone" in refused.stderr
    made = ran("synth", "--shape", "plm-tiny", "--head", "screened", "-o", tmp_path / "made")
    assert made.returncode == 0, made.stderr
    with load(tmp_path / "made", head="screened") as session:
        assert session.head == "screened"
    assert ran("synth", "--shape", "plm-tiny", "--head", "none", "-o", out).returncode == 2
