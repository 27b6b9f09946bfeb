"""Where a checkpoint came from, as the manifest will say it. Unknown is None, never a guess."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from plm_edge.checkpoint.files import locate, read_small

_LICENCE = re.compile(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+_-]{0,63})[\"']?[ \t]*$", re.M)
_MAX_CARD = 1 << 20  # bytes


def describe_source(folder: Path, config: bytes) -> dict[str, str | None]:
    """kind, name (hub id or folder name), revision, licence, config_sha256. No absolute path."""
    name, revision = _hub_id(folder)
    return {
        "kind": "huggingface",
        "name": name,
        "revision": revision,
        "licence": _licence(folder),
        "config_sha256": hashlib.sha256(config).hexdigest(),
    }


def _hub_id(folder: Path) -> tuple[str, str | None]:
    """From .../models--org--name/snapshots/<revision>, the layout of the Hugging Face cache."""
    home = folder.resolve()
    repo = home.parent.parent.name
    if home.parent.name == "snapshots" and repo.startswith("models--"):
        return repo.removeprefix("models--").replace("--", "/", 1), home.name
    return home.name, None


def _licence(folder: Path) -> str | None:
    """`license:` of the model card's front matter."""
    card = locate(folder, "README.md")
    if card is None or card.stat().st_size > _MAX_CARD:
        return None
    text = read_small(card, _MAX_CARD)[0].decode("utf-8", "replace").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return None
    found = _LICENCE.search(text[4:].split("\n---", 1)[0])
    return found[1] if found else None
