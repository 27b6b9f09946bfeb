"""Names of formats in any case: the library knows them in one."""

from __future__ import annotations


def quant_name(name: str | None) -> str | None:
    """Q8_0 for q8_0."""
    return None if name is None else name.upper()


def cache_name(name: str | None) -> str | None:
    """q8_0 for Q8_0."""
    return None if name is None else name.lower()
