"""What `make wheels` (tools/build_wheels.py) refuses to hand out; compilers of other machines."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import wheel_age
from wheel_age import is_stale

from plm_edge.native.build import FLAGS, LIBRARY, SETS, isa_flags, knows, machine_of

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-wheels/bin/python"
CHECK = (
    "import sys, build_wheels, pathlib; build_wheels.check(pathlib.Path(sys.argv[1]), sys.argv[2])"
)


@pytest.fixture(scope="module")
def wheels():
    found = {kind: sorted((ROOT / "dist").glob(f"*{kind}.whl")) for kind in ("x86_64", "aarch64")}
    if not all(found.values()) or not PYTHON.exists():
        pytest.skip("no wheels here; `make wheels` builds them")
    newest = {kind: paths[-1] for kind, paths in found.items()}
    if any(is_stale(wheel) for wheel in newest.values()):
        pytest.skip(
            "the wheels in dist/ are older than the sources; `make wheels` builds them anew"
        )
    return newest


@pytest.mark.parametrize(
    "name",
    [
        *("pyproject.toml", "setup.py", "plm_edge/app.py", "plm_edge/native/a.c"),
        *("plm_edge/native/a.h", "plm_edge/texts/a.txt", "devices/termux/run.sh"),
        *("devices/profiles/a.toml", "devices/raspberry_pi/a@.service"),
        *("devices/raspberry_pi/a.socket", "runtime/a.py", "exporters/a.py"),
    ],
)
def test_a_younger_source_makes_a_wheel_stale(monkeypatch, tmp_path, name):
    monkeypatch.setattr(wheel_age, "ROOT", tmp_path)
    wheel, source = tmp_path / "dist/a.whl", tmp_path / name
    for path in (tmp_path / "pyproject.toml", tmp_path / "setup.py", wheel, source):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
    assert not is_stale(wheel)
    os.utime(source, (2, 2))
    assert is_stale(wheel)


def test_every_folder_of_python_is_a_package_of_the_wheel():
    folders = {path.parent for path in ROOT.glob("plm_edge/**/__init__.py")}
    for top in ("devices", "exporters", "runtime"):
        folders |= {ROOT / "plm_edge" / path.parent for path in within(top, "**/__init__.py")}
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    assert sorted(re.findall(r'"([\w.]+)"', listed[1])) == sorted(
        ".".join(path.relative_to(ROOT).parts) for path in folders
    )


def within(top, pattern):
    return [path.relative_to(ROOT) for path in (ROOT / top).glob(pattern)]


def test_a_wheel_holds_every_file(wheels):
    """Of the kinds that git keeps; names as they are installed."""
    kinds = ("py", "c", "h", "toml", "txt", "json", "safetensors", "sh", "socket", "service")
    expected = {"plm_edge/py.typed"}
    for kind in kinds:
        expected |= {str(path) for path in within("plm_edge", f"**/*.{kind}")}
        for top in ("devices", "exporters", "runtime"):
            expected |= {f"plm_edge/{path}" for path in within(top, f"**/*.{kind}")}
    expected -= {"plm_edge/devices/common.sh"}  # the devices' folders have it
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as content:
            missing = expected - set(content.namelist())
        assert not missing


def check(wheel, kind):
    command = [PYTHON, "-c", CHECK, wheel, kind]
    return subprocess.run(command, cwd=ROOT / "tools", capture_output=True, text=True)


def with_library(wheel, path, library):
    """A copy of the wheel with another library in it."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = library if entry.filename.endswith(".so") else old.read(entry)
            new.writestr(entry, data)
    return path


@pytest.mark.parametrize("kind", ["x86_64", "aarch64"])
def test_a_wheel_is_for_its_machine_and_every_python(wheels, kind):
    done = check(wheels[kind], kind)
    assert done.returncode == 0, done
    with zipfile.ZipFile(wheels[kind]) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".dist-info/WHEEL"))
        text = content.read(name).decode()
    assert f"Root-Is-Purelib: false\nTag: py3-none-manylinux_2_17_{kind}\n" in text


def test_a_wheel_with_symbols_of_this_systems_glibc_is_refused(wheels, tmp_path):
    native = with_library(wheels["x86_64"], tmp_path / wheels["x86_64"].name, LIBRARY.read_bytes())
    done = check(native, "x86_64")
    assert done.returncode == 1, done
    assert "expected symbols of glibc 2.17, found: " in done.stderr


def test_a_wheel_without_a_kernel_set_is_refused(wheels, tmp_path):
    with zipfile.ZipFile(wheels["aarch64"]) as content:
        library = content.read("plm_edge/native/libplm_edge.so")
    spoilt = library.replace(b"neon-i8mm\0", b"neon-none\0")
    assert spoilt != library
    done = check(
        with_library(wheels["aarch64"], tmp_path / wheels["aarch64"].name, spoilt), "aarch64"
    )
    assert done.returncode == 1, done
    assert (
        "expected kernel set neon-i8mm in plm_edge/native/libplm_edge.so, found none" in done.stderr
    )


CROSS = {
    "gcc": "x86_64",
    "clang": "x86_64",
    "gcc -m32": "other",
    "clang --target=aarch64-linux-android24": "aarch64",
    "aarch64-linux-gnu-gcc": "aarch64",
    "zig x86_64-linux-gnu.2.17": "x86_64",
    "zig aarch64-linux-gnu.2.17": "aarch64",
}


@pytest.mark.parametrize(("command", "machine"), CROSS.items())
def test_a_compiler_says_its_machine_and_takes_its_flags(command, machine):
    cc = command.replace("zig", f"{PYTHON} -m ziglang cc -target").split()
    if not shutil.which(cc[0]):
        pytest.skip(f"{command.split()[0]} is not installed")
    if command.split()[0] in ("gcc", "clang") and platform.machine() != "x86_64":
        pytest.skip("this is not an x86-64 machine")
    assert machine_of(cc) == machine
    known = {name for name, isa in SETS.items() if knows(cc, [*FLAGS, *isa_flags(cc, isa)])}
    plain = {name for name, isa in SETS.items() if not isa.flags}
    arm = {name for name, isa in SETS.items() if isa.machine == "aarch64"} - plain
    x86 = SETS.keys() - plain - arm
    known -= plain
    if machine == "aarch64":
        assert known == arm
    else:  # gcc -m32 too takes the flags; an older compiler lacks some
        assert known >= {name for name in x86 if not SETS[name].without}
        assert not known & arm
    if "zig" in command:
        assert known in (arm, x86)
