"""plm-edge: small MLA language models on small machines, with a latent cache.

Example:
    plm_edge.export("PLM-Team/PLM-1.8B-Instruct", target="rpi", out="plm-rpi")
    session = plm_edge.load("plm-rpi")
    for piece in plm_edge.chat(session, [{"role": "user", "content": "Hello"}]):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from plm_edge.errors import (
    ContextOverflow,
    DoesNotFit,
    FileFormatError,
    Interrupted,
    NumericalError,
    OutputError,
    PlmEdgeError,
    SessionBusy,
    SpecError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from plm_edge.cli.calibrate import export
    from plm_edge.cli.prepare import load
    from plm_edge.plan import make_plan
    from plm_edge.runtime.chat import chat
    from plm_edge.spec import ModelSpec

__version__ = "0.1.0"

__all__ = [
    "ContextOverflow",
    "DoesNotFit",
    "FileFormatError",
    "Interrupted",
    "ModelSpec",
    "NumericalError",
    "OutputError",
    "PlmEdgeError",
    "SessionBusy",
    "SpecError",
    "UnsupportedError",
    "UsageError",
    "chat",
    "export",
    "load",
    "make_plan",
]

_ON_FIRST_USE = {
    "ModelSpec": "plm_edge.spec",
    "chat": "plm_edge.runtime.chat",
    "export": "plm_edge.cli.calibrate",
    "load": "plm_edge.cli.prepare",
    "make_plan": "plm_edge.plan",
}


def __getattr__(name: str) -> object:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
