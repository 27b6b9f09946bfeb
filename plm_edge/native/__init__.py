"""The C kernels: one shared library, found beside this file, bound with ctypes.

The modules here each bind one C file. `lib()` loads the library when it is first needed, so that
importing plm_edge costs nothing.
"""

from __future__ import annotations

import ctypes
import functools

from plm_edge.errors import UnsupportedError
from plm_edge.native.build import LIBRARY


@functools.cache
def lib() -> ctypes.CDLL:
    """The loaded library. Raises UnsupportedError where it was never compiled."""
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as why:
        raise UnsupportedError(
            f"expected the compiled kernels at {LIBRARY}, found none ({why}); "
            "run 'python -m plm_edge.native.build' or install the package again"
        ) from None
