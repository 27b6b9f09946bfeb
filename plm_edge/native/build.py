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

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "libplm_edge.so"

# -ffp-contract=off: the scalar kernels give the same bits on every CPU; a compiler that fuses
# would not.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]

# Files that need an instruction set of their own; every other file is plain C11.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))]
ISA_FLAGS = {
    "avx2.c": AVX2,
    "avx2_attend.c": AVX2,
    "avx2_panel.c": AVX2,
    "avx2_super.c": AVX2,
    "avx2_units.c": AVX2,
    "avx2_vectors.c": AVX2,
    "avx_vnni.c": [*AVX2, "-mavxvnni"],
    "avx_vnni_super.c": [*AVX2, "-mavxvnni"],
    "avx512_vnni.c": AVX512,
    "avx512_attend.c": AVX512,
    "avx512_floats.c": AVX512,
    "avx512_super.c": AVX512,
    "avx512_super_units.c": AVX512,
    "neon_dotprod.c": ["-march=armv8.2-a+dotprod"],
    "neon_dotprod_super.c": ["-march=armv8.2-a+dotprod"],
    "neon_i8mm.c": ["-march=armv8.2-a+dotprod+i8mm"],
    "neon_smmla.c": ["-march=armv8.2-a+dotprod+i8mm"],
}
X86, ARM = {"x86_64"}, {"aarch64"}
ISA_MACHINES = {
    "avx2.c": X86,
    "avx2_attend.c": X86,
    "avx2_panel.c": X86,
    "avx2_super.c": X86,
    "avx2_units.c": X86,
    "avx2_vectors.c": X86,
    "avx_vnni.c": X86,
    "avx_vnni_super.c": X86,
    "avx512_vnni.c": X86,
    "avx512_attend.c": X86,
    "avx512_floats.c": X86,
    "avx512_super.c": X86,
    "avx512_super_units.c": X86,
    "neon.c": ARM,
    "neon_dotprod.c": ARM,
    "neon_dotprod_super.c": ARM,
    "neon_floats.c": ARM,
    "neon_i8mm.c": ARM,
    "neon_smmla.c": ARM,
    "neon_super.c": ARM,
    "neon_vectors.c": ARM,
}
# Sets that older compilers do not know: without them isa.c is told so and leaves the set out.
OPTIONAL = {
    "avx_vnni.c": "-DPLM_WITHOUT_AVX_VNNI",
    "avx_vnni_super.c": "-DPLM_WITHOUT_AVX_VNNI",
    "avx512_vnni.c": "-DPLM_WITHOUT_AVX512_VNNI",
    "avx512_attend.c": "-DPLM_WITHOUT_AVX512_VNNI",
    "avx512_floats.c": "-DPLM_WITHOUT_AVX512_VNNI",
    "avx512_super.c": "-DPLM_WITHOUT_AVX512_VNNI",
    "avx512_super_units.c": "-DPLM_WITHOUT_AVX512_VNNI",
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


def isa_flags(cc: list[str], file: str) -> list[str]:
    """The flags of a C file's own instruction set; zig's cc has other names for those of ARM."""
    flags = ISA_FLAGS.get(file, [])
    zig = [flag.replace("-march=armv8.2-a", "-mcpu=generic+v8_2a") for flag in flags]
    return zig if zig != flags and not knows(cc, flags) else flags


def compile_objects(folder: Path, sanitize: bool = False) -> list[str]:
    """Compile every C file here into `folder`, without the instruction sets of other machines."""
    cc = compiler().split()
    machine = machine_of(cc)
    flags = [*FLAGS, *WARNINGS, *(SANITIZE if sanitize else [])]
    sources = [
        source
        for source in sorted(HERE.glob("*.c"))
        if machine in ISA_MACHINES.get(source.name, {machine})
    ]
    missing = [
        source
        for source in sources
        if source.name in OPTIONAL and not knows(cc, ISA_FLAGS[source.name])
    ]
    flags += sorted({OPTIONAL[source.name] for source in missing})
    objects = []
    for source in sources:
        if source in missing:
            continue
        objects.append(f"{folder}/{source.stem}.o")
        own = isa_flags(cc, source.name)
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
