"""This machine as it is now: free memory under all limits, cores, kernel set.

Memory and cores are read from /proc and /sys below `root`, so that a recorded machine can be
examined too.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from plm_edge.devices.profile import DeviceProfile
from plm_edge.errors import UnsupportedError
from plm_edge.native.kernels import find_isa


def detect(root: Path = Path("/")) -> DeviceProfile:
    """Profile of this machine; `usable_bytes` is what may be used now, limits included."""
    ram, available, sources = _memory(root)
    limit = _cgroup_room(root)
    if limit is not None and limit < available:
        available, sources["usable_bytes"] = limit, "memory limit of the control group, less use"
    room = _address_room(root)
    if room is not None and room < available:
        available, sources["usable_bytes"] = (
            room,
            "limit of the address space (ulimit -v), less use",
        )
    cpus = _allowed_cpus()
    sources["cores"] = "CPUs this process may run on"
    sources["performance_cores"] = "one a physical core, without the small cores (/sys/.../cpu)"
    sources["isa"] = "the best kernel set of this build that this CPU runs"
    return DeviceProfile(
        name="host",
        isa=find_isa()[0],
        ram_bytes=ram,
        usable_bytes=max(0, min(available, ram)),
        cores=len(cpus),
        performance_cores=_performance_cores(root, cpus),
        read_bytes_per_s=None,
        sources=sources,
    )


def _memory(root: Path) -> tuple[int, int, dict[str, str]]:
    """Bytes there are, bytes available, and where the two come from."""
    text = _text(root / "proc/meminfo")
    if text is None:
        if sys.platform != "darwin":
            raise UnsupportedError(
                f"{root / 'proc/meminfo'} cannot be read; name a --target instead"
            )
        # macOS says how much there is, not how much is free without its own tools.
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return (
            ram,
            ram // 2,
            dict.fromkeys(("ram_bytes", "usable_bytes"), "sysconf; half of it assumed free"),
        )
    kib = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if value.strip().endswith("kB"):
            kib[key] = int(value.split()[0])
    available = kib.get("MemAvailable", kib.get("MemFree", 0))
    sources = {
        "ram_bytes": "MemTotal of /proc/meminfo",
        "usable_bytes": "MemAvailable of /proc/meminfo",
    }
    return kib["MemTotal"] * 1024, available * 1024, sources


def _cgroup_room(root: Path) -> int | None:
    """Bytes left under the tightest memory limit of this process' control groups, v1 and v2.

    Cached file pages that can be dropped do not count as used.
    """
    text = _text(root / "proc/self/cgroup")
    rooms: list[int] = []
    for line in (text or "").splitlines():
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
                room = _room_of(place, *names)
                if room is not None:
                    rooms.append(room)
    return min(rooms, default=None)


def _room_of(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    limit_text, usage_text = _text(folder / limit), _text(folder / usage)
    if limit_text is None or usage_text is None or limit_text.strip() == "max":
        return None
    droppable = 0
    for line in (_text(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == cached:
            droppable = int(value)
    return max(0, int(limit_text) - max(0, int(usage_text) - droppable))


def _address_room(root: Path) -> int | None:
    """Bytes of address space left under `ulimit -v`, or None without such a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = _text(root / "proc/self/statm")
    if soft == resource.RLIM_INFINITY or statm is None:
        return None
    return max(0, soft - int(statm.split()[0]) * os.sysconf("SC_PAGE_SIZE"))


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _performance_cores(root: Path, cpus: list[int]) -> int:
    """Physical cores among `cpus`, without those of less than half the largest capacity."""
    capacity: dict[str, int] = {}
    for cpu in cpus:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = _text(folder / "topology/thread_siblings_list") or str(cpu)
        capacity[siblings.strip()] = int(_text(folder / "cpu_capacity") or 1024)
    largest = max(capacity.values())
    return sum(2 * value >= largest for value in capacity.values())


def _text(path: Path) -> str | None:
    """The file's text, or None where it cannot be read: kernels and containers hide these files."""
    try:
        return path.read_text()
    except OSError:
        return None
