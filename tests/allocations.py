"""How much memory a call takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def most_allocated(call: Callable[[], object]) -> int:
    """The most bytes that a call holds at a time: of two calls, the one that holds less.

    Python's table of interned strings grows by megabytes at once, in the call that fills it. So
    each call must begin anew: what the first one kept, the second one does not take.
    """
    return min(_peak(call), _peak(call))


def _peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
