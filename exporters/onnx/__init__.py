"""ONNX: two graphs with latent cached rows, and one file of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from plm_edge import onnx_names
from plm_edge.atomic import check_space
from plm_edge.bundle import BundleFile, write_file
from plm_edge.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plm_edge.exporters.gguf_writer import Progress
    from plm_edge.exporters.onnx.store import Store
    from plm_edge.exporters.source import Source
    from plm_edge.planned import Plan
    from plm_edge.spec import ModelSpec


def check_installed() -> None:
    """Raises UnsupportedError where the package that writes ONNX is missing."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UnsupportedError(
            "expected the package onnx to write ONNX files, found it missing; "
            "pip install 'plm-edge[onnx-export]'"
        ) from None


def store_of(spec: ModelSpec, formats: Mapping[str, str], standard: bool) -> Store:
    """The weights' file of a model with these formats; `standard`: for the standard's operators."""
    from plm_edge.exporters.onnx.store import Store, onnx_formats

    return Store(spec, onnx_formats(spec, formats), standard)


def plan_of(plan: Plan, store: Store) -> Plan:
    """The plan of a bundle that has ONNX files only."""
    return replace(
        plan,
        backend="onnx",
        formats=store.formats,
        budget=replace(plan.budget, weights=store.nbytes),
    )


def write(
    store: Store, source: Source, folder: Path, progress: Progress | None = None
) -> list[BundleFile]:
    """Write the weights, the graphs and the tokenizer into `folder`."""
    from plm_edge.exporters.onnx.caches import Halves, InPlace
    from plm_edge.exporters.onnx.genai import genai_config
    from plm_edge.exporters.onnx.model import build
    from plm_edge.tokenizer.gguf_keys import read_vocabulary
    from plm_edge.tokenizer.hf_files import hf_files

    small = {
        cache.file: build(store, cache).SerializeToString(deterministic=True)
        for cache in (Halves(store.spec), InPlace(store.spec))
    }
    vocabulary = read_vocabulary(dict(source.vocabulary))
    small |= hf_files(vocabulary) | genai_config(store.spec, vocabulary)
    check_space(folder, store.nbytes + sum(map(len, small.values())))
    weights = store.write(folder / onnx_names.DATA, source.packed_rows, progress)
    return [weights, *(write_file(folder, name, data) for name, data in small.items())]
