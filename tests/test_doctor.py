"""plm-edge doctor and devices detect: on recorded machines, and on this one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plm_edge import devices
from plm_edge.cli import measure
from plm_edge.devices import board, cpu, doctor
from plm_edge.devices.cores import CoreKind
from plm_edge.errors import OutputError, UsageError

PI5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
PI4 = "fp asimd evtstrm crc32 cpuid"  # github.com/ggml-org/llama.cpp issue 5481
ARM = "processor\t: {cpu}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
X86 = "processor\t: 0\nmodel name\t: Some  CPU\nflags\t\t: sse2 avx2 fma f16c\n\n"


def machine(root: Path, **files: str) -> Path:
    """A healthy one of 1,000 MiB, but for the given files; `__` stands for a slash."""
    texts = {"proc/meminfo": "MemTotal: 1024000 kB\nMemAvailable: 819200 kB\n"}
    for name, content in {
        **texts,
        **{key.replace("__", "/"): v for key, v in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def found(root: Path, environ: dict[str, str] | None = None) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(root, environ or {})}


def test_a_healthy_machine_has_no_findings(tmp_path):
    assert found(machine(tmp_path)) == {}


@pytest.mark.parametrize(
    ("files", "name", "said", "cure"),
    [
        (
            {"sys__devices__platform__soc__soc:firmware__get_throttled": "50005\n"},
            "throttled",
            "the board reports throttling now",
            "heat sink",
        ),
        (
            {"sys__devices__platform__soc__soc:firmware__get_throttled": "10000\n"},
            "throttled",
            "the board reports under-voltage since it was started",
            "power supply",
        ),
        (
            {"sys__devices__system__cpu__cpu0__thermal_throttle__core_throttle_count": "12\n"},
            "throttled",
            "throttled 12 times for its heat",
            "fewer threads",
        ),
        (
            {"sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "powersave\n"},
            "governor",
            "held at its lowest",
            "ondemand",
        ),
        (
            {"proc__swaps": "Filename Type Size\n/dev/mmcblk0p3 partition 99\n"},
            "swap",
            "/dev/mmcblk0p3 lies on an SD card",
            "zram",
        ),
        (
            {
                "proc__swaps": "Filename Type Size\n/var/swap file 99\n",
                "proc__self__mounts": "/dev/mmcblk0p2 / ext4 rw 0 0\n",
            },
            "swap",
            "/var/swap lies on an SD card",
            "swapoff",
        ),
        (
            {"proc__meminfo": "MemTotal: 512000 kB\nMemAvailable: 100000 kB\n"},
            "memory",
            "MiB may be used",
            "close other programs",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(tmp_path, files, name, said, cure):
    finding = found(machine(tmp_path, **files))[name]
    assert said in finding.said
    assert cure in finding.cure
    assert "\n" not in str(finding)


@pytest.mark.parametrize(
    "files",
    [
        {"sys__devices__platform__soc__soc:firmware__get_throttled": "0\n"},
        {"sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "ondemand\n"},
        {
            "sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "powersave\n",
            "sys__devices__system__cpu__cpu0__cpufreq__scaling_driver": "intel_pstate\n",
        },
        {"proc__swaps": "Filename Type Size\n/dev/zram0 partition 99\n"},
        {
            "proc__swaps": "Filename Type Size\n/var/swap file 99\n",
            "proc__self__mounts": "/dev/nvme0n1p2 / ext4 rw 0 0\n",
        },
    ],
)
def test_what_is_well_is_not_reported(tmp_path, files):
    assert found(machine(tmp_path, **files)) == {}


def test_a_cpu_that_other_builds_crash_on_is_a_hazard(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "llama_cpp" or None)
    info = ARM.format(cpu=0, features=PI4, part="0xd08")
    assert "no dotprod" in found(machine(tmp_path / "pi4", proc__cpuinfo=info))["hazard"].said
    info = ARM.format(cpu=0, features=PI5, part="0xd0b")
    assert "hazard" not in found(machine(tmp_path / "pi5", proc__cpuinfo=info))
    old = X86.replace(" avx2 fma f16c", "")
    assert "AVX2" in found(machine(tmp_path / "old", proc__cpuinfo=old))["hazard"].said
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert "hazard" not in found(machine(tmp_path / "old"))


def test_a_library_without_the_kernels_of_this_cpu_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "isa_table", lambda: {"scalar": 1})
    said = found(machine(tmp_path / "x86", proc__cpuinfo=X86))["kernels"].said
    assert "could run avx2, the library has scalar" in said
    info = ARM.format(cpu=0, features=PI5, part="0xd0b")
    assert "neon-dotprod" in found(machine(tmp_path / "pi", proc__cpuinfo=info))["kernels"].said

    def broken() -> dict[str, int]:
        raise OSError("no such library")

    monkeypatch.setattr(doctor, "isa_table", broken)
    assert "cannot be used (no such library)" in found(machine(tmp_path))["kernels"].said


def test_termux_is_warned_of_the_phantom_process_killer(tmp_path, monkeypatch):
    termux = {"PREFIX": "/data/data/com.termux/files/usr"}
    assert board.in_termux(termux)
    assert not board.in_termux({})
    assert "signal 9" in found(machine(tmp_path), termux)["phantom"].said
    monkeypatch.setattr(doctor, "_android_property", lambda _: "30")
    assert "phantom" not in found(machine(tmp_path), termux)


# ---------------------------------------------------------------- detection


def test_cores_are_told_by_kind(tmp_path):
    info = "".join(
        ARM.format(cpu=i, features=PI5, part="0xd05" if i < 4 else "0xd0b") for i in range(8)
    )
    root = machine(tmp_path, proc__cpuinfo=info)
    for i in range(8):
        folder = root / f"sys/devices/system/cpu/cpu{i}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text("1800000\n" if i < 4 else "2400000\n")
    assert cpu.core_kinds(root, list(range(8))) == (
        CoreKind(4, "Cortex-A55", 1.8e9),
        CoreKind(4, "Cortex-A76", 2.4e9),
    )
    assert cpu.core_kinds(root, [7]) == (CoreKind(1, "Cortex-A76", 2.4e9),)
    assert "asimddp" in cpu.features(root)
    assert cpu.core_kinds(machine(tmp_path / "x", proc__cpuinfo=X86), [0]) == (
        CoreKind(1, "Some CPU"),
    )
    assert cpu.core_kinds(tmp_path / "nothing", [0, 1]) == (CoreKind(2, "core"),)


def test_the_board_is_named_by_its_device_tree_or_bios(tmp_path):
    pi = machine(tmp_path / "a", **{"proc__device-tree__model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    assert board.model(pi) == "Raspberry Pi 5 Model B Rev 1.0"
    dmi = {"sys__class__dmi__id__sys_vendor": "Maker\n", "sys__class__dmi__id__product_name": "X\n"}
    assert board.model(machine(tmp_path / "b", **dmi)) == "Maker X"
    assert board.model(machine(tmp_path / "c")) is None


def test_graphics_processors_are_listed(tmp_path):
    card = {
        "sys__class__drm__card0__device__vendor": "0x1002\n",
        "sys__class__drm__card0__device__device": "0x744c\n",
        "sys__class__drm__card0__device__mem_info_vram_total": f"{24 << 30}\n",
        "sys__class__drm__card1__device__vendor": "0x1234\n",
    }
    root = machine(tmp_path, **card)
    assert board.gpus(root) == ["AMD 0x744c, 24,576 MiB"]
    assert devices.detect(root).gpu == "AMD 0x744c, 24,576 MiB"


def test_nvidia_smi_is_asked_where_it_is(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3060, 12288 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "NVIDIA GeForce RTX 3060, 12288 MiB" in board.gpus(Path("/"))
    program.write_text("#!/bin/sh\nexit 9\n")
    assert not any("RTX" in gpu for gpu in board.gpus(Path("/")))


def test_what_this_process_has_counts_as_its_own(tmp_path):
    page = os.sysconf("SC_PAGE_SIZE")
    own = {"proc__self__statm": f"9999 {(20 << 20) // page} 0 0 0 0 0\n"}
    assert devices.detect(machine(tmp_path, **own)).usable_bytes == (800 + 20) << 20
    large = {"proc__self__statm": f"99999 {(200 << 20) // page} 0 0 0 0 0\n"}
    assert devices.detect(machine(tmp_path, **large)).usable_bytes == (800 + 48) << 20
    group = {
        "proc__self__cgroup": "0::/box\n",
        "sys__fs__cgroup__box__memory.max": f"{300 << 20}\n",
        "sys__fs__cgroup__box__memory.current": f"{50 << 20}\n",
    }
    assert devices.detect(machine(tmp_path, **own, **group)).usable_bytes == 270 << 20
    alone = {**group, "sys__fs__cgroup__box__memory.current": f"{19 << 20}\n"}
    assert devices.detect(machine(tmp_path, **own, **alone)).usable_bytes == 300 << 20


def test_detect_measures_and_writes_a_profile_that_can_be_planned_for(tmp_path, monkeypatch):
    from plm_edge.cli import devices as command

    monkeypatch.setattr(measure, "SHAPE", "plm-tiny")
    out = tmp_path / "mine.toml"
    command.detect(out)
    profile = devices.load(str(out))
    assert set(profile.step_bytes_per_s) == {"Q4_0", "Q8_0"}
    assert profile.attend_mac_per_s["f16"] > 0
    assert profile.read_bytes_per_s
    assert "measured" in profile.sources["step_bytes_per_s"]
    with pytest.raises(OutputError, match="is there already"):
        command.detect(out)
    with pytest.raises(UsageError, match=r"ends in \.toml"):
        command.detect(tmp_path / "mine.json")


def test_little_memory_is_not_spent_on_measuring(capsys):
    small = devices.load("rpi-zero-2w")
    assert measure.measured_host(small) is small
    assert "nothing measured" in capsys.readouterr().err


def test_doctor_prints_json_too(capsys):
    from plm_edge.cli import doctor as command

    command.command(as_json=True)
    assert isinstance(json.loads(capsys.readouterr().out), list)
    command.command(as_json=False)
    assert "Python 3" in capsys.readouterr().out


def test_doctor_says_what_exports_take_and_how_to_delete_them(tmp_path, monkeypatch, capsys):
    from plm_edge.cli import doctor as command

    monkeypatch.setattr(doctor, "examine", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a b"))
    command.command()
    assert capsys.readouterr().out.endswith("nothing wrong was found\n")
    for name in ("one", ".two.part"):
        (tmp_path / "a b/plm-edge" / name).mkdir(parents=True)
        (tmp_path / "a b/plm-edge" / name / "model.gguf").write_bytes(bytes(3 << 20))
    (tmp_path / "a b/plm-edge/gone").symlink_to("nowhere")
    command.command()
    said, exports = capsys.readouterr().out.splitlines()[1:]
    assert said == "nothing wrong was found"
    assert "exports     6 MiB" in exports
    assert f"in {tmp_path}/a b/plm-edge: plm-edge cache lists them" in exports
    command.command(as_json=True)
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["name"] == "exports"
