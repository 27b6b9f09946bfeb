"""Who wants to know what a model's matrices multiply: calibration, and a count of idle units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

Seen = Callable[[str, NDArray[Any]], None]  # ("ffn_up", its input (T, cols))


def unseen(name: str, x: NDArray[Any]) -> None:
    """Nobody."""
