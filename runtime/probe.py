"""What the kernels reach on this machine: a short decode with random weights of a model's shape.

The weights are in memory only. As many layers are made as do not fit the CPU's caches, and a share
of the head, so that bytes stand in the proportions of the whole model; with random queries the
work is that of a real step, since no kernel's time depends on values but for idle units.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from plm_edge.arrangements import arrange
from plm_edge.cache_layout import CacheType
from plm_edge.formats import quantize
from plm_edge.layouts import file_tensors, layout_of
from plm_edge.native import kernels as native
from plm_edge.native.bandwidth import Reader
from plm_edge.planned import Plan
from plm_edge.runtime.model import Model
from plm_edge.runtime.recorder import MappedWeight
from plm_edge.runtime.session import Session
from plm_edge.spec import ModelSpec
from plm_edge.speed import IDLE
from plm_edge.tensors import tensor_table
from plm_edge.token_bytes import attention_macs
from plm_edge.tokenizer import Tokenizer

WEIGHT_BYTES = 96 << 20  # at least, where the model has as many: beyond last-level caches
STEPS, ROUNDS = 8, 7
READ_BYTES = 256 << 20  # of a plain read
SETTLE_S = 0.01  # threads of the session that ran last spin for milliseconds
_DISTINCT = 256  # rows that a random matrix is put together from
_VOCAB_STEP = 32


@dataclass(frozen=True)
class Rates:
    """Of this machine now, with some threads."""

    step_bytes_per_s: float  # of weights while decoding without a context
    attend_mac_per_s: float  # products with cached rows
    read_bytes_per_s: float  # a plain read of memory


def measure(spec: ModelSpec, plan: Plan, tokenizer: Tokenizer) -> Rates:
    """Time the plan's formats, cache type, threads and kernels; a second or two.

    A session has a tokenizer; no text is read here, so any will do.
    """
    part = _part(spec, plan)
    behind = max(1, plan.n_ctx - STEPS)
    model = RandomModel(part, plan, tokenizer)
    asked = cast(CacheType, plan.cache_type), plan.threads, plan.isa
    reader = Reader(min(READ_BYTES, max(READ_BYTES // 4, plan.budget.weights)))
    with (
        _Probed(model, STEPS, *asked) as short,
        _Probed(model, behind + STEPS, *asked) as long,
    ):
        for session, rows in ((short, 0), (long, behind)):  # pages and caches are warm then
            session.seconds(rows)
        near, far, read = [], [], []
        for _ in range(ROUNDS):
            near.append(short.seconds(0))
            far.append(long.seconds(behind))
            read.append(reader.bytes_per_s(plan.threads))
        weights = short.bytes_read - short.cache_bytes  # the last step read all its rows
    one = statistics.median(near)
    more = max(statistics.median(far) - one, 1e-9)
    return Rates(
        step_bytes_per_s=weights / one,
        attend_mac_per_s=behind * attention_macs(part) / more,
        read_bytes_per_s=statistics.median(read),
    )


class _Probed(Session):
    """A session whose cache is full of rows that nobody computed."""

    def seconds(self, behind: int) -> float:
        """Of one step behind that many tokens."""
        if self.n_past < behind:
            self.cached_rows_of(behind)[:] = 1  # pages never written to are all the same one
        self._ids = [0] * behind
        time.sleep(SETTLE_S)
        started = time.perf_counter()
        for _ in range(STEPS):
            self.step(1)
        return (time.perf_counter() - started) / STEPS


class RandomModel(Model):
    """A model of a plan's formats and layout whose weights are random and in memory only."""

    def __init__(self, spec: ModelSpec, plan: Plan, tokenizer: Tokenizer) -> None:
        self.path = Path("random")
        self.spec, self.layout, self.screen_tiles = spec, layout_of(plan.layout), None
        self.tokenizer = tokenizer
        self.weights = {}
        made: dict[tuple[str, ...], NDArray[np.uint8]] = {}
        rng = np.random.Generator(np.random.SFC64(0))
        formats = {name: plan.formats[name] for name in _names(spec, plan)}
        for tensor in file_tensors(plan.layout, spec, formats):
            kind = tensor.name.split(".")[-2], tensor.format, str(tensor.rows), str(tensor.cols)
            if kind not in made:
                made[kind] = _random(rng, tensor.name, tensor.rows, tensor.cols, tensor.format)
                made[kind] = arrange(tensor.arrangement, tensor.format, made[kind], tensor.cols)
            data = native.aligned(made[kind].size)
            data[:] = made[kind]
            self.weights[tensor.name] = MappedWeight(
                data, tensor.rows, tensor.cols, tensor.format, tensor.arrangement
            )

    def close(self) -> None:
        """Let go of the weights."""
        self.weights.clear()


def _part(spec: ModelSpec, plan: Plan) -> ModelSpec:
    """The same model with as few layers as are beyond the caches, and that share of the head."""
    layers = min(spec.layers, max(1, -(-spec.layers * WEIGHT_BYTES // plan.budget.weights)))
    vocab = spec.vocab * layers // spec.layers // _VOCAB_STEP * _VOCAB_STEP
    return replace(spec, layers=layers, vocab=max(_VOCAB_STEP, vocab))


def _names(spec: ModelSpec, plan: Plan) -> list[str]:
    return [name for name in tensor_table(spec) if name in plan.formats]


def _random(
    rng: np.random.Generator, name: str, rows: int, cols: int, fmt: str
) -> NDArray[np.uint8]:
    """Packed rows (rows, row bytes), shuffled; so many of `ffn_up` are 0 that IDLE are idle."""
    few = rng.standard_normal((min(rows, _DISTINCT), cols)).astype(np.float32) / np.sqrt(cols)
    if name.endswith("ffn_up.weight"):  # half of the others are below 0
        few[round(2 * (1 - IDLE) * len(few)) :] = 0
    if rows == 1:
        few = np.ones((1, cols), np.float32)
    packed = quantize(fmt, few.astype(np.float32))
    return packed[rng.integers(len(packed), size=rows)]
