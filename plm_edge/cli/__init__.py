"""The command line: each command parses, calls one public function and prints."""

from __future__ import annotations


def main() -> None:
    """Entry point of `plm-edge`; ends the process with an exit code of plm_edge/errors.py."""
    from plm_edge.cli.app import run

    run()
