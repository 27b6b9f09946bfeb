"""Write the tables of docs/devices.md again, as `plm-edge plan` prints them.

    python tools/device_tables.py

tests/test_device_tables.py asks for it when the planner or a profile has changed.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "devices.md"
_TABLE = re.compile(r"(<!-- plm-edge plan (\S+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The page with each table as the planner makes it now."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(match[2])}\n{match[3]}"

    return _TABLE.sub(made, text)


def table(model: str) -> str:
    """What `plm-edge plan MODEL` prints."""
    from plm_edge.cli.app import app

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(["plan", model], standalone_mode=False)
    return out.getvalue().strip()


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
