"""The command line: each command parses, calls one public function and prints."""

from __future__ import annotations


def main() -> None:
    """Entry point of `plm-edge`; ends the process with an exit code of plm_edge/errors.py."""
    try:
        from plm_edge.cli.app import run
    except KeyboardInterrupt:  # before the command line can say so itself
        raise SystemExit(130) from None
    run()
