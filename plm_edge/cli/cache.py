"""plm-edge cache: what is kept for this machine, and how to be rid of it."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plm_edge.cli.options import Json
from plm_edge.errors import OutputError, PlmEdgeError, UsageError, short

if TYPE_CHECKING:
    from plm_edge.bundle import Manifest

app = typer.Typer(help="List what is kept for this machine, or remove it.")


@dataclass(frozen=True)
class Entry:
    """One file or folder of the cache folder."""

    name: str
    nbytes: int
    used: float  # seconds since 1970, of its last use or, where none was noted, its last change
    manifest: Manifest | None  # of a whole bundle
    remark: str  # what it is, if it is none

    def row(self) -> tuple[str, str, str, str]:
        """As people read it."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.used))
        return _shown(self.name), _size(self.nbytes), day, self._made_of()

    def _made_of(self) -> str:
        from plm_edge.cli.export import form

        found = self.manifest
        if found is None:
            return self.remark
        made = f"{form(found)}, for {found.plan['target']}, by {found.producer}"
        return _shown(f"{_source(found)}: {made}")

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; those of the manifest are None where there is none."""
        from plm_edge.cli.export import has_gguf

        found = self.manifest
        plan = {} if found is None else dict(found.plan)
        if found is not None and not has_gguf(found):
            plan["layout"] = None
        return {
            "name": self.name,
            "bytes": self.nbytes,
            "used": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.used)),
            "source": None if found is None else _source(found),
            **{key: plan.get(key) for key in ("quant", "layout", "target")},
            "producer": None if found is None else found.producer,
            "remark": self.remark or None,
        }


@app.callback(invoke_without_command=True)
def default(ctx: typer.Context, as_json: Json = False) -> None:
    """List what is kept for this machine, or remove it."""
    if ctx.invoked_subcommand is None:
        list_(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """What is kept: size, last use, what it was made of."""
    from plm_edge.cli.prepare import cache_folder

    folder, found = cache_folder(), entries()
    total = sum(entry.nbytes for entry in found)
    if as_json:
        shown = [entry.to_dict() for entry in found]
        print(json.dumps({"folder": str(folder), "bytes": total, "entries": shown}, indent=2))
        return
    if not found:
        print(f"nothing is kept in {folder}")
        return
    rows = [("name", "size", "last use", "made of"), *(entry.row() for entry in found)]
    width = max(len(name) for name, *_ in rows)
    for name, size, day, made_of in rows:
        print(f"{name:{width}}  {size:>12}  {day:10}  {made_of}")
    print(f"{_size(total)} in {folder}")


@app.command("rm")
def remove(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="As plm-edge cache lists them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is listed.")] = False,
) -> None:
    """Remove what is named; a model that is wanted again is made again."""
    from plm_edge import atomic
    from plm_edge.cli.prepare import cache_folder

    folder = cache_folder()
    there = {entry.name: entry for entry in entries()}
    freed = 0
    trouble: OutputError | None = None
    for name in _chosen(names or [], everything, there, folder):
        try:
            atomic.remove(folder / name)
        except OutputError as why:
            trouble = trouble or why  # the others go all the same
            continue
        freed += there[name].nbytes
        print(f"removed {_shown(name)}")
    print(f"freed {_size(freed)} in {folder}")
    if trouble is not None:
        raise trouble


def _chosen(names: list[str], everything: bool, there: dict[str, Entry], folder: Path) -> list[str]:
    if everything == bool(names):
        found = "both" if names else "neither"
        raise UsageError(f"expected names or --all, found {found}; plm-edge cache lists the names")
    if unknown := [short(name) for name in names if name not in there]:
        raise UsageError(
            f"expected names of what lies in {folder}, found {', '.join(unknown)}; "
            "nothing was removed; plm-edge cache lists the names"
        )
    return list(dict.fromkeys(names)) or list(there)


def entries() -> list[Entry]:
    """What lies in the cache folder, what was not used for the longest time first."""
    from plm_edge.cli.prepare import cache_folder

    folder = cache_folder()
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as why:
        raise OutputError(
            f"the cache folder {folder} cannot be read: {why.strerror}; "
            "set XDG_CACHE_HOME to a folder of yours"
        ) from None
    found = [entry for path in paths if (entry := _entry(path)) is not None]
    return sorted(found, key=lambda entry: (entry.used, entry.name))


def _entry(path: Path) -> Entry | None:
    """None where it went away meanwhile."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return Entry(path.name, 0, status.st_mtime, None, "a link, not followed")
    manifest, remark = _read(path)
    return Entry(path.name, bytes_below(path), status.st_mtime, manifest, remark)


def _read(path: Path) -> tuple[Manifest | None, str]:
    """The manifest, or what is there instead."""
    from plm_edge.atomic import is_being_written, is_leftover
    from plm_edge.bundle import MANIFEST, read_bundle
    from plm_edge.planned import Plan

    if is_leftover(path.name):
        return None, "being written" if is_being_written(path) else "left by an interrupted write"
    if not os.path.isfile(path / MANIFEST):
        return None, "no model of plm-edge"
    try:
        manifest = read_bundle(path)
        Plan.from_dict(manifest.plan)
    except PlmEdgeError:
        return None, "damaged, or of another version: plm-edge verify says more"
    return manifest, ""


def bytes_below(path: Path) -> int:
    """Of a file, or of all files in a folder; links count nothing."""
    inner = (Path(place, name) for place, _, names in os.walk(path) for name in names)
    return sum(map(_bytes, (path, *inner)))


def _bytes(file: Path) -> int:
    try:
        status = file.lstat()
    except OSError:  # a running export takes its files away
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _source(manifest: Manifest) -> str:
    """The file, or the checkpoint and its revision."""
    source = manifest.source
    revision = source.get("revision")
    name = source.get("file") or source.get("name")
    return f"{name} at {str(revision)[:8]}" if revision else str(name)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"


def _shown(text: str) -> str:
    """What a file is called, or says of itself, may disturb a terminal."""
    return text if text.isprintable() else ascii(text)
