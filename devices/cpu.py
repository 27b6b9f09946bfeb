"""The CPU as the kernel describes it: cores by kind, the fast ones, the features."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from plm_edge.devices.cores import CoreKind
from plm_edge.devices.files import number, text

# "CPU part" of implementer 0x41 (Arm), as its reference manuals name them; others by their number.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
_MAKERS = {0x41: "Arm", 0x51: "Qualcomm", 0x61: "Apple"}


def allowed_cpus() -> list[int]:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_kinds(root: Path, cpus: list[int]) -> tuple[CoreKind, ...]:
    """The given CPUs by name and highest clock, in the order of their numbers."""
    blocks = _blocks(root)
    kinds: Counter[tuple[str, int | None]] = Counter()
    for cpu in cpus:
        khz = number(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq")
        kinds[_name(blocks.get(cpu, {})), khz] += 1
    return tuple(
        CoreKind(count, name, round(khz / 1e4) * 1e7 if khz else None)
        for (name, khz), count in kinds.items()
    )


def performance_cores(root: Path, cpus: list[int]) -> int:
    """Physical cores among `cpus`, without those of less than half the largest capacity."""
    capacity: dict[str, int] = {}
    for cpu in cpus:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = text(folder / "topology/thread_siblings_list") or str(cpu)
        capacity[siblings.strip()] = number(folder / "cpu_capacity") or 1024
    largest = max(capacity.values())
    return sum(2 * value >= largest for value in capacity.values())


def features(root: Path) -> frozenset[str]:
    """Flags (x86) or Features (ARM) that every CPU of /proc/cpuinfo has."""
    lists = [
        frozenset((block.get("flags") or block.get("Features") or "").split())
        for block in _blocks(root).values()
    ]
    return frozenset.intersection(*lists) if lists else frozenset()


def _blocks(root: Path) -> dict[int, dict[str, str]]:
    """CPU number -> its lines of /proc/cpuinfo."""
    blocks: dict[int, dict[str, str]] = {}
    for chunk in (text(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in chunk.splitlines())
        block = {key.strip(): value.strip() for key, _, value in pairs}
        if block.get("processor", "").isdigit():
            blocks[int(block["processor"])] = block
    return blocks


def _name(block: dict[str, str]) -> str:
    if "model name" in block and "CPU part" not in block:
        return " ".join(block["model name"].split()) or "core"
    try:
        maker, part = int(block["CPU implementer"], 16), int(block["CPU part"], 16)
    except (KeyError, ValueError):
        return "core"
    if maker == 0x41 and part in _ARM_PARTS:
        return _ARM_PARTS[part]
    return f"{_MAKERS.get(maker, f'maker {maker:#x}')} part {part:#05x}"
