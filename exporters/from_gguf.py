"""A GGUF file as the source of an export: its blocks as they are, or its floats quantized."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm_edge import head_screen
from plm_edge.bundle import MANIFEST, model_file, read_bundle
from plm_edge.checkpoint.files import Signature
from plm_edge.errors import NumericalError, UnsupportedError, UsageError
from plm_edge.exporters.source import Source, quantizing
from plm_edge.formats import check_finite, format_of
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_weights import GgufWeights
from plm_edge.tensors import tensor_table
from plm_edge.tokenizer import Tokenizer

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class GgufSource:
    """A source, and the format in which the file has each of its tensors."""

    source: Source
    formats: Mapping[str, str]

    def check_quant(self, quant: str) -> None:
        """Raises UsageError for an unknown name, UnsupportedError where it would round again."""
        format_of(quant, UsageError)
        table = tensor_table(self.source.spec)
        rounded = {self.formats[name] for name, info in table.items() if info.quantize}
        rounded -= {*_FLOATS, quant}
        if rounded:
            name = self.source.description["file"]
            raise UnsupportedError(
                f"{name}: expected numbers that are not quantized for --quant {quant}, found "
                f"{', '.join(sorted(rounded))}; leave --quant away to keep them, or export from "
                "the checkpoint"
            )


def gguf_of(found: Path) -> Path | None:
    """The GGUF file that `found` is, or the one of its bundle; None for a checkpoint."""
    if (found / MANIFEST).exists():
        read_bundle(found)
        return model_file(found)
    return found if found.is_file() else None


def from_gguf(file: Path) -> GgufSource:
    """The source of a GGUF file in layout `latent` or `plm`, without a screened head."""
    signature = Signature.of(file, os.stat(file))
    weights = GgufWeights(file)
    if "blk.0.ffn_gate.weight" in weights.tensors:
        raise UnsupportedError(
            f"{file.name}: expected layout latent or plm, found deepseek2, which no longer has all "
            "blocks of the model; export from its source"
        )
    formats = {
        name: tensor.format
        for name, tensor in weights.tensors.items()
        if name not in head_screen.FORMATS
    }
    opened = GgufFile.open(file)
    try:
        vocabulary = Tokenizer.from_gguf(opened.metadata).to_gguf(weights.spec.vocab)
        name = opened.metadata.get("general.name", file.stem)
        licence = opened.metadata.get("general.license")
    finally:
        opened.close()
    round_anew = quantizing(weights)

    def packed_rows(tensor: str, fmt: str, start: int, stop: int) -> NDArray[np.uint8]:
        if fmt == formats[tensor]:
            packed = weights.packed_rows(tensor, start, stop)
            try:
                check_finite(fmt, packed, start)
            except NumericalError as why:
                raise NumericalError(f"{file.name}: {tensor}, {why}; get the file again") from None
            return packed
        return round_anew(tensor, fmt, start, stop)

    source = Source(
        spec=weights.spec,
        description={"name": name, "licence": licence, "file": file.name},
        vocabulary=vocabulary,
        packed_rows=packed_rows,
        assert_unchanged=signature.check,
    )
    return GgufSource(source, formats)
