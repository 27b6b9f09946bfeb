"""What the ONNX files of a bundle hold, checked as a session would check it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plm_edge import onnx_names as names
from plm_edge.bundle import read_bundle
from plm_edge.cache_layout import CacheLayout
from plm_edge.onnx_file import OnnxFile, Stored
from plm_edge.spec import ModelSpec

GRAPHS = (names.MODEL, names.IN_PLACE)


@dataclass(frozen=True)
class OnnxInspection:
    """The graphs of one bundle and the weights they share."""

    folder: Path
    spec: ModelSpec
    graphs: tuple[OnnxFile, ...]
    weight_bytes: int  # of the file

    @property
    def stored(self) -> tuple[Stored, ...]:
        """Every array of the file once, in its order."""
        places = {(a.offset, a.length): a for a in self.graphs[0].stored}
        return tuple(places[key] for key in sorted(places))

    def by_type(self) -> dict[str, tuple[int, int]]:
        """Type -> arrays, bytes."""
        found: dict[str, tuple[int, int]] = {}
        for array in self.stored:
            count, nbytes = found.get(array.dtype, (0, 0))
            found[array.dtype] = (count + 1, nbytes + array.length)
        return found

    @property
    def cache_row_bytes(self) -> int:
        """Bytes of a token in one layer."""
        return CacheLayout(self.spec.rank, self.spec.rope, "f32").row_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "spec": self.spec.to_dict(),
            "weight_bytes": self.weight_bytes,
            "cache_row_bytes": self.cache_row_bytes,
            "graphs": [
                {
                    "file": graph.path.name,
                    "producer": graph.producer,
                    "opsets": dict(graph.opsets),
                    "operators": dict(graph.operators),
                    "inputs": [asdict(value) for value in graph.inputs],
                    "outputs": [asdict(value) for value in graph.outputs],
                }
                for graph in self.graphs
            ],
            "arrays": [asdict(array) for array in self.stored],
        }


def inspect_onnx(folder: Path) -> OnnxInspection | None:
    """The ONNX files of a bundle; None where it has none. Raises FileFormatError."""
    manifest = read_bundle(folder)
    sizes = {file.name: file.size for file in manifest.files}
    graphs = tuple(OnnxFile.read(folder / name) for name in GRAPHS if name in sizes)
    for graph in graphs:
        graph.check_external(sizes)
    if not graphs:
        return None
    return OnnxInspection(folder, manifest.spec, graphs, sizes.get(names.DATA, 0))
