"""Rows of a matrix into blocks, with what is known of its inputs or without."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import NumericalError
from plm_edge.exporters.quantize.blocks import BLOCKS
from plm_edge.exporters.quantize.feedback import Chosen, Factor, Float32, round_run
from plm_edge.formats import quantize

_MOST = 65504.0  # of a weight: the largest F16, which leaves room for scales and what is made good


def quantize_rows(
    fmt: str, rows: Float32, known: Factor | None, first_row: int = 0
) -> NDArray[np.uint8]:
    """Pack rows (rows, cols) into (rows, row bytes); each row by itself.

    Without `known` every input counts alike and no error is made good. Raises NumericalError naming
    the row; `first_row` is where a block of rows starts in its matrix.
    """
    good = (np.abs(rows) <= _MOST).all(axis=1)  # NaN is not
    if not good.all():
        row = int(np.argmin(good))
        raise NumericalError(
            f"row {first_row + row}: expected numbers of at most {_MOST:.0f}, found "
            f"{np.abs(rows[row]).max():.6g}"
        )
    blocks = BLOCKS[fmt]
    width, cols = blocks.part * blocks.parts, rows.shape[1]
    weights = known.weights if known is not None else np.ones(cols, np.float32)
    lost = np.zeros_like(rows)  # what is stored of later columns falls short of them
    packed: list[NDArray[np.uint8]] = []

    def target(start: int, stop: int) -> Float32:
        if known is None or stop == cols:
            return rows[:, start:stop]
        made_good: Float32 = rows[:, start:stop] + lost[:, stop:] @ known.lower[stop:, start:stop]
        return made_good

    for block in range(cols - width, -1, -width):
        shared = blocks.shared(target(block, block + width), weights[block : block + width])
        parts: list[Chosen] = []
        for start in range(block + width - blocks.part, block - 1, -blocks.part):
            stop = start + blocks.part
            wanted, here = target(start, stop), weights[start:stop]
            scales = blocks.scales(wanted, here, shared)
            lower = known.lower[start:stop, start:stop] if known is not None else None
            part = round_run(rows[:, start:stop], wanted, scales, blocks.limits, lower, here)
            lost[:, start:stop] = rows[:, start:stop] - part.values
            parts.insert(0, part)
        quants = np.concatenate([part.quants for part in parts], axis=1)
        codes = np.stack([part.codes for part in parts], axis=1)  # (rows, parts, codes)
        packed.insert(0, blocks.pack(quants, codes, shared))
    return np.concatenate(packed, axis=1)


def round_to_nearest(fmt: str, rows: Float32, first_row: int = 0) -> NDArray[np.uint8]:
    """Rows in blocks without a text: as ggml rounds, but Q4_K and Q6_K by the rule above."""
    if fmt in ("Q4_K", "Q6_K"):
        return quantize_rows(fmt, rows, None, first_row)
    return quantize(fmt, rows, first_row)
