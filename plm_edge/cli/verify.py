"""plm-edge verify: whether every byte of a bundle is as it was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that export wrote.")],
) -> None:
    """Check the size and hash of every file of a bundle."""
    from plm_edge.bundle import verify_bundle

    manifest = verify_bundle(bundle)
    for file in manifest.files:
        print(f"{file.sha256}  {file.size:>14,}  {file.name}")
    print(f"ok: {bundle}, {len(manifest.files)} files as exported by {manifest.producer}")
