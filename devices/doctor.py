"""What is wrong on this machine for running models, and how to mend it: a line each.

Read below `root`, so that a recorded machine can be examined too; nothing is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from plm_edge.devices import board, cpu
from plm_edge.devices.files import number, text
from plm_edge.devices.memory import memory
from plm_edge.errors import PlmEdgeError
from plm_edge.native.kernels import isa_table

LITTLE_BYTES = 256 << 20  # usable; the demo needs 63 MiB, PLM-1.8B 1.3 GiB
_PHANTOM_SDK = 31  # Android 12 began to end processes of apps that have many
_PROPERTY_SECONDS = 5
# Kernel set -> the features of /proc/cpuinfo that it needs.
_NEEDS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx-vnni": {"avx_vnni"},
    "avx512-vnni": {"avx512_vnni", "avx512bw", "avx512vl"},
    "neon-dotprod": {"asimddp"},
    "neon-i8mm": {"asimddp", "i8mm"},
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, and what to do about it."""

    name: str
    said: str
    cure: str

    def __str__(self) -> str:
        return f"{self.name:12}{self.said}: {self.cure}"


def examine(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Everything that is wrong here; empty where all is well."""
    checks = (
        _userland(root),
        _kernels(root),
        _illegal_instructions(root),
        _memory(root),
        _throttled(root),
        _governor(root),
        _swap(root),
        _phantom_processes(environ),
    )
    return [finding for check in checks for finding in check]


def _userland(root: Path) -> Iterator[Finding]:
    if struct.calcsize("P") == 4:
        yield Finding(
            "userland",
            "this Python is a 32-bit program: it has 2 to 3 GB of addresses and no fast kernels",
            "install the 64-bit system (64-bit Raspberry Pi OS), or a 64-bit Python",
        )


def _kernels(root: Path) -> Iterator[Finding]:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    install = "pkg install clang" if board.in_termux() else "sudo apt install gcc"
    try:
        sets = isa_table()
    except (PlmEdgeError, OSError) as why:
        cure = "install the package again" if compiler else f"{install}, then install it again"
        yield Finding("kernels", f"the compiled library cannot be used ({why})", cure)
        return
    have = cpu.features(root)
    lacking = [name for name, needs in _NEEDS.items() if needs <= have and name not in sets]
    if have and lacking:
        yield Finding(
            "kernels",
            f"this CPU could run {', '.join(lacking)}, the library has {', '.join(sets)}",
            "install a wheel for this machine, or build with a newer gcc or clang",
        )


def _illegal_instructions(root: Path) -> Iterator[Finding]:
    have = cpu.features(root)
    missing = None
    if "asimd" in have and "asimddp" not in have:
        missing = "dotprod (ARMv8.0, as on a Raspberry Pi 4)"
    elif "sse2" in have and "avx2" not in have:
        missing = "AVX2"
    at_risk = [name for name in ("llama_cpp", "onnxruntime") if find_spec(name) is not None]
    if missing and at_risk:
        yield Finding(
            "hazard",
            f"this CPU has no {missing}: builds of {', '.join(at_risk)} for newer ones end with "
            "'Illegal instruction'",
            "build them on this machine; plm-edge's own kernels ask the CPU first",
        )


def _memory(root: Path) -> Iterator[Finding]:
    try:
        found = memory(root)
    except PlmEdgeError as why:
        yield Finding("memory", "it cannot be told how much there is", str(why))
        return
    if found.usable < LITTLE_BYTES:
        yield Finding(
            "memory",
            f"only {found.usable >> 20:,} MiB may be used ({found.sources['usable_bytes']})",
            "close other programs, or raise the limit",
        )


def _throttled(root: Path) -> Iterator[Finding]:
    flags = (text(root / "sys/devices/platform/soc/soc:firmware/get_throttled") or "").strip()
    if re.fullmatch(r"(0x)?[0-9a-fA-F]+", flags) and (bits := int(flags, 16)):
        # raspberrypi.com/documentation/computers/os.html#get_throttled: now, and since the boot
        for bit, what, cure in (
            (0, "under-voltage", "use the board's own power supply and a short cable"),
            (2, "throttling", "cool it: a heat sink or fan"),
            (3, "the soft temperature limit", "cool it: a heat sink or fan"),
        ):
            if bits >> bit & 1 or bits >> bit + 16 & 1:
                when = "now" if bits >> bit & 1 else "since it was started"
                yield Finding("throttled", f"the board reports {what} {when}", cure)
        return
    counts = root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    if events := sum(number(path) or 0 for path in counts):
        yield Finding(
            "throttled",
            f"the CPU was throttled {events:,} times for its heat since it was started",
            "clean its fan, give it air, or use fewer threads (-t)",
        )


def _governor(root: Path) -> Iterator[Finding]:
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    governor = (text(folder / "scaling_governor") or "").strip()
    driver = (text(folder / "scaling_driver") or "").strip()
    # with these drivers `powersave` is the normal one and clocks up under load
    if governor == "powersave" and not re.match(r"intel_pstate$|amd-pstate", driver):
        yield Finding(
            "governor",
            "the clock is held at its lowest (governor powersave)",
            "echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )


def _swap(root: Path) -> Iterator[Finding]:
    of_root = ""
    for line in (text(root / "proc/self/mounts") or "").splitlines():
        device, place = line.split()[:2]
        if place == "/":
            of_root = device
    for line in (text(root / "proc/swaps") or "").splitlines()[1:]:
        name, kind = line.split()[:2]
        if "mmcblk" in name or (kind == "file" and "mmcblk" in of_root):
            yield Finding(
                "swap",
                f"{name} lies on an SD card: slow, and it wears the card out",
                "sudo swapoff -a, and use zram (sudo apt install zram-tools) or a USB disk",
            )


def _phantom_processes(environ: Mapping[str, str]) -> Iterator[Finding]:
    if not board.in_termux(environ):
        return
    sdk = _android_property("ro.build.version.sdk")
    if sdk.isdigit() and int(sdk) < _PHANTOM_SDK:
        return
    yield Finding(
        "phantom",
        "Android 12 and later end Termux' processes with signal 9 when there are many",
        "in the developer options switch on 'Disable child process restrictions', or: adb shell "
        "settings put global settings_enable_monitor_phantom_procs false",
    )


def _android_property(name: str) -> str:
    program = shutil.which("getprop")
    if program is None:
        return ""
    try:
        ran = subprocess.run(
            [program, name], capture_output=True, text=True, timeout=_PROPERTY_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip()


def python_facts() -> str:
    """The interpreter in a few words."""
    bits = 8 * struct.calcsize("P")
    return f"Python {sys.version.split()[0]}, {bits} bits"
