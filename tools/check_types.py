"""Run mypy over the package and see to it that it looked at every file.

With a wrong package layout mypy reports success on the two files it found.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("plm_edge", "exporters", "runtime", "devices")
# pyproject.toml asks for 3.10, but the types of numpy 2.5, which Python 3.12 and newer get, need
# 3.12.
VERSION = ["--python-version", "3.12"] if sys.version_info >= (3, 12) else []


def main() -> int:
    """0 where mypy is content with at least as many files as git lists."""
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *VERSION, "-p", "plm_edge"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout, run.stderr, sep="", end="")
    if run.returncode:
        return run.returncode
    listed = subprocess.run(
        ["git", "ls-files", "--", *(f"{folder}/**.py" for folder in FOLDERS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    seen = re.search(r"no issues found in (\d+) source files", run.stdout)
    if not seen or int(seen[1]) < len(listed):
        print(f"expected mypy to check the {len(listed)} files that git lists")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
