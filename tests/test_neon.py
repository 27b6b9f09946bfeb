"""tests/native/isa_matrix*.c: every instruction set against the scalar one, on this CPU and others.

The sets of 64-bit ARM run under qemu, on CPUs that have and that lack them.
"""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from plm_edge.native.build import FLAGS, HERE, SANITIZE, WARNINGS, compile_objects, compiler

SOURCES = sorted(Path(__file__).parent.glob("native/isa_matrix*.c"))
QEMU, CROSS = "qemu-aarch64-static", "aarch64-linux-gnu-gcc"
SETS = ("neon", "neon-dotprod", "neon-i8mm")

# How many of SETS a CPU runs: an older Raspberry Pi's, the Raspberry Pi 5's, all that qemu knows.
CPUS = {"cortex-a53": 1, "cortex-a76": 2, "max": 3}


def compiled(folder, sanitize=False):
    """The program, for the machine that $CC compiles for."""
    flags = [*FLAGS, *WARNINGS, *(SANITIZE if sanitize else ["-static"]), f"-I{HERE}"]
    program = folder / "isa_matrix"
    objects = compile_objects(folder, sanitize)
    command = [*compiler().split(), *flags, *map(str, SOURCES), *objects, "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    return program


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def lines(name, done, runs=True):
    """What the program says of one set."""
    said = [
        line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(f"{name}: ")
    ]
    assert said[:1] == (["runs"] if runs else ["not on this CPU"]), done
    return said[1:]


def assert_equal(name, done):
    (summary,) = lines(name, done)
    assert summary.endswith(" comparisons, 0 differ"), done
    assert int(summary.split()[0]) > 2900


def assert_all_noticed(done):
    """Every comparison of every set saw the bent weight."""
    assert done.returncode == 1, done
    summaries = [
        line.split(": ")[1].split() for line in done.stdout.splitlines() if "differ" in line
    ]
    assert summaries
    for compared, _, differ, _ in summaries:
        assert compared == differ, done
        assert int(compared) > 2400


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("native"), sanitize=True)


def test_this_machine_under_sanitizers(native):
    done = run(native)
    assert done.returncode == 0, done
    assert_equal("scalar", done)
    assert_all_noticed(run(native, "--bend"))
    for name in SETS:
        assert (f"{name}: " in done.stdout) == (platform.machine() in ("aarch64", "arm64"))


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed (Debian: qemu-user-static)")
    if not shutil.which(CROSS):
        pytest.skip(
            f"{CROSS} is not installed (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", CROSS)
        return compiled(tmp_path_factory.mktemp("arm"))


@pytest.mark.parametrize(("cpu", "has"), CPUS.items())
def test_arm_sets_agree_with_scalar_where_the_cpu_has_them(arm, cpu, has):
    done = run(QEMU, "-cpu", cpu, arm)
    assert done.returncode == 0, done
    assert_equal("scalar", done)
    for name in SETS[:has]:
        assert_equal(name, done)
    for name in SETS[has:]:
        assert lines(name, done, runs=False) == []


def test_a_bent_weight_is_noticed_on_arm(arm):
    assert_all_noticed(run(QEMU, "-cpu", "max", arm, "--bend"))


@pytest.mark.parametrize(
    ("cpu", "first_missing"), [("cortex-a53", SETS[1]), ("cortex-a76", SETS[2])]
)
def test_a_set_that_the_cpu_lacks_would_be_an_illegal_instruction(arm, cpu, first_missing):
    done = run(QEMU, "-cpu", cpu, arm, "--anyway")
    assert done.returncode == -signal.SIGILL, done
    assert done.stdout.splitlines()[-1] == f"{first_missing}: runs"
