"""The screened head of an export: its axes from a calibration text, its size from what they miss.

The axes are the leading eigenvectors of the second moment of the last hidden states, after the
output norm. They are made from three of four windows of the text; the windows left out say how many
tiles have to be read so that the likeliest token was among them every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge import head_screen
from plm_edge.arrangements import TILE
from plm_edge.errors import NumericalError, UsageError
from plm_edge.exporters.source import PackedRows, Source
from plm_edge.formats import dequantize, quantize
from plm_edge.spec import ModelSpec

Float32 = NDArray[np.float32]

# (GGUF file, text) -> last hidden states after the output norm (T, d_model), in windows of WINDOW
# tokens that do not know of each other.
States = Callable[[Path, str], Float32]

WINDOW = 128  # tokens
MOST_TOKENS = 8192  # of a calibration text
FEWEST_WINDOWS = 16
_LEFT_OUT = 4  # every fourth window counts misses
_ROWS = 4096  # of the head in memory at once, as floats: 34 MB at d_model 2,048
_STEP = 32  # tiles to read are a multiple of this
SYNTH_TILES = 512  # of random weights, where nothing can be calibrated; see docs/decisions.md


@dataclass(frozen=True)
class Calibration:
    """A text, and how to see what a model makes of it; the caller knows a session, we do not."""

    text: str
    states: States


@dataclass(frozen=True)
class Screen:
    """What the screened head is made with."""

    rotation: Float32  # (k, d_model), rows of length 1
    tiles: int  # of 16 rows, read exactly


def from_states(spec: ModelSpec, packed_rows: PackedRows, fmt: str, states: Float32) -> Screen:
    """Axes and tiles from last hidden states (T, d_model) of whole windows.

    `fmt` is the format of the head, whose rows `packed_rows` gives.
    """
    windows = len(states) // WINDOW
    if windows < FEWEST_WINDOWS:
        raise UsageError(
            f"expected a calibration text of at least {FEWEST_WINDOWS * WINDOW} tokens, found "
            f"{len(states)}; give a longer one"
        )
    if not np.isfinite(states).all():
        raise NumericalError(
            "expected finite hidden states, found NaN or infinity; check the model"
        )
    left_out = np.arange(len(states)) // WINDOW % _LEFT_OUT == _LEFT_OUT - 1
    fit = states[~left_out].astype(np.float64)
    moment = fit.T @ fit / len(fit)  # (d_model, d_model)
    _, vectors = np.linalg.eigh(moment)  # ascending
    axes = vectors[:, ::-1][:, : head_screen.width(spec)].T
    strongest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[np.arange(len(axes)), strongest])  # eigenvectors have none of their own
    rotation = (axes * signs[:, None]).astype(np.float32)
    ranks = _ranks(spec, packed_rows, fmt, rotation, states[left_out])
    tiles = -(-(int(ranks.max()) + 1) // _STEP) * _STEP
    return Screen(rotation, min(tiles, head_screen.tiles_of(spec)))


def random_screen(spec: ModelSpec, seed: int) -> Screen:
    """Random orthogonal axes, to measure speed with."""
    state = np.random.SFC64([seed, *head_screen.ROTATION.encode()])
    drawn = np.random.Generator(state).standard_normal((spec.d_model, head_screen.width(spec)))
    axes, _ = np.linalg.qr(drawn)
    return Screen(axes.T.astype(np.float32), min(SYNTH_TILES, head_screen.tiles_of(spec)))


def screened(source: Source, fmt: str, screen: Screen) -> Source:
    """The source with the two tensors of the screened head, made when they are asked for."""
    head = source.packed_rows

    def packed_rows(name: str, as_fmt: str, start: int, stop: int) -> NDArray[np.uint8]:
        if name == head_screen.ROTATION:
            return quantize(as_fmt, screen.rotation[start:stop])
        if name == head_screen.COARSE:
            rows = _head_rows(source.spec, head, fmt, start, stop)
            return quantize(as_fmt, rows @ screen.rotation.T, first_row=start)
        return head(name, as_fmt, start, stop)

    vocabulary = {**source.vocabulary, head_screen.TILES_KEY: screen.tiles}
    return replace(source, packed_rows=packed_rows, vocabulary=vocabulary)


def _ranks(
    spec: ModelSpec, packed_rows: PackedRows, fmt: str, rotation: Float32, states: Float32
) -> NDArray[np.int64]:
    """For each state: how many tiles look better than the one with the likeliest token."""
    seen = states @ rotation.T  # (T, k)
    top = np.full(len(states), -np.inf, np.float32)
    token = np.zeros(len(states), np.int64)
    peaks = []
    for start, rows in _blocks(spec, packed_rows, fmt):
        logits = states @ rows.T  # (T, rows)
        best = logits.argmax(axis=1)
        highest = logits[np.arange(len(states)), best]
        token = np.where(highest > top, start + best, token)
        top = np.maximum(top, highest)
        stored = quantize(head_screen.FORMATS[head_screen.COARSE], rows @ rotation.T)
        coarse = seen @ dequantize("Q4_0", stored, len(rotation)).T
        short = -coarse.shape[1] % TILE
        padded = np.pad(coarse, ((0, 0), (0, short)), constant_values=-np.inf)
        peaks.append(padded.reshape(len(states), -1, TILE).max(axis=2))
    peak = np.concatenate(peaks, axis=1)  # (T, tiles)
    own = peak[np.arange(len(states)), token // TILE]
    ranks: NDArray[np.int64] = (peak > own[:, None]).sum(axis=1)
    return ranks


def _blocks(spec: ModelSpec, packed_rows: PackedRows, fmt: str) -> Iterator[tuple[int, Float32]]:
    for start in range(0, spec.vocab, _ROWS):
        stop = min(start + _ROWS, spec.vocab)
        yield start, _head_rows(spec, packed_rows, fmt, start, stop)


def _head_rows(
    spec: ModelSpec, packed_rows: PackedRows, fmt: str, start: int, stop: int
) -> Float32:
    """Rows of the head as the file stores them, since these are the rows that decide."""
    name = "token_embd.weight" if spec.tied else "output.weight"
    return dequantize(fmt, packed_rows(name, fmt, start, stop), spec.d_model)


def windows_of(ids: Sequence[int]) -> list[Sequence[int]]:
    """Whole windows of a text's ids, at most MOST_TOKENS."""
    most = min(len(ids), MOST_TOKENS) // WINDOW * WINDOW
    return [ids[start : start + WINDOW] for start in range(0, most, WINDOW)]
