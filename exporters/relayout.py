"""A model that was exported, in another layout: the same blocks, nothing is quantized again."""

from __future__ import annotations

from pathlib import Path

from plm_edge import devices
from plm_edge.bundle import Manifest
from plm_edge.exporters import write_bundle
from plm_edge.exporters.from_gguf import from_gguf
from plm_edge.exporters.gguf_writer import Progress
from plm_edge.layouts import data_bytes, file_tensors
from plm_edge.plan import plan_of_file


def relayout(
    file: Path, layout: str, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Manifest:
    """Write a bundle of the GGUF file `file` in `layout`, for this machine; no screened head.

    Whether it fits is asked where it is loaded.
    """
    stock = from_gguf(file)
    spec = stock.source.spec
    nbytes = data_bytes(layout, file_tensors(layout, spec, stock.formats))
    plan = plan_of_file(spec, devices.detect(), layout, stock.formats, nbytes)
    return write_bundle(stock.source, plan, out, force=force, progress=progress)
