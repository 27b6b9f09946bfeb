"""ONNX: two graphs with latent cached rows, and one file of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from plm_edge import onnx_names
from plm_edge.atomic import check_space, write_atomic
from plm_edge.bundle import BundleFile
from plm_edge.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plm_edge.exporters.gguf_writer import Progress
    from plm_edge.exporters.source import Source


def check_installed() -> None:
    """Raises UnsupportedError where the package that writes ONNX is missing."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UnsupportedError(
            "expected the package onnx to write ONNX files, found it missing; "
            "pip install 'plm-edge[onnx-export]'"
        ) from None


def write(
    source: Source,
    formats: Mapping[str, str],
    folder: Path,
    *,
    standard: bool = False,
    progress: Progress | None = None,
) -> list[BundleFile]:
    """Write the graphs, their weights and the tokenizer into `folder`."""
    from plm_edge.exporters.onnx.caches import Halves, InPlace
    from plm_edge.exporters.onnx.model import build
    from plm_edge.exporters.onnx.store import Store

    spec = source.spec
    store = Store(spec, formats, standard)
    models = {cache.file: build(store, cache) for cache in (Halves(spec), InPlace(spec))}
    check_space(folder, store.nbytes)
    files = [store.write(folder / onnx_names.DATA, source.packed_rows, progress)]
    for name, model in models.items():
        files.append(write_file(folder / name, model.SerializeToString(deterministic=True)))
    return files


def write_file(path: Path, data: bytes) -> BundleFile:
    """A small file of a bundle."""
    write_atomic(path, lambda file: file.write(data) and None)
    return BundleFile(path.name, len(data), hashlib.sha256(data).hexdigest())
