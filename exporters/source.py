"""What an export reads: packed rows of each tensor, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm_edge.checkpoint import Checkpoint
from plm_edge.errors import NumericalError
from plm_edge.exporters.quantize.rows import round_to_nearest
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table
from plm_edge.tokenizer import Tokenizer

# (canonical name, format, start, stop) -> rows start..stop, (stop - start, row bytes) uint8.
# A vector is one row.
PackedRows = Callable[[str, str, int, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Source:
    """A model to export."""

    spec: ModelSpec
    description: Mapping[str, Any]  # for the manifest: name, revision, licence and so on
    vocabulary: Mapping[str, Any]  # the tokenizer's keys of a GGUF file
    packed_rows: PackedRows
    assert_unchanged: Callable[[], None]  # called when everything was read


class Weights(Protocol):
    """Float weights by canonical name, such as those of an open checkpoint."""

    spec: ModelSpec

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]: ...
    def read(self, name: str) -> NDArray[np.float32]: ...


def quantizing(weights: Weights) -> PackedRows:
    """Rows of float weights, packed when they are asked for."""
    table = tensor_table(weights.spec)

    def packed_rows(name: str, fmt: str, start: int, stop: int) -> NDArray[np.uint8]:
        vector = len(table[name].shape) == 1
        x = weights.read(name)[None, :] if vector else weights.read_rows(name, start, stop)
        try:
            return round_to_nearest(fmt, x, start)
        except NumericalError as why:
            raise NumericalError(f"{name}, {why}; choose another format or checkpoint") from None

    return packed_rows


def from_checkpoint(checkpoint: Checkpoint) -> Source:
    """The source of an open checkpoint; its tokenizer is read here."""
    tokenizer = Tokenizer.from_hf(checkpoint.tokenizer_files)
    return Source(
        checkpoint.spec,
        checkpoint.source,
        tokenizer.to_gguf(checkpoint.spec.vocab),
        quantizing(checkpoint),
        checkpoint.assert_unchanged,
    )
