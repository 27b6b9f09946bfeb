"""This machine as it is now: free memory under all limits, cores, kernel set.

Everything is read from /proc and /sys below `root`, so that a recorded machine can be examined too.
"""

from __future__ import annotations

from pathlib import Path

from plm_edge.devices import board, cpu
from plm_edge.devices.memory import memory
from plm_edge.devices.profile import ARM_ISAS, ISAS, X86_ISAS, DeviceProfile
from plm_edge.native.kernels import find_isa, isa_table

HOST = "host"


def detect(root: Path = Path("/")) -> DeviceProfile:
    """Profile of this machine; `usable_bytes` is what this process may use now, limits included."""
    found = memory(root)
    cpus = cpu.allowed_cpus()
    gpus = board.gpus(root)
    sources = {
        **found.sources,
        "core_kinds": "CPUs this process may run on (/proc/cpuinfo, /sys/devices/system/cpu)",
        "performance_cores": "one a physical core, without the small cores (/sys/.../cpu)",
        "isa": "the best kernel set of this build that this CPU runs",
    }
    if gpus:
        sources["gpu"] = "nvidia-smi or /sys/class/drm"
    return DeviceProfile(
        name=HOST,
        isa=find_isa()[0],
        core_kinds=cpu.core_kinds(root, cpus),
        performance_cores=cpu.performance_cores(root, cpus),
        ram_bytes=found.total,
        usable_bytes=found.usable,
        gpu="; ".join(gpus) or None,
        sources=sources,
    )


def kernel_sets(profile: DeviceProfile) -> tuple[str, ...]:
    """Those that may be asked for: of this machine all it has, of another its architecture's."""
    if profile.name == HOST:
        return tuple(isa_table())
    known = (sets for sets in (X86_ISAS, ARM_ISAS) if profile.isa in sets[1:])
    return next(known, ISAS)
