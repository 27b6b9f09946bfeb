"""plm-edge doctor: what is wrong on this machine, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is wrong on this machine and how to mend it, a line each; nothing is changed."""
    from plm_edge.devices import board
    from plm_edge.devices.doctor import examine, python_facts

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    where = board.model(Path("/")) or "an unknown machine"
    if board.in_termux():
        where += ", in Termux"
    print(f"{where}; {python_facts()}")
    for finding in findings:
        print(finding)
    if not findings:
        print("nothing wrong was found")
