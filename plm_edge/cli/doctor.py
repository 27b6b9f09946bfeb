"""plm-edge doctor: what is wrong on this machine, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from plm_edge.cli.options import Json

if TYPE_CHECKING:
    from plm_edge.devices.doctor import Finding


def command(
    as_json: Json = False,
) -> None:
    """Say what is wrong on this machine and how to mend it, a line each; nothing is changed."""
    from plm_edge.devices import board
    from plm_edge.devices.doctor import examine, python_facts

    findings, kept = examine(), list(_exports())
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings + kept], indent=2))
        return
    where = board.model(Path("/")) or "an unknown machine"
    if board.in_termux():
        where += ", in Termux"
    print(f"{where}; {python_facts()}")
    for finding in findings:
        print(finding)
    if not findings:
        print("nothing wrong was found")
    for finding in kept:
        print(finding)


def _exports() -> Iterator[Finding]:
    """What was exported for this machine: nobody but the user deletes it."""
    from plm_edge.cli.cache import bytes_below
    from plm_edge.cli.prepare import cache_folder
    from plm_edge.devices.doctor import Finding

    folder = cache_folder()
    if size := bytes_below(folder):
        yield Finding(
            "exports",
            f"{size / 2**20:,.0f} MiB of models laid out for this machine in {folder}",
            "plm-edge cache lists them; plm-edge cache rm NAME or --all frees it",
        )
