"""plm-edge devices: the machines that are known, and this one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from plm_edge.cli.options import Json, named
from plm_edge.errors import OutputError, UsageError

if TYPE_CHECKING:
    from plm_edge.devices import DeviceProfile

app = typer.Typer(help="List the known machines, show one, or detect this one.")


@app.callback(invoke_without_command=True)
def default(ctx: typer.Context, as_json: Json = False) -> None:
    """List the known machines, show one, or detect this one."""
    if ctx.invoked_subcommand is None:
        list_(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Names of the profiles, with their aliases."""
    from plm_edge import devices

    if as_json:
        print(json.dumps({"names": devices.names(), "aliases": devices.ALIASES}, indent=2))
        return
    for name in devices.names():
        aliases = [alias for alias, target in devices.ALIASES.items() if target == name]
        title = "this machine" if name == devices.HOST else devices.load(name).name
        print(f"{name:24}{title}" + (f" (also: {', '.join(aliases)})" if aliases else ""))


@app.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A profile, an alias, `host` or a .toml file.")
    ],
    as_json: Json = False,
) -> None:
    """Every number of one machine, with its source."""
    from plm_edge import devices

    _print(devices.load(name), as_json)


@app.command("detect")
def detect(
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", parser=named, metavar="PATH", help="Write a profile to this .toml file."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine offers to a program now; its bandwidth and kernels are measured."""
    from plm_edge import devices
    from plm_edge.cli.measure import measured_host

    _check_out(out)
    profile = measured_host(devices.detect())
    if out is not None:
        _write(out, profile)
    _print(profile, as_json)


def _check_out(out: Path | None) -> None:
    """Before anything is measured."""
    if out is None:
        return
    if out.suffix != ".toml":
        raise UsageError(f"-o: expected a file that ends in .toml, found {out.name!r}")
    if out.exists():
        raise OutputError(f"{out} is there already; choose another name or remove it")


def _write(out: Path, profile: DeviceProfile) -> None:
    from plm_edge.atomic import write_atomic
    from plm_edge.devices import board
    from plm_edge.devices.profile import write_profile

    memory = f"{-(-profile.ram_bytes >> 30)} GB"
    named = replace(profile, name=f"{board.model(Path('/')) or 'this machine'}, {memory}")
    text = write_profile(named).encode()

    def write(file: BinaryIO) -> None:
        file.write(text)

    write_atomic(out, write)
    print(f"wrote {out}; plan for it: plm-edge plan MODEL --target {out}", file=sys.stderr)


def _print(profile: DeviceProfile, as_json: bool) -> None:
    from plm_edge.devices.profile import FIELDS, show_value

    if as_json:
        print(json.dumps(profile.to_dict(), indent=2))
        return
    print(f"{'name':24}{profile.name}")
    known = [field for field in FIELDS if field.attribute in profile.sources]
    for field, following in zip(known, [*known[1:], None], strict=True):
        print(f"{field.place:24}{show_value(getattr(profile, field.attribute), field.kind)}")
        source = profile.sources[field.attribute]
        if following is None or profile.sources[following.attribute] != source:
            print(f"{'':26}{source}")
