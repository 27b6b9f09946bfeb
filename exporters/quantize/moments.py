"""What the matrices of a model multiply in a text, layer after layer: second moments of inputs.

One layer's moments are in memory at a time: of PLM-1.8B 268 MB for ffn_down and 50 MB for the
others. They are asked for in the order of the file; to go back starts the text anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import NumericalError
from plm_edge.exporters.quantize.feedback import Float32
from plm_edge.exporters.source import Weights
from plm_edge.kinds.seen import Seen, unseen
from plm_edge.spec import ModelSpec
from plm_edge.tensors import head_name

Float64 = NDArray[np.float64]
LayerWeights = Mapping[str, NDArray[Any]]


class Forward(Protocol):
    """A forward pass that stops between layers; plm_edge/reference.py is one. x is (T, d_model)."""

    def embed(self, ids: Sequence[int]) -> Float64: ...
    def layer_weights(self, i: int) -> dict[str, NDArray[Any]]: ...
    def layer(self, w: LayerWeights, x: Float64, seen: Seen) -> Float64: ...
    def head_input(self, x: Float64) -> Float64: ...
    def head(self, x: Float64) -> Float64: ...


MakeForward = Callable[[Weights], Forward]
Windows = Sequence[Sequence[int]]  # ids that know nothing of each other
Step = Callable[[str], None]  # told what is done now


class Moments:
    """Mean of x x^T (cols, cols) over the inputs x of each matrix, by canonical name."""

    def __init__(self, forward: Forward, spec: ModelSpec, windows: Windows, step: Step) -> None:
        self._forward, self._spec, self._windows, self._step = forward, spec, windows, step
        self._head = head_name(spec)
        self._head_moment: Float32 | None = None
        self._start()

    def of(self, name: str) -> Float32 | None:
        """The moment of a matrix; of an embedding as the head that it is too, None if it is not."""
        if name == self._head:
            if self._head_moment is None:
                self._run_to(self._spec.layers, collect=False)
                assert self._head_moment is not None
            return self._head_moment
        if not name.startswith("blk."):
            return None
        layer = int(name.split(".")[1])
        if layer < self._next - (name in self._found):
            self._start()
        self._run_to(layer, collect=False)
        self._run_to(layer + 1, collect=True)
        return self._found[name]

    def _start(self) -> None:
        self._x = [self._forward.embed(window) for window in self._windows]
        self._next = 0  # layer to run
        self._found: dict[str, Float32] = {}

    def _run_to(self, layer: int, collect: bool) -> None:
        while self._next < layer:
            self._step(f"calibration: layer {self._next + 1} of {self._spec.layers}")
            self._run_layer(self._next, collect)
            self._next += 1
        if self._next == self._spec.layers and self._head_moment is None:
            total = _Sum()
            for x in self._x:
                total.add(self._forward.head_input(x))
            self._head_moment = total.mean(self._head)

    def _run_layer(self, i: int, collect: bool) -> None:
        weights = self._forward.layer_weights(i)
        sums: dict[str, _Sum] = {}

        def seen(kind: str, met: NDArray[Any]) -> None:
            sums.setdefault(kind, _Sum()).add(met)

        self._found = {}
        self._x = [self._forward.layer(weights, x, seen if collect else unseen) for x in self._x]
        for kind in list(sums):
            name = f"blk.{i}.{kind}.weight"
            self._found[name] = sums.pop(kind).mean(name)


class _Sum:
    """Sum of x x^T, in float32: a text of some thousand tokens says less than that."""

    def __init__(self) -> None:
        self._sum: Float32 | None = None
        self._count = 0

    def add(self, x: NDArray[Any]) -> None:
        narrow = x.astype(np.float32)
        if self._sum is None:
            self._sum = np.zeros((x.shape[1], x.shape[1]), np.float32)
        self._sum += narrow.T @ narrow
        self._count += len(x)

    def mean(self, name: str) -> Float32:
        assert self._sum is not None
        self._sum /= np.float32(self._count)
        if not np.isfinite(np.diagonal(self._sum)).all():
            raise NumericalError(
                f"{name}: expected finite inputs in the calibration text, found NaN or infinity; "
                "check the checkpoint"
            )
        return self._sum
