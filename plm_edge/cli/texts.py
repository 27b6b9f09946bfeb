"""Texts that commands read: the user's, and those that ship with the package."""

from __future__ import annotations

from pathlib import Path

import plm_edge
from plm_edge.errors import OutputError, UsageError

_TEXTS = Path(plm_edge.__file__).parent / "texts"
TALES = "tales"  # what users call the next
CALIBRATION = _TEXTS / "calibration.txt"


def read_text(path: Path, option: str) -> str:
    """A file as UTF-8; `option` is where the user named it, for the message."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"found no file {str(path)!r}; check {option}") from None
    except OSError as why:
        raise OutputError(f"{path}: cannot be read: {why.strerror}; check {option}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected UTF-8 text, found other bytes; convert it") from None
