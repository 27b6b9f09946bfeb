"""Facts about machines: profiles with a source for every number, and this machine as it is now."""

from __future__ import annotations

from pathlib import Path

from plm_edge.devices.host import HOST, detect, kernel_sets
from plm_edge.devices.profile import ISAS, DeviceProfile, read_profile
from plm_edge.errors import UsageError

__all__ = [
    "ALIASES",
    "HOST",
    "ISAS",
    "DeviceProfile",
    "detect",
    "kernel_sets",
    "load",
    "names",
]

ALIASES = {
    "rpi": "rpi5-4gb",
    "rpi5": "rpi5-4gb",
    "rpi4": "rpi4-4gb",
    "jetson": "jetson-orin-nano",
    "laptop": "laptop-avx2",
    "gpu": "rtx3060",
}
_PROFILES = Path(__file__).parent / "profiles"


def names() -> list[str]:
    """Names of the profiles that ship with the package, and `host`."""
    return [HOST, *sorted(path.stem for path in _PROFILES.glob("*.toml"))]


def load(name: str) -> DeviceProfile:
    """The profile of a name, an alias, `host` (this machine) or the path of a .toml file."""
    if name == HOST:
        return detect()
    if name.endswith(".toml"):
        return read_profile(Path(name), _PROFILES)
    known = ALIASES.get(name, name)
    if known not in names():
        choices = ", ".join([*names(), *ALIASES])
        raise UsageError(
            f"unknown target {name!r}; known are {choices}, or the path of a .toml file"
        )
    return read_profile(_PROFILES / f"{known}.toml", _PROFILES)
