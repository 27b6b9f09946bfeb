"""Quantization fitted to a text: errors that make each other good, formats where they matter.

    fitted = Fitted(checkpoint, Fitting(text, forward), ids of the text)
    formats = fitted.mix(bits=5.0)                  # or a plan's own
    source = replace(source, packed_rows=fitted.packed_rows)
    fitted.report                                   # what each tensor gained

The blocks are the very same formats: whoever reads them reads these files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import NumericalError, UsageError
from plm_edge.exporters.quantize.blocks import BLOCKS
from plm_edge.exporters.quantize.feedback import Factor, Float32, damped, factor
from plm_edge.exporters.quantize.mix import Choice, least_loss
from plm_edge.exporters.quantize.moments import MakeForward, Moments, Step, Windows
from plm_edge.exporters.quantize.rows import quantize_rows, round_to_nearest
from plm_edge.exporters.quantize.sensitivity import between, can_probe, measure, probed
from plm_edge.exporters.source import Weights, quantizing
from plm_edge.formats import dequantize, format_of
from plm_edge.quant_plan import fitting_format
from plm_edge.tensors import TensorInfo, head_name, tensor_table

WINDOW = 512  # tokens that know of each other, or as trained
TOKENS = 8192  # of the text that moments are made of
PROBE_WINDOW, PROBE_WINDOWS = 128, 4  # of the text behind them, for sensitivities
MIXED = ("Q4_0", "Q4_K", "Q6_K", "Q8_0")  # what a mix is made of
_MOST_BITS = 16.0
_DAMPING = 0.02  # of the mean input power, added to each input; docs/decisions.md
_TIED_DAMPING = 0.3  # of a head that is the embedding too, whose values count by themselves
_SAMPLE = 64  # rows of a matrix whose errors are measured


@dataclass(frozen=True)
class Fitting:
    """A text, and a forward pass to see what matrices multiply in it; the caller brings both."""

    text: str
    forward: MakeForward
    step: Step = lambda said: None


@dataclass(frozen=True)
class Gain:
    """What fitting did to a tensor: error of its product over the product, in mean squares."""

    format: str
    bits: float  # of a weight
    rounded: float  # to the nearest
    fitted: float
    kl: float | None = None  # what it costs the logits, in nats, where that was measured


class Fitted:
    """Float weights that become blocks when asked, fitted to the ids of a text."""

    def __init__(self, weights: Weights, fitting: Fitting, ids: Sequence[int]) -> None:
        self._weights, self._spec, self._fitting = weights, weights.spec, fitting
        window = min(WINDOW, self._spec.n_ctx_train)
        used = min(TOKENS, len(ids) * 3 // 4)
        windows, self._rest = _windows(ids[:used], window), ids[used:]
        if not windows:
            raise UsageError(
                f"expected a calibration text of at least {-(-4 * window // 3)} tokens, found "
                f"{len(ids)}; give a longer one"
            )
        self.tokens = len(windows) * window
        forward = fitting.forward(weights)
        self._moments = Moments(forward, self._spec, windows, fitting.step)
        self._factors: dict[str, Factor | None] = {}  # of the tensor that is being written
        self._rounded = quantizing(weights)
        self._kl: dict[str, dict[str, float]] = {}  # name -> format -> estimate
        self.report: dict[str, Gain] = {}

    def report_json(self) -> bytes:
        """What each tensor gained, as a file."""
        about = {"tokens": self.tokens, "tensors": {n: asdict(g) for n, g in self.report.items()}}
        return (json.dumps(about, indent=1) + "\n").encode()

    def packed_rows(self, name: str, fmt: str, start: int, stop: int) -> NDArray[np.uint8]:
        """As a Source's; what is not a matrix of blocks is not fitted."""
        if fmt not in BLOCKS or not tensor_table(self._spec)[name].quantize:
            return self._rounded(name, fmt, start, stop)
        if name not in self.report:
            self.report[name] = self._gain(name, fmt)
        rows = self._weights.read_rows(name, start, stop)
        try:
            return quantize_rows(fmt, rows, self._factor(name), start)
        except NumericalError as why:
            raise NumericalError(f"{name}, {why}; choose another format or checkpoint") from None

    def mix(self, bits: float, among: Sequence[str] = MIXED) -> dict[str, str]:
        """Canonical name -> format of `among`: the least KL at `bits` a weight, as measured.

        Raises UsageError where the formats there are cannot be that small.
        """
        table = tensor_table(self._spec)
        fixed = {n: "F32" for n, info in table.items() if not info.quantize}
        matrices = {n: info for n, info in table.items() if info.quantize}
        values = sum(int(np.prod(info.shape)) for info in matrices.values())
        sizes = {name: _sizes(info, among) for name, info in matrices.items()}
        least = 8 * sum(min(ways.values()) for ways in sizes.values()) / values
        if not least <= bits <= _MOST_BITS:
            raise UsageError(
                f"expected --bits of {least:.2f} to {_MOST_BITS:g} for this model, found {bits:g}"
            )
        self._kl = self._losses(among)
        choices = {
            name: tuple(
                Choice(fmt, nbytes, self._kl.get(name, {}).get(fmt, 0.0))
                for fmt, nbytes in ways.items()
            )
            for name, ways in sizes.items()
        }
        found = least_loss(choices, int(values * bits / 8))
        assert found is not None
        return fixed | {name: way.format for name, way in found.items()}

    def _losses(self, among: Sequence[str]) -> dict[str, dict[str, float]]:
        """Name -> format -> KL: sensitivities times errors."""
        width = min(PROBE_WINDOW, self._spec.n_ctx_train, len(self._rest))
        windows = _windows(self._rest, width)[:PROBE_WINDOWS]
        step = self._fitting.step
        measured = measure(self._weights, self._fitting.forward, windows, step)
        errors: dict[str, dict[str, float]] = {}
        # The head last: its inputs are known when the layers have run.
        for name in sorted(can_probe(self._spec), key=lambda name: not name.startswith("blk.")):
            step(f"errors: {name}")
            errors[name] = self._errors(name, among)
        per_error = {name: kl / errors[name][""] for name, kl in measured.items()}
        all_of_them = between(self._spec, per_error)
        return {
            name: {fmt: all_of_them[name] * error for fmt, error in found.items() if fmt}
            for name, found in errors.items()
        }

    def _errors(self, name: str, among: Sequence[str]) -> dict[str, float]:
        """Format -> error of the fitted rows of a sample; "" of the probe's."""
        rows = self._sample(name)
        fitted = self._factor(name)
        moment = self._moment(name)
        found = {"": _power(probed(rows) - rows, moment)}
        for fmt in among:
            if format_of(fmt).fits(rows.shape[1]):
                stored = dequantize(fmt, quantize_rows(fmt, rows, fitted), rows.shape[1])
                found[fmt] = _power(stored - rows, moment)
        return {fmt: max(error, 1e-30) for fmt, error in found.items()}

    def _gain(self, name: str, fmt: str) -> Gain:
        rows, moment = self._sample(name), self._moment(name)
        whole = max(_power(rows, moment), 1e-30)
        fitted = quantize_rows(fmt, rows, self._factor(name))
        rounded = round_to_nearest(fmt, rows)
        before, after = (
            _power(dequantize(fmt, packed, rows.shape[1]) - rows, moment) / whole
            for packed in (rounded, fitted)
        )
        bits = 8 * format_of(fmt).block_bytes / format_of(fmt).block
        return Gain(fmt, bits, before, after, self._kl.get(name, {}).get(fmt))

    def _sample(self, name: str) -> Float32:
        """Some rows of a matrix, evenly spaced."""
        count = tensor_table(self._spec)[name].shape[0]
        places = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int))
        return np.concatenate([self._weights.read_rows(name, i, i + 1) for i in places])

    def _factor(self, name: str) -> Factor | None:
        """Of its inputs; None for an embedding that is only looked up."""
        if name not in self._factors:
            moment = self._moment(name)
            self._factors = {name: None if moment is None else factor(moment)}
        return self._factors[name]

    def _moment(self, name: str) -> Float32 | None:
        """Of its inputs, damped; None for an embedding that is only looked up."""
        moment = self._moments.of(name)
        tied = self._spec.tied and name == head_name(self._spec)
        return None if moment is None else damped(moment, _TIED_DAMPING if tied else _DAMPING)


def _power(rows: Float32, moment: Float32 | None) -> float:
    """Mean square of the product of rows with inputs of that moment, summed over the rows.

    Without a moment, of rows that are looked up: of their values.
    """
    product = rows if moment is None else rows @ moment
    return float((product * rows).sum(dtype=np.float64))


def _sizes(info: TensorInfo, among: Sequence[str]) -> dict[str, int]:
    """Format -> bytes: the ways to store a matrix."""
    rows, cols = info.shape
    ways = sorted({fitting_format(info, fmt) for fmt in among})
    return {fmt: rows * format_of(fmt).row_bytes(cols) for fmt in ways}


def _windows(ids: Sequence[int], width: int) -> Windows:
    return [ids[at : at + width] for at in range(0, len(ids) - width + 1, width)]
