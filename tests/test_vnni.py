"""AVX-VNNI and AVX-512 VNNI on any x86-64: tests/native/isa_matrix*.c with SIMDe for intrinsics.

The same C files, compiled for AVX2; a CPU that has the sets runs them in test_isa.py as well.
"""

from __future__ import annotations

import ctypes
import platform
import signal
import subprocess
from pathlib import Path

import pytest
from test_neon import assert_all_noticed, assert_equal, compiled, lines, run

from plm_edge.native import build
from plm_edge.native.kernels import isa_table

SIMDE = Path(__file__).parent / "native" / "simde_vnni.h"
SETS = {"avx-vnni": "avx_vnni", "avx512-vnni": "avx512"}  # their names in build.py
# What Linux calls all that a set needs.
NEEDS = {
    "avx-vnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512-vnni": {"avx2", "fma", "f16c"}
    | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
}

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="sets of x86-64")


def cpu_flags():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    raise AssertionError("no flags in /proc/cpuinfo")


def known_sets():
    """The sets that this compiler can compile."""
    return [
        name
        for name, prefix in SETS.items()
        if build.knows(build.compiler().split(), build.SETS[prefix].flags)
    ]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    include = [*build.compiler().split(), "-fsyntax-only", "-x", "c", "-"]
    header = "#include <simde/x86/avx512.h>"
    if subprocess.run(include, input=header, text=True, capture_output=True).returncode:
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    with pytest.MonkeyPatch.context() as patch:
        flags = [*build.AVX2, "-include", str(SIMDE), "-Wno-psabi"]
        for prefix in SETS.values():
            patch.setitem(build.SETS, prefix, build.SETS[prefix]._replace(flags=flags))
        return compiled(tmp_path_factory.mktemp("simde"), sanitize=True)


def test_vnni_sets_agree_with_scalar_on_simulated_instructions(simulated):
    done = run(simulated, "--anyway")
    assert done.returncode == 0, done
    for name in ("avx2", *NEEDS):
        assert_equal(name, done)


def test_a_bent_weight_is_noticed_on_simulated_instructions(simulated):
    done = run(simulated, "--anyway", "--bend")
    assert_all_noticed(done)
    for name in NEEDS:
        assert lines(name, done)


def test_a_set_is_offered_where_linux_sees_all_that_it_needs():
    flags = cpu_flags()
    for name in known_sets():
        assert (name in isa_table()) == (NEEDS[name] <= flags), flags


def test_a_set_that_the_cpu_lacks_would_be_an_illegal_instruction(tmp_path):
    missing = [name for name in known_sets() if not NEEDS[name] <= cpu_flags()]
    if not missing:
        pytest.skip("this CPU has every set of this build")
    program = compiled(tmp_path)
    done = run(program)
    assert done.returncode == 0, done
    for name in missing:
        assert lines(name, done, runs=False) == []
    done = run(program, "--anyway")
    assert done.returncode == -signal.SIGILL, done
    assert done.stdout.splitlines()[-1] == f"{missing[0]}: runs"


def test_a_compiler_that_does_not_know_a_flag_leaves_the_set_out(tmp_path, monkeypatch):
    old = tmp_path / "cc"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *-mavxvnni*|*-mavx512vnni*) exit 1;; esac\n'
        f'exec {build.compiler()} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    library = ctypes.CDLL(str(build.build(tmp_path / "library.so")))
    library.plm_isa_at.restype = ctypes.c_void_p
    library.plm_isa_name.argtypes = [ctypes.c_void_p]
    library.plm_isa_name.restype = ctypes.c_char_p
    names = []
    while (isa := library.plm_isa_at(len(names))) is not None:
        names.append(library.plm_isa_name(isa).decode())
    assert names == ["scalar", "avx2"]
