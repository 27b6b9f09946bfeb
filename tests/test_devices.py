"""Device profiles: strict reading, a source for every number; detection under memory limits."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from plm_edge import devices
from plm_edge.devices.cores import CoreKind
from plm_edge.devices.profile import read_profile, write_profile
from plm_edge.errors import FileFormatError, UsageError
from plm_edge.native.kernels import isa_table

GOOD = """
name = "Board"
[cpu]
isa = "neon"
cores = ["4 x Cortex-A72 at 1.8 GHz", "4 x Cortex-A53"]
performance_cores = 4
source = "a"
[memory]
total = "4 GiB"
usable = "3 GiB"
[memory.source]
total = "b"
usable = "c"
[bandwidth]
nominal = "12.8 GB/s"
decode = ["3 GB/s", "4 GB/s"]
source = "d"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text)
    return path


WANTED = {
    "rpi4-2gb",
    "rpi4-4gb",
    "rpi4-8gb",
    "rpi5-2gb",
    "rpi5-4gb",
    "rpi5-8gb",
    "rpi5-16gb",
    "rpi-zero-2w",
    "jetson-orin-nano",
    "jetson-orin-nano-super",
    "orangepi5-8gb",
    "intel-n100",
    "intel-n150",
    "laptop-avx2",
    "laptop-avx512",
    "snapdragon-8gen2",
    "snapdragon-8gen3",
    "snapdragon-8elite",
    "android",
    "apple-m1",
    "rtx3060",
    "rtx4060",
    "rtx4090",
    "igpu",
}


def test_every_shipped_profile_loads_and_names_its_sources():
    assert WANTED | {"host"} <= set(devices.names())
    for name in devices.names():
        profile = devices.load(name)
        known = profile.to_dict()
        assert set(known) - {"name", "source"} == set(profile.sources), name
        assert all(len(source) > 4 for source in profile.sources.values()), name
        assert profile.usable_bytes <= profile.ram_bytes
        json.dumps(known)


def test_boards_of_one_kind_differ_in_their_memory_alone():
    for small, large in (("rpi4-2gb", "rpi4-8gb"), ("rpi5-2gb", "rpi5-16gb")):
        few, many = devices.load(small), devices.load(large)
        assert few.ram_bytes < many.ram_bytes
        assert few.usable_bytes < many.usable_bytes
        same = ("isa", "core_kinds", "performance_cores", "decode_bytes_per_s", "onnx_providers")
        assert [getattr(few, key) for key in same] == [getattr(many, key) for key in same]


def test_aliases_name_the_documented_boards():
    assert devices.load("rpi") == devices.load("rpi5-4gb")
    assert devices.load("rpi").name == "Raspberry Pi 5, 4 GB"
    assert devices.load("rpi4").name == "Raspberry Pi 4, 4 GB"
    assert devices.load("gpu").gpu_api == "cuda"
    assert set(devices.ALIASES.values()) <= set(devices.names())
    assert not set(devices.ALIASES) & set(devices.names())


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown target 'rpi9'; known are host, android.*rpi4"):
        devices.load("rpi9")


def test_a_path_is_a_target_too(tmp_path):
    profile = devices.load(str(written(tmp_path, GOOD)))
    assert (profile.ram_bytes, profile.usable_bytes) == (4 << 30, 3 << 30)
    assert (profile.cores, profile.performance_cores) == (8, 4)
    assert profile.core_kinds[0] == CoreKind(4, "Cortex-A72", 1.8e9)
    assert profile.core_kinds[1] == CoreKind(4, "Cortex-A53", None)
    assert profile.decode_bytes_per_s == (3e9, 4e9)
    assert profile.sources["usable_bytes"] == "c"
    assert profile.sources["core_kinds"] == "a"
    assert profile.read_bytes_per_s is None  # not in the file: unknown, not 0


def test_a_profile_says_only_what_differs_from_a_shipped_one(tmp_path):
    mine = 'name = "Mine"\nlike = "rpi5-4gb"\n[bandwidth]\nread = "12 GB/s"\nsource = "measured"\n'
    profile = devices.load(str(written(tmp_path, mine)))
    assert (profile.name, profile.ram_bytes, profile.isa) == ("Mine", 4 << 30, "neon-dotprod")
    assert profile.read_bytes_per_s == 12e9
    assert profile.nominal_bytes_per_s is None  # a section comes whole
    for like, said in (("rpi9", "like is 'rpi9', expected one of android"), ("rpi5-2gb", "itself")):
        with pytest.raises(FileFormatError) as error:
            devices.load(str(written(tmp_path, mine.replace("rpi5-4gb", like))))
        assert said in str(error.value)


def test_unknown_usable_memory_is_half_by_rule_and_says_so(tmp_path):
    text = GOOD.replace('usable = "3 GiB"\n', "").replace('usable = "c"\n', "")
    profile = devices.load(str(written(tmp_path, text)))
    assert profile.usable_bytes == profile.ram_bytes // 2
    assert profile.sources["usable_bytes"] == "not known: half of the memory, by rule"


@pytest.mark.parametrize("name", ["rpi5-8gb", "snapdragon-8gen2", "rtx4090", "apple-m1", "igpu"])
def test_a_written_profile_reads_the_same(tmp_path, name):
    profile = devices.load(name)
    assert devices.load(str(written(tmp_path, write_profile(profile)))) == profile


def test_a_measured_profile_reads_the_same(tmp_path):
    measured = replace(
        devices.load("rpi4"),
        name='Board "A\\B"\x1b',
        step_bytes_per_s={"Q4_0": 1.5e10, "Q8_0": 1.834e10},
        attend_mac_per_s={"f16": 6e10},
        sources=devices.load("rpi4").sources
        | {"step_bytes_per_s": "measured", "attend_mac_per_s": "measured"},
    )
    again = devices.load(str(written(tmp_path, write_profile(measured))))
    assert again == replace(measured, name='Board "A\\B"?')


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("performance_cores = 4", "colour = 1", "unknown key 'cpu.colour'; known are isa, cores"),
        (
            '"Board"',
            '"Board"\nram_bytes = 1',
            "unknown key 'ram_bytes'; known are name, like, [cpu]",
        ),
        ('"Board"', '"Board"\nmemory = 1', "not a TOML file"),
        ('total = "4 GiB"\n', "", "memory.total is missing; a profile needs it"),
        ('name = "Board"\n', "", "name is missing; a profile needs it"),
        ('name = "Board"', "name = 3", "name is 3, expected a string"),
        # a number without its unit, or with one of something else
        ('"4 GiB"', "4", "memory.total is 4: expected a number above 0 and its unit in quotes"),
        ('"4 GiB"', '"4"', "memory.total is '4': expected a number above 0 and its unit"),
        ('"4 GiB"', '"4 GB/s"', "memory.total is '4 GB/s': unit 'GB/s', expected one of B, kB"),
        (
            '"12.8 GB/s"',
            "12.8",
            "bandwidth.nominal is 12.8: expected a number above 0 and its unit",
        ),
        ('"12.8 GB/s"', '"12.8 GB"', "bandwidth.nominal is '12.8 GB': unit 'GB', expected one of"),
        ('"12.8 GB/s"', '"-1 GB/s"', "bandwidth.nominal is '-1 GB/s': expected a number above 0"),
        ('"12.8 GB/s"', '"0 GB/s"', "bandwidth.nominal is '0 GB/s': expected a number above 0"),
        ('["3 GB/s", "4 GB/s"]', '"3 GB/s"', "expected the least and the most"),
        ("at 1.8 GHz", "at 1.8", "has no unit of its clock: GHz"),
        ('["4 x', '["four x', "cpu.cores is ['four x Cortex-A72"),
        (
            "performance_cores = 4",
            "performance_cores = 4.0",
            "cpu.performance_cores is 4.0: expected",
        ),
        ("performance_cores = 4", "performance_cores = true", "is True: expected a whole number"),
        ('isa = "neon"', 'isa = "mmx"', "cpu.isa is 'mmx': expected one of scalar, avx2"),
        # impossible
        ('"3 GiB"', '"5 GiB"', "memory.usable is 5 GiB, more than memory.total (4 GiB)"),
        ("cores = 4", "cores = 9", "cpu.performance_cores is 9, more than cpu.cores (8)"),
        ('"4 GB/s"]', '"14 GB/s"]', "bandwidth.decode is 14 GB/s, more than bandwidth.nominal"),
        ('["3 GB/s"', '["3.5e9 GB/s"', "expected a number above 0"),
        (
            '["3 GB/s"',
            '["5 GB/s"',
            "bandwidth.decode is 5 GB/s, more than bandwidth.decode's second",
        ),
        # sources
        ('usable = "c"\n', "", "memory.usable has no source; add it to [memory.source]"),
        ('usable = "c"', 'usable = "c"\nfree = "x"', "memory.free has a source but no value"),
        ('source = "a"\n', "", "cpu.source is None, expected where the numbers come from"),
        ('source = "a"', 'source = " "', "cpu.source is ' ', expected where"),
        ('name = "Board"', "name Board", "not a TOML file"),
    ],
)
def test_a_bad_profile_is_refused_by_name(tmp_path, old, new, said):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(FileFormatError) as error:
        read_profile(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said_plainly(tmp_path):
    with pytest.raises(UsageError, match=r"found no profile '.*none\.toml'"):
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
