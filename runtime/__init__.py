"""The runtime: models, sessions and chat over exported files."""

from plm_edge.runtime.any_session import AnySession
from plm_edge.runtime.llama_engine import check_installed
from plm_edge.runtime.load import load, load_native
from plm_edge.runtime.model import Model
from plm_edge.runtime.session import Session

__all__ = ["AnySession", "Model", "Session", "check_installed", "load", "load_native"]
