"""The llama backend: a session like the native one, on llama.cpp."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from llama_peer import MISSING
from metrics import close, kl, relative_error
from tiny import TINY_SHAPES, write_tiny_checkpoint

import plm_edge
from plm_edge.bundle import MODEL_FILE
from plm_edge.errors import ContextOverflow, Interrupted, SessionBusy, UnsupportedError, UsageError
from plm_edge.runtime.llama_session import LlamaSession
from plm_edge.runtime.sampler import Sampler

pytest.importorskip("llama_cpp", reason=MISSING)

IDS: list[int] = np.random.default_rng(5).integers(0, 300, 70).tolist()
LAYOUTS = ("plm", "deepseek2")
# F16 cache and, in deepseek2, flash attention: 5e-4 seen. With a cache in F32 neither.
TOLERANCE = {"f16": 2e-3, "f32": 1e-4}

Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A function (layout, quant, source) -> the folder it was exported into."""
    root = tmp_path_factory.mktemp("llama")
    tiny = write_tiny_checkpoint(root / "tiny", TINY_SHAPES["plm"], seed=7)

    @cache
    def exported(layout: str, quant: str = "F32", source: str = "tiny") -> Path:
        out = root / f"{source}-{quant}-{layout}"
        given = str(tiny) if source == "tiny" else source
        plm_edge.export(given, out=out, quant=quant, layout=layout)
        return out

    return exported


def opened(folder: Path, **asked: object) -> LlamaSession:
    session = plm_edge.load(folder, "llama", **asked)  # type: ignore[arg-type]
    assert isinstance(session, LlamaSession)
    return session


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache_type", TOLERANCE)
def test_logits_are_those_of_the_native_session(
    bundle: Bundle, layout: str, cache_type: str
) -> None:
    tolerance = TOLERANCE[cache_type]
    with plm_edge.load(bundle("latent"), cache_type="f32") as session:
        want = session.prefill(IDS, all_logits=True)
    with opened(bundle(layout), cache_type=cache_type) as session:
        assert session.flash == (layout == "deepseek2" and cache_type == "f16")
        rows = session.prefill(IDS, all_logits=True)  # in calls of 32
        close(rows, want, tolerance)
        session.truncate(40)
        close(session.step(IDS[40]), want[40], tolerance)
        close(session.prefill(IDS[41:]), want[-1], tolerance)
        assert session.ids == tuple(IDS)
        session.reset()
        assert session.n_past == 0
        close(session.prefill(IDS[:3]), want[2], tolerance)
        assert relative_error(rows[1:], want[:-1]) > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cache_is_what_llama_cpp_reports(bundle: Bundle, layout: str) -> None:
    """The state of a full context is the cache, and some bytes a cell."""
    with opened(bundle(layout), n_ctx=256, force=True) as session:
        assert session.cache_bytes == 2 * 256 * 2 * {"plm": 2 * 320, "deepseek2": 576}[layout]
        session.prefill(IDS[:1] * 256)
        assert session.cache_bytes < session.state_bytes < 1.02 * session.cache_bytes


def test_a_cache_in_q8_0(bundle: Bundle) -> None:
    with plm_edge.load(bundle("latent", "F16", "demo")) as session:
        want = session.prefill(IDS, all_logits=True)
    for layout in LAYOUTS:
        with opened(bundle(layout, "F16", "demo"), cache_type="q8_0") as session:
            assert kl(want, session.prefill(IDS, all_logits=True)) < 1e-4


def test_wrong_calls_leave_it_as_it_was(bundle: Bundle) -> None:
    with opened(bundle("deepseek2"), n_ctx=32) as session:
        first = session.prefill(IDS[:9])
        for wrong, error in (
            (lambda: session.prefill([]), UsageError),
            (lambda: session.step(384), UsageError),
            (lambda: session.prefill(IDS[:24]), ContextOverflow),
            (lambda: session.truncate(10), UsageError),
            (lambda: session.save("x"), UnsupportedError),
        ):
            with pytest.raises(error):
                wrong()
            assert session.ids == tuple(IDS[:9])
        session.truncate(8)
        close(session.step(IDS[8]), first, 2e-3)
    with pytest.raises(UsageError, match="closed"):
        session.step(1)
    session.close()


def test_a_second_sequence_on_the_same_weights(bundle: Bundle) -> None:
    with opened(bundle("deepseek2")) as one, one.model.session(n_ctx=64) as two:
        want = one.prefill(IDS[:20])
        two.prefill(IDS[30:40])
        close(one.step(IDS[20]), opened_step(bundle), 1e-6)
        two.reset()
        close(two.prefill(IDS[:20]), want, 1e-6)


def opened_step(bundle: Bundle) -> np.ndarray:
    with opened(bundle("deepseek2")) as session:
        session.prefill(IDS[:20])
        return session.step(IDS[20])


def test_a_prompt_is_cancelled_from_another_thread(bundle: Bundle) -> None:
    """Between two operations of one call, which goes on long enough here."""
    with opened(bundle("deepseek2", "F32", "demo"), n_ctx=512) as session:
        session.prefill(IDS[:5])
        prompt = (IDS * 8)[:256]
        for delay in (0.002, 0.001, 0.004, 0.0005, 0.008, 0.0):
            timer = threading.Timer(delay, session.cancel)
            timer.start()
            try:
                session.prefill(prompt)
            except Interrupted:
                break
            finally:
                timer.join()
            session.truncate(5)
        else:
            pytest.fail("no prefill was cancelled")
        assert session.ids == tuple(IDS[:5])
        close(session.step(7), stepped(bundle), 2e-3)


def stepped(bundle: Bundle) -> np.ndarray:
    with opened(bundle("deepseek2", "F32", "demo"), n_ctx=512) as session:
        session.prefill(IDS[:5])
        return session.step(7)


def test_one_thread_at_a_time(bundle: Bundle) -> None:
    with opened(bundle("deepseek2")) as session, session._running(), pytest.raises(SessionBusy):
        session.step(1)


def test_a_chat_streams_and_counts(bundle: Bundle) -> None:
    messages = [{"role": "user", "content": "Tell me a tale about a fox"}]
    said = {}
    for layout, backend in (("latent", "native"), ("plm", "llama"), ("deepseek2", "auto")):
        with plm_edge.load(bundle(layout, "F32", "demo"), backend) as session:
            answer = plm_edge.chat(session, messages, 24, Sampler(temperature=0))
            pieces = list(answer)
            said[layout] = "".join(pieces)
            assert len(pieces) > 10
            stats = answer.stats
            assert (stats.generated_tokens, stats.reason) == (24, "length")
            assert stats.first_token_s is not None
            assert stats.tokens_per_s is not None
            again = plm_edge.chat(session, messages, 24, Sampler(temperature=0), lookup=True)
            assert "".join(again) == said[layout]
            assert again.stats.cached_tokens == again.stats.prompt_tokens - 1
    assert said["plm"] == said["deepseek2"] == said["latent"]


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("plm-edge"))
    env = {"XDG_CACHE_HOME": str(folder), "PATH": "", "HOME": str(folder)}
    command = [program, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_program(bundle: Bundle, tmp_path: Path) -> None:
    chat = ("-p", "Tell me a tale about a fox", "--temp", "0", "-n", "12")
    for model in ("demo", bundle("deepseek2", "Q8_0", "demo")):
        done = run(tmp_path, "chat", model, "--backend", "llama", *chat)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 20
        assert "answer 12 tokens" in done.stderr
        assert "llama_" not in done.stderr  # llama.cpp's own words
    gpu = run(tmp_path, "chat", "demo", "--backend", "llama", "-ngl", "4", *chat)
    assert gpu.returncode == 6
    assert "-ngl 4: expected a llama-cpp-python that was built for a GPU" in gpu.stderr
    native = run(tmp_path, "chat", "demo", "--backend", "native", "-ngl", "4", *chat)
    assert native.returncode == 6
    assert "it is for the llama backend" in native.stderr
    latent = bundle("latent", "Q8_0", "demo") / MODEL_FILE
    with pytest.raises(UnsupportedError, match="expected layout plm or deepseek2"):
        plm_edge.runtime.load(latent, "llama")
