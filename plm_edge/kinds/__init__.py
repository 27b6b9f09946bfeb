"""The kinds of layers: one module per kind, found by its name in the spec and nowhere else."""

from __future__ import annotations

from plm_edge.kinds import mla, relu2

ATTENTION = {"mla": mla}
FFN = {"relu2": relu2}
