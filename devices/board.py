"""What machine this is: its model, whether it is Termux, which GPUs it has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from plm_edge.devices.files import number, text

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_SMI_SECONDS = 10  # nvidia-smi starts the driver, which takes seconds


def model(root: Path) -> str | None:
    """The board's name: of the device tree (Raspberry Pi and its like) or of the BIOS."""
    tree = text(root / "proc/device-tree/model") or text(
        root / "sys/firmware/devicetree/base/model"
    )
    if tree:
        return " ".join(tree.split())
    maker, product = (
        (text(root / f"sys/class/dmi/id/{name}") or "").strip()
        for name in ("sys_vendor", "product_name")
    )
    return " ".join(f"{maker} {product}".split()) or None


def in_termux(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this runs in Termux on Android."""
    return "TERMUX_VERSION" in environ or "/com.termux/" in environ.get("PREFIX", "")


def gpus(root: Path) -> list[str]:
    """Graphics processors with their memory where it is said; none is needed.

    From nvidia-smi where it is installed, else from the kernel's list.
    """
    found = _from_nvidia_smi() if root == Path("/") else []
    for card in sorted(root.glob("sys/class/drm/card?/device")):
        vendor = (text(card / "vendor") or "").strip()
        if vendor not in _VENDORS or (vendor == "0x10de" and found):
            continue
        device = (text(card / "device") or "").strip()
        memory = number(card / "mem_info_vram_total")
        size = f", {memory >> 20:,} MiB" if memory else ""
        found.append(f"{_VENDORS[vendor]} {device}{size}")
    return found


def _from_nvidia_smi() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = ran.stdout.splitlines() if ran.returncode == 0 else []
    return [line.strip() for line in lines if line.strip()]
