"""Whether what is in dist/ is of the sources that are here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".c", ".h", ".sh", ".toml", ".txt", ".service", ".socket")


def is_stale(built: Path) -> bool:
    """A source is younger than the wheel or source distribution."""
    sources = [ROOT / "pyproject.toml", ROOT / "setup.py"]
    for folder in ("plm_edge", "devices", "exporters", "runtime"):
        sources += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return max(path.stat().st_mtime for path in sources) > built.stat().st_mtime
