"""What is measured: a model and the machine it is on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import plm_edge
from plm_edge.bundle import model_file
from plm_edge.devices import detect
from plm_edge.runtime.model import Model

TEXT = Path(plm_edge.__file__).parent / "texts" / "held_out.txt"


@dataclass(frozen=True)
class Subject:
    """A model file, and text in its tokens."""

    name: str
    layout: str
    formats: str  # of the matrices, the head's named
    weight_bytes: int
    ids: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, n_ids: int) -> Subject:
        """Of a bundle or .gguf file; the text begins again where it ends."""
        model = Model(model_file(path))
        try:
            ids = model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
            name = str(model.file.metadata.get("general.name", path.stem))
            return cls(
                name=name,
                layout=model.layout.name,
                formats=_formats(model),
                weight_bytes=model.weight_bytes,
                ids=tuple(islice(cycle(ids), n_ids)),
            )
        finally:
            model.close()

    def facts(self, llama_cpp: bool) -> dict[str, Any]:
        """What a report says beside the figures."""
        profile = detect()
        return {
            "plm_edge": plm_edge.__version__,
            "llama_cpp": importlib.metadata.version("llama_cpp_python") if llama_cpp else None,
            "model": {
                "name": self.name,
                "layout": self.layout,
                "formats": self.formats,
                "weight_bytes": self.weight_bytes,
            },
            "machine": {
                "cpu": _cpu(),
                "architecture": platform.machine(),
                "system": f"{platform.system()} {platform.release()}",
                "python": platform.python_version(),
                "cores": profile.cores,
                "ram_bytes": profile.ram_bytes,
            },
        }


def _formats(model: Model) -> str:
    """Such as "Q4_0, head Q8_0"."""
    matrices = Counter(
        weight.format
        for weight in model.weights.values()
        if weight.rows > 1 and weight is not model.head
    )
    return f"{matrices.most_common(1)[0][0]}, head {model.head.format}"


def _cpu() -> str:
    """As the system calls it; the architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
