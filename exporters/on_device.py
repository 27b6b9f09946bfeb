"""What a bundle for a board or phone brings along: install and run scripts, and README.txt.

The README has five lines: what this is, and the four commands from this folder to a chat there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import plm_edge
from plm_edge import devices
from plm_edge.bundle import BundleFile, write_file
from plm_edge.planned import Plan, mib

README = "README.txt"
SCRIPTS = ("install.sh", "run.sh", "common.sh")

_DEVICES = Path(devices.__path__[0])

# How the names of profiles begin -> the folder in devices/ with the scripts.
_FOLDERS = {"Raspberry Pi": "raspberry_pi", "Android": "termux", "Snapdragon": "termux"}

# {what}: one line about the model; {name}: its name, fit for any shell; {version}: of plm-edge
_README = {
    "raspberry_pi": """\
{what}; copy it from this folder:
scp -r . pi@raspberrypi.local:{name}     # your user and Raspberry Pi, here and below
scp plm_edge-{version}-py3-none-manylinux_2_17_aarch64.whl pi@raspberrypi.local:     # {make}
ssh -t pi@raspberrypi.local sh {name}/install.sh     # again whenever it was interrupted
ssh -t pi@raspberrypi.local sh {name}/run.sh     # or there: sh {name}/run.sh -p "Tell me a tale"
""",
    "termux": """\
{what}; in Termux: pkg install openssh; passwd; sshd; then from this folder:
scp -P 8022 -r . PHONE:{name}     # the phone's address for PHONE, here and below
scp -P 8022 plm_edge-{version}.tar.gz PHONE:     # {make}
ssh -p 8022 -t PHONE sh {name}/install.sh     # again whenever it was interrupted
ssh -p 8022 -t PHONE sh {name}/run.sh     # or there: sh {name}/run.sh -p "Tell me a tale"
""",
}
_MAKE = "made by: make wheels (in the source of plm-edge, into dist/)"


def write_device_files(folder: Path, plan: Plan, name: str) -> Iterator[BundleFile]:
    """Write them where the plan's target has scripts; none for others.

    What another runtime runs there (`plan.backend`) is not installed by them.
    """
    scripts = _folder(plan.target) if plan.backend == "native" else None
    if scripts is None:
        return
    for file in SCRIPTS:
        yield write_file(folder, file, (_DEVICES / scripts / file).read_bytes())
    what = (
        f"{name} in {plan.quant} for {plan.target}: context of {plan.n_ctx:,} tokens, "
        f"{mib(plan.budget.total)} of memory"
    )
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", 1)[-1]).lstrip("-.") or "model"
    fields = {"what": what, "name": plain, "version": plm_edge.__version__, "make": _MAKE}
    readme = _README[scripts].format(**fields)
    yield write_file(folder, README, readme.encode())


def _folder(target: str) -> str | None:
    return next((_FOLDERS[start] for start in _FOLDERS if target.startswith(start)), None)
