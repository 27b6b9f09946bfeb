"""Device profiles: strict reading, a source for every number; detection under memory limits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plm_edge import devices
from plm_edge.devices.profile import read_profile
from plm_edge.errors import FileFormatError, OutputError, UsageError
from plm_edge.native.kernels import isa_table

GOOD = """
name = "Board"
isa = "neon"
ram_bytes = 4_000
usable_bytes = 3_000
cores = 8
performance_cores = 4
[source]
isa = "a"
ram_bytes = "b"
usable_bytes = "c"
cores = "d"
performance_cores = "e"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text)
    return path


def test_every_shipped_profile_loads_and_names_its_sources():
    assert {"rpi5-4gb", "rpi4-4gb", "rpi4-2gb", "android", "host"} <= set(devices.names())
    for name in devices.names():
        profile = devices.load(name)
        known = profile.to_dict()
        assert set(known) - {"name", "source"} == set(profile.sources), name
        json.dumps(known)


def test_aliases_name_the_documented_boards():
    assert devices.load("rpi") == devices.load("rpi5-4gb")
    assert devices.load("rpi").name == "Raspberry Pi 5, 4 GB"
    assert devices.load("rpi4").name == "Raspberry Pi 4, 4 GB"


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown target 'rpi9'; known are host, android.*rpi4"):
        devices.load("rpi9")


def test_a_path_is_a_target_too(tmp_path):
    profile = devices.load(str(written(tmp_path, GOOD)))
    assert (profile.ram_bytes, profile.performance_cores) == (4000, 4)
    assert profile.read_bytes_per_s is None  # not in the file: unknown, not 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cores = 8", 'colour = "red"\ncores = 8', "unknown key 'colour'; known are name, isa"),
        ("cores = 8", "", "cores is missing"),
        ("cores = 8", "cores = 8.0", "cores is 8.0, expected a whole number above 0"),
        ("cores = 8", "cores = true", "cores is True, expected a whole number above 0"),
        ("cores = 8", "cores = 0", "cores is 0, expected a whole number above 0"),
        ('name = "Board"', "name = 3", "name is 3, expected a string"),
        ('isa = "neon"', 'isa = "mmx"', "isa is 'mmx', expected one of scalar, avx2"),
        ('isa = "a"', "", "isa has no source"),
        ('isa = "a"', 'isa = "a"\nread_bytes_per_s = "x"', "read_bytes_per_s has a source but no"),
        ('isa = "a"', "isa = 1", "expected a table [source] of strings"),
        ("[source]", "[sources]", "unknown key 'sources'"),
        ("3_000", "5_000", "usable_bytes is 5,000, more than ram_bytes (4,000)"),
        ("cores = 4", "cores = 9", "performance_cores is 9, more than cores (8)"),
        ("cores = 8", "cores 8", "not a TOML file"),
    ],
)
def test_a_bad_profile_is_refused_by_name(tmp_path, old, new, said):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(FileFormatError) as error:
        read_profile(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said_plainly(tmp_path):
    with pytest.raises(OutputError, match=r"none\.toml: cannot be read: No such file"):
        devices.load(str(tmp_path / "none.toml"))


MIB = 1 << 20


def recorded(root: Path, groups: str = "", files: dict[str, str] | None = None) -> Path:
    """A machine of 1,000 MiB, 800 available, whose /proc and /sys hold these texts."""
    first = min(os.sched_getaffinity(0))
    texts = {
        "proc/meminfo": "MemTotal:  1024000 kB\nMemFree: 300 kB\nMemAvailable: 819200 kB\n",
        "proc/self/cgroup": groups,
        f"sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list": f"{first}\n",
        **(files or {}),
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_detect_without_limits(tmp_path):
    profile = devices.detect(recorded(tmp_path))
    assert (profile.ram_bytes, profile.usable_bytes) == (1000 * MIB, 800 * MIB)
    assert profile.cores == len(os.sched_getaffinity(0))
    assert profile.read_bytes_per_s is None


def test_detect_obeys_cgroup_v2_of_any_ancestor(tmp_path):
    files = {
        "sys/fs/cgroup/box/job/memory.max": "max\n",
        "sys/fs/cgroup/box/job/memory.current": f"{90 * MIB}\n",
        "sys/fs/cgroup/box/memory.max": f"{256 * MIB}\n",
        "sys/fs/cgroup/box/memory.current": f"{100 * MIB}\n",
        "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {60 * MIB}\n",
    }
    profile = devices.detect(recorded(tmp_path, groups="0::/box/job\n", files=files))
    assert profile.usable_bytes == (256 - (100 - 60)) * MIB
    assert "control group" in profile.sources["usable_bytes"]


def test_detect_obeys_cgroup_v1_mounted_at_its_own_root(tmp_path):
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{128 * MIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{28 * MIB}\n",
    }
    groups = "9:cpu,cpuacct:/docker/ab\n5:memory:/docker/ab\n"
    profile = devices.detect(recorded(tmp_path, groups=groups, files=files))
    assert profile.usable_bytes == 100 * MIB


def test_a_limit_wider_than_the_machine_changes_nothing(tmp_path):
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{28 * MIB}\n",
    }
    profile = devices.detect(recorded(tmp_path, groups="5:memory:/\n", files=files))
    assert profile.usable_bytes == 800 * MIB


def test_the_kernel_set_is_one_that_profiles_know():
    assert set(isa_table()) <= set(devices.ISAS)
    assert devices.detect().isa == list(isa_table())[-1]


def test_small_cores_and_second_threads_are_not_performance_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    files = {}
    for cpu in range(8):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/cpu_capacity"] = "250\n" if cpu < 4 else "1024\n"
        siblings = "6-7\n" if cpu >= 6 else f"{cpu}\n"
        files[f"{folder}/topology/thread_siblings_list"] = siblings
    profile = devices.detect(recorded(tmp_path, files=files))
    assert (profile.cores, profile.performance_cores) == (8, 3)
