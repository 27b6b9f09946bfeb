"""The runtime: models, sessions and chat over exported files."""

from plm_edge.runtime.load import load
from plm_edge.runtime.model import Model
from plm_edge.runtime.session import Session

__all__ = ["Model", "Session", "load"]
