"""This machine as it is now: free memory under all limits, cores, kernel set.

Everything is read from /proc and /sys below `root`, so that a recorded machine can be examined too.
"""

from __future__ import annotations

from pathlib import Path

from plm_edge.devices import board, cpu
from plm_edge.devices.memory import memory
from plm_edge.devices.profile import DeviceProfile
from plm_edge.native.kernels import find_isa


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
        name="host",
        isa=find_isa()[0],
        core_kinds=cpu.core_kinds(root, cpus),
        performance_cores=cpu.performance_cores(root, cpus),
        ram_bytes=found.total,
        usable_bytes=found.usable,
        gpu="; ".join(gpus) or None,
        sources=sources,
    )
