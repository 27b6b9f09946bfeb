"""Whether a wheel in dist/ is of the sources that are here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def is_stale(wheel: Path) -> bool:
    """A source is younger than the wheel."""
    sources = [ROOT / "pyproject.toml", *ROOT.glob("plm_edge/**/*.[ch]")]
    for folder in ("plm_edge", "devices", "exporters", "runtime"):
        sources += (ROOT / folder).rglob("*.py")
    return max(path.stat().st_mtime for path in sources) > wheel.stat().st_mtime
