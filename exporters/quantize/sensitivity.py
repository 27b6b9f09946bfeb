"""What the rounding of one matrix does to the logits: measured, one matrix at a time.

A matrix is rounded to the nearest (Q4_0) while all others stay, and a text that calibration does
not use is read: the KL divergence of the logits over the error of that matrix' product is the
matrix' sensitivity. Other roundings of it then cost in proportion to their errors. In a model of
many layers some are measured, and those between lie between (on a logarithmic scale).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.exporters.quantize.moments import Float64, Forward, MakeForward, Step, Windows
from plm_edge.exporters.source import Weights
from plm_edge.formats import dequantize, format_of, quantize
from plm_edge.kinds.seen import unseen
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

PROBE = "Q4_0"
_MEASURED_LAYERS = 8
_LEAST = 1e-12  # KL below what float64 can tell


class Replaced:
    """Weights of which one is another."""

    def __init__(self, weights: Weights, name: str, values: NDArray[np.float32]) -> None:
        self.spec, self._weights = weights.spec, weights
        self._name, self._values = name, values

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor."""
        return self._values if name == self._name else self._weights.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a matrix."""
        return self.read(name)[start:stop]


def probed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A matrix as the probe rounds it."""
    return dequantize(PROBE, quantize(PROBE, values), values.shape[1])


def can_probe(spec: ModelSpec) -> list[str]:
    """Matrices that the probe can round, in the order of the file."""
    table = tensor_table(spec).values()
    return [i.name for i in table if i.quantize and format_of(PROBE).fits(i.shape[-1])]


def measure(
    weights: Weights, make_forward: MakeForward, windows: Windows, step: Step
) -> dict[str, float]:
    """Canonical name -> KL (nats, mean over the positions) of each matrix that was measured."""
    spec, forward = weights.spec, make_forward(weights)
    layers = _measured(spec)
    text = _Text(forward, spec, windows)
    found: dict[str, float] = {}
    for name in can_probe(spec):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        if layer >= 0 and layer not in layers:
            continue
        step(f"sensitivity: {name}")
        bent = Replaced(weights, name, probed(weights.read(name)))
        kl = text.kl(make_forward(bent), max(layer, 0), embedded=layer < 0)
        found[name] = max(kl, _LEAST)
    return found


def between(spec: ModelSpec, measured: Mapping[str, float]) -> dict[str, float]:
    """Values of some layers' matrices -> of all layers, each kind on a logarithmic scale."""
    layers, found = _measured(spec), dict(measured)
    kinds = {name.split(".", 2)[2] for name in measured if name.startswith("blk.")}
    for kind in kinds:
        known = np.log([measured[f"blk.{i}.{kind}"] for i in layers])
        for i in range(spec.layers):
            found[f"blk.{i}.{kind}"] = float(np.exp(np.interp(i, layers, known)))
    return found


def _measured(spec: ModelSpec) -> list[int]:
    count = min(spec.layers, _MEASURED_LAYERS)
    return sorted({int(i) for i in np.linspace(0, spec.layers - 1, count).round()})


class _Text:
    """The hidden states of a text before every layer, and its logits."""

    def __init__(self, forward: Forward, spec: ModelSpec, windows: Windows) -> None:
        self._spec, self._windows = spec, windows
        self._before: list[list[Float64]] = []  # [layer][window]
        x = [forward.embed(window) for window in windows]
        for i in range(spec.layers):
            self._before.append(x)
            w = forward.layer_weights(i)
            x = [forward.layer(w, each, unseen) for each in x]
        self._log_p = [_log_softmax(forward.head(each)).astype(np.float32) for each in x]

    def kl(self, forward: Forward, first: int, embedded: bool) -> float:
        """KL to another model of the same layers before `first` (and embedding, unless told)."""
        x = [forward.embed(window) for window in self._windows] if embedded else self._before[first]
        for i in range(first, self._spec.layers):
            w = forward.layer_weights(i)
            x = [forward.layer(w, each, unseen) for each in x]
        rows = []
        for log_p, each in zip(self._log_p, x, strict=True):
            log_q = _log_softmax(forward.head(each))
            rows.append((np.exp(log_p, dtype=np.float64) * (log_p - log_q)).sum(axis=1))
        return float(np.concatenate(rows).mean())


def _log_softmax(logits: NDArray[Any]) -> Float64:
    shifted = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(shifted, np.float64)
