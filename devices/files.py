"""Small files of the kernel below a root: of this machine, or of a recorded one."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """The file's text, or None where it cannot be read: kernels and containers hide these files."""
    try:
        return path.read_text(errors="replace").rstrip("\0")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The whole number that the file holds, or None."""
    found = (text(path) or "").strip()
    return int(found) if found.isascii() and found.isdigit() else None
