"""How much memory this process may have in all, under every limit that holds here.

What the process has already taken counts as its own: `usable` is compared with budgets that include
the interpreter.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from plm_edge.devices.files import number, text
from plm_edge.errors import UnsupportedError

# Resident memory of this package before a model is loaded, at most: what is already taken counts
# as part of the budget only up to here, the rest belongs to models that stay. Measured on x86-64
# with Python 3.11 (`plm-edge chat`, VmRSS when the session is planned): 31 MiB.
OWN_BYTES = 48 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes there are, bytes this process may have, and where the two numbers come from."""

    total: int
    usable: int
    sources: dict[str, str]


def memory(root: Path) -> Memory:
    """Read below `root`. Raises UnsupportedError where the system does not say."""
    total, available, sources = _of_the_machine(root)
    own = min(_resident(root), OWN_BYTES)
    rooms = [
        (available + own, sources["usable_bytes"]),
        (_cgroup_room(root, own), "memory limit of the control group, less what others use"),
        (_address_room(root), "limit of the address space (ulimit -v), less use"),
    ]
    usable, why = min((room, why) for room, why in rooms if room is not None)
    return Memory(total, max(0, min(usable, total)), sources | {"usable_bytes": why})


def _of_the_machine(root: Path) -> tuple[int, int, dict[str, str]]:
    found = text(root / "proc/meminfo")
    if found is None:
        if sys.platform != "darwin":
            raise UnsupportedError(
                f"{root / 'proc/meminfo'} cannot be read; name a --target instead"
            )
        # macOS says how much there is, not how much is free without its own tools.
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        why = "sysconf; half of it assumed free"
        return ram, ram // 2, dict.fromkeys(("ram_bytes", "usable_bytes"), why)
    kib = {}
    for line in found.splitlines():
        key, _, value = line.partition(":")
        if value.strip().endswith("kB"):
            kib[key] = int(value.split()[0])
    available = kib.get("MemAvailable", kib.get("MemFree", 0))
    sources = {
        "ram_bytes": "MemTotal of /proc/meminfo",
        "usable_bytes": "MemAvailable of /proc/meminfo, and what this process has",
    }
    return kib["MemTotal"] * 1024, available * 1024, sources


def _resident(root: Path) -> int:
    """Bytes this process has in memory; 0 where the system does not say."""
    found = text(root / "proc/self/statm")
    return int(found.split()[1]) * os.sysconf("SC_PAGE_SIZE") if found else 0


def _cgroup_room(root: Path, own: int) -> int | None:
    """Bytes for this process under the tightest limit of its control groups, v1 and v2.

    Cached file pages that can be dropped do not count as used.
    """
    rooms: list[int] = []
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / group.strip("/")
        # Inside a container the path is the host's and the limit stands at the mount's own root.
        for place in (folder, *folder.parents):
            if place == base or base in place.parents:
                room = _room_of(place, own, *names)
                if room is not None:
                    rooms.append(room)
    return min(rooms, default=None)


def _room_of(folder: Path, own: int, limit: str, usage: str, cached: str) -> int | None:
    most, used = number(folder / limit), number(folder / usage)
    if most is None or used is None:  # "max" is no number
        return None
    droppable = 0
    for line in (text(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == cached:
            droppable = int(value)
    return max(0, min(most, most - max(0, used - droppable) + own))


def _address_room(root: Path) -> int | None:
    """Bytes of address space left under `ulimit -v`, or None without such a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = text(root / "proc/self/statm")
    if soft == resource.RLIM_INFINITY or statm is None:
        return None
    return max(0, soft - int(statm.split()[0]) * os.sysconf("SC_PAGE_SIZE"))
