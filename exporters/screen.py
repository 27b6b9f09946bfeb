"""The screened head of an export: its axes from a calibration text, its size from what they miss.

The axes are the leading eigenvectors of the second moment of the last hidden states, after the
output norm. They are made from three of four windows of the text; the windows left out say how many
tiles hold the likeliest token every time, and twice as many are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge import head_screen
from plm_edge.arrangements import TILE
from plm_edge.errors import NumericalError, UsageError
from plm_edge.exporters.source import Source
from plm_edge.formats import dequantize, quantize
from plm_edge.spec import ModelSpec
from plm_edge.tensors import head_name

Float32 = NDArray[np.float32]

# (GGUF file, text) -> last hidden states after the output norm (T, d_model), in windows of WINDOW
# tokens that do not know of each other.
States = Callable[[Path, str], Float32]

WINDOW = 128  # tokens
MOST_TOKENS = 8192  # of a calibration text
FEWEST_WINDOWS = 16
_LEFT_OUT = 4  # every fourth window counts misses
_MARGIN = 2  # times the tiles those windows needed: 2,048 tokens do not show how rare a miss is
_ROWS = 4096  # of the head in memory at once, as floats: 34 MB at d_model 2,048
_STEP = 32  # tiles to read are a multiple of this
SYNTH_TILES = 512  # of random weights, where nothing can be calibrated; see docs/decisions.md


@dataclass(frozen=True)
class HeadRows:
    """The head's rows as the file stores them, since these are the rows that decide."""

    vocab: int
    read: Callable[[int, int], Float32]  # (start, stop) -> (stop - start, d_model)


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


def from_states(head: HeadRows, width: int, states: Float32) -> Screen:
    """`width` axes, and how many tiles to read, from states (T, d_model) of whole windows."""
    windows = len(states) // WINDOW
    if windows < FEWEST_WINDOWS:
        raise UsageError(
            f"expected a calibration text of at least {FEWEST_WINDOWS * WINDOW} tokens, found "
            f"{len(states)}; give a longer one"
        )
    if not np.isfinite(states).all():
        raise NumericalError("expected finite hidden states, found NaN or infinity; check the file")
    left_out = np.arange(len(states)) // WINDOW % _LEFT_OUT == _LEFT_OUT - 1
    rotation = leading_axes(states[~left_out], width)
    missed = ranks(head, rotation, states[left_out]).max()
    tiles = -(-_MARGIN * (int(missed) + 1) // _STEP) * _STEP
    return Screen(rotation, min(tiles, -(-head.vocab // TILE)))


def leading_axes(states: Float32, width: int) -> Float32:
    """The `width` directions (width, d_model) in which states (T, d_model) are largest."""
    exact = states.astype(np.float64)
    _, vectors = np.linalg.eigh(exact.T @ exact / len(exact))  # weakest first
    axes = vectors[:, ::-1][:, :width].T
    strongest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[np.arange(width), strongest])  # an eigenvector has none of its own
    rotation: Float32 = (axes * signs[:, None]).astype(np.float32)
    return rotation


def random_screen(spec: ModelSpec, seed: int) -> Screen:
    """Random orthogonal axes, to measure speed with."""
    state = np.random.SFC64([seed, *head_screen.ROTATION.encode()])
    drawn = np.random.Generator(state).standard_normal((spec.d_model, head_screen.width(spec)))
    axes, _ = np.linalg.qr(drawn)
    return Screen(axes.T.astype(np.float32), min(SYNTH_TILES, head_screen.tiles_of(spec)))


def screened(source: Source, fmt: str, screen: Screen) -> Source:
    """The source with the two tensors of the screened head, made when they are asked for."""
    given, head = source.packed_rows, head_rows(source, fmt)

    def packed_rows(name: str, as_fmt: str, start: int, stop: int) -> NDArray[np.uint8]:
        if name == head_screen.ROTATION:
            return quantize(as_fmt, screen.rotation[start:stop])
        if name == head_screen.COARSE:
            return quantize(as_fmt, head.read(start, stop) @ screen.rotation.T, first_row=start)
        return given(name, as_fmt, start, stop)

    vocabulary = {**source.vocabulary, head_screen.TILES_KEY: screen.tiles}
    return replace(source, packed_rows=packed_rows, vocabulary=vocabulary)


def head_rows(source: Source, fmt: str) -> HeadRows:
    """Those of a source whose head is stored in `fmt`."""
    spec, name = source.spec, head_name(source.spec)

    def read(start: int, stop: int) -> Float32:
        return dequantize(fmt, source.packed_rows(name, fmt, start, stop), spec.d_model)

    return HeadRows(spec.vocab, read)


def ranks(head: HeadRows, rotation: Float32, states: Float32) -> NDArray[np.int64]:
    """For each state (T, d_model): how many tiles look better than the likeliest token's (T,)."""
    rotated, every = states @ rotation.T, np.arange(len(states))  # (T, k)
    top = np.full(len(states), -np.inf, np.float32)
    token = np.zeros(len(states), np.int64)
    peaks = []
    for start in range(0, head.vocab, _ROWS):
        rows = head.read(start, min(start + _ROWS, head.vocab))
        logits = states @ rows.T  # (T, rows)
        best = logits.argmax(axis=1)
        highest = logits[every, best]
        token = np.where(highest > top, start + best, token)
        top = np.maximum(top, highest)
        coarse = rotated @ coarse_rows(rows, rotation).T
        padding = ((0, 0), (0, -len(rows) % TILE))
        tiles = np.pad(coarse, padding, constant_values=-np.inf).reshape(len(states), -1, TILE)
        peaks.append(tiles.max(axis=2))
    peak = np.concatenate(peaks, axis=1)  # (T, tiles)
    better: NDArray[np.int64] = (peak > peak[every, token // TILE][:, None]).sum(axis=1)
    return better


def coarse_rows(rows: Float32, rotation: Float32) -> Float32:
    """Rows of the head (n, d_model) as the coarse head holds them (n, k)."""
    fmt = head_screen.FORMATS[head_screen.COARSE]
    return dequantize(fmt, quantize(fmt, rows @ rotation.T), len(rotation))


def windows_of(ids: Sequence[int]) -> list[Sequence[int]]:
    """Whole windows of a text's ids, at most MOST_TOKENS."""
    most = min(len(ids), MOST_TOKENS) // WINDOW * WINDOW
    return [ids[start : start + WINDOW] for start in range(0, most, WINDOW)]
