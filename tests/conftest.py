"""Bundles of tiny checkpoints, made once a run through the public export; the command line."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, Ran, Run
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.cli import app
from plm_edge.exporters import export
from plm_edge.runtime import Session, load

# Tests send these to programs they start. A runner in the background has them ignored (`&` in a
# shell, nohup), and programs inherit that; one that has a handler here is at its default in them.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a tiny shape -> folder of its checkpoint (F32, seed 0)."""
    root = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def make(shape: str) -> Path:
        return write_tiny_checkpoint(root / shape, TINY_SHAPES[shape])

    return make


@pytest.fixture(scope="session")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]
) -> Callable[..., Path]:
    """(shape, quant="F32", layout="latent") -> bundle folder."""
    root = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def make(shape: str, quant: str, layout: str) -> Path:
        out = root / f"{shape}-{quant}-{layout}"
        export(str(checkpoint_of(shape)), out=out, quant=quant, layout=layout)
        return out

    def make_once(shape: str, quant: str = "F32", layout: str = "latent") -> Path:
        return make(shape, quant, layout)

    return make_once


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session on the demo model in Q8_0."""
    out = tmp_path_factory.mktemp("demo") / "out"
    export("demo", out=out, quant="Q8_0")
    with load(out) as session:
        yield session


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}


@pytest.fixture
def run(env: dict[str, str], tmp_path: Path) -> Run:
    def call(*arguments: object, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)], input=data, capture_output=True, env=env, cwd=tmp_path
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@pytest.fixture
def inside(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """As `run`, without a process of its own: ten times as fast."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["plm-edge", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.chdir(tmp_path)
        code = app._exit_code()
        return Ran(code, *capfd.readouterr())

    return call
