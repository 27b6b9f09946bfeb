"""A model that was exported, in another layout: the same blocks, nothing is quantized again."""

from __future__ import annotations

from pathlib import Path

from plm_edge import devices, head_screen
from plm_edge.bundle import Manifest
from plm_edge.errors import UnsupportedError
from plm_edge.exporters import write_bundle
from plm_edge.exporters.gguf_writer import Progress
from plm_edge.exporters.source import Source
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_weights import GgufWeights
from plm_edge.layouts import file_tensors
from plm_edge.plan import plan_of_file
from plm_edge.tokenizer import Tokenizer


def relayout(
    file: Path, layout: str, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Manifest:
    """Write a bundle of the GGUF file `file` in `layout`, for this machine; no screened head."""
    weights = GgufWeights(file)
    if "blk.0.ffn_gate.weight" in weights.tensors:
        raise UnsupportedError(
            f"{file.name}: expected layout latent or plm, found deepseek2, which no longer has all "
            "blocks of the model; export from its source"
        )
    spec = weights.spec
    opened = GgufFile.open(file)
    try:
        vocabulary = Tokenizer.from_gguf(opened.metadata).to_gguf(spec.vocab)
        name = opened.metadata.get("general.name", file.stem)
        licence = opened.metadata.get("general.license")
    finally:
        opened.close()
    source = Source(
        spec=spec,
        description={"name": name, "licence": licence, "file": file.name},
        vocabulary=vocabulary,
        packed_rows=lambda tensor, _format, start, stop: weights.packed_rows(tensor, start, stop),
        assert_unchanged=lambda: None,
    )
    kept = [tensor for tensor in weights.tensors.values() if tensor.name not in head_screen.FORMATS]
    formats = {tensor.name: tensor.format for tensor in kept}
    nbytes = sum(tensor.nbytes for tensor in file_tensors(layout, spec, formats))
    plan = plan_of_file(spec, devices.detect(), layout, formats, nbytes)
    return write_bundle(source, plan, out, force=force, progress=progress)
