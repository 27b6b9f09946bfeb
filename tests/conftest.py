"""Bundles of tiny checkpoints, made once a run through the public export."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.exporters import export

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
