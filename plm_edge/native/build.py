"""Compile the kernels into one shared library beside this file, with any C11 compiler.

    python plm_edge/native/build.py [--sanitize]

The compiler is $CC, or the first of cc, gcc and clang that is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "libplm_edge.so"

# -ffp-contract=off: the scalar kernels give the same bits on every CPU; a compiler that fuses
# would not.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]


class Isa(NamedTuple):
    """How the C files of an instruction set are compiled: those whose names begin with its name."""

    machine: str
    flags: list[str]
    without: str | None = None  # tells isa.c that the set is left out: older compilers lack it


AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))]
I8MM = ["-march=armv8.2-a+dotprod+i8mm"]
# Every other file is plain C11.
SETS = {
    "avx2": Isa("x86_64", AVX2),
    "avx_vnni": Isa("x86_64", [*AVX2, "-mavxvnni"], "-DPLM_WITHOUT_AVX_VNNI"),
    "avx512": Isa("x86_64", AVX512, "-DPLM_WITHOUT_AVX512_VNNI"),
    "neon": Isa("aarch64", []),
    "neon_dotprod": Isa("aarch64", ["-march=armv8.2-a+dotprod"]),
    "neon_i8mm": Isa("aarch64", I8MM),
    "neon_smmla": Isa("aarch64", I8MM),
}


def compiler() -> str:
    """$CC, or a compiler on the PATH. Raises SystemExit with the cure where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name.split()[0]):
            return name
    raise SystemExit("expected a C compiler, found none: install gcc or clang, or set CC")


def knows(cc: list[str], flags: list[str]) -> bool:
    """Whether the compiler takes these flags."""
    command = [*cc, *flags, "-Werror", "-E", "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def machine_of(cc: list[str]) -> str:
    """What the compiler makes code for: "x86_64", "aarch64" or "other".

    It may be another machine than this, or have fewer bits than the kernel says (a 32-bit system
    on a 64-bit ARM). The macros know what -dumpmachine does not: gcc -m32, zig cc -target.
    """
    macros = subprocess.check_output([*cc, "-dM", "-E", "-x", "c", os.devnull], text=True)
    known = (name for name in ("x86_64", "aarch64") if f"#define __{name}__ 1" in macros)
    return next(known, "other")


def set_of(file: Path) -> str | None:
    """The set with the longest name that the file's begins with."""
    return max((name for name in SETS if file.name.startswith(name)), key=len, default=None)


def isa_flags(cc: list[str], isa: Isa) -> list[str]:
    """The set's flags; zig's cc has other names for those of ARM."""
    flags = isa.flags
    zig = [flag.replace("-march=armv8.2-a", "-mcpu=generic+v8_2a") for flag in flags]
    return zig if zig != flags and not knows(cc, flags) else flags


def compile_objects(folder: Path, sanitize: bool = False) -> list[str]:
    """Compile every C file here into `folder`, without the instruction sets of other machines."""
    cc = compiler().split()
    machine = machine_of(cc)
    flags = [*FLAGS, *WARNINGS, *(SANITIZE if sanitize else [])]
    sets = {name: isa for name, isa in SETS.items() if isa.machine == machine}
    missing = {
        name: isa.without for name, isa in sets.items() if isa.without and not knows(cc, isa.flags)
    }
    flags += missing.values()
    objects = []
    for source in sorted(HERE.glob("*.c")):
        name = set_of(source)
        if name is not None and (name not in sets or name in missing):
            continue
        objects.append(f"{folder}/{source.stem}.o")
        own = [] if name is None else isa_flags(cc, sets[name])
        subprocess.run([*cc, *flags, *own, "-c", str(source), "-o", objects[-1]], check=True)
    return objects


def build(library: Path = LIBRARY, sanitize: bool = False) -> Path:
    """Compile every C file here into `library`; nothing half-made ever stands under that name."""
    flags = [*FLAGS, *(SANITIZE if sanitize else [])]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as scratch:
        objects = compile_objects(Path(scratch), sanitize)
        made = f"{scratch}/library"
        link = [*compiler().split(), *flags, "-shared", *objects, "-o", made, "-lm"]
        subprocess.run(link, check=True)
        os.replace(made, library)
    return library


if __name__ == "__main__":
    print(build(sanitize="--sanitize" in sys.argv[1:]))
