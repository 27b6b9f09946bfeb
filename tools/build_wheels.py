"""Build the source distribution and a wheel for each kind of machine, and check each wheel's tag.

    make wheels      (python tools/build_wheels.py [-o dist], where WHEEL_TOOLS are installed)

The compiler is the one in the package `ziglang`: it links against the glibc of 2012, whatever this
machine has, and makes the wheel of the other kind too. A wheel holds every kernel set of its kind
and, loaded by ctypes, serves every Python. The same sources give the same wheels.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "plm_edge/native/libplm_edge.so"
GLIBC = "2.17"
SETS = {
    "x86_64": ("scalar", "avx2", "avx-vnni", "avx512-vnni"),
    "aarch64": ("scalar", "neon", "neon-dotprod", "neon-i8mm"),
}
_CONSISTENT = re.compile(r'following platform tag: "manylinux_2_(\d+)_(\w+)"')


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """What the command printed; where it fails, all of that is the error."""
    done = subprocess.run(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{' '.join(command)}: exit code {done.returncode}")
    return done.stdout


def built(kind: str, out: Path, cache: Path) -> Path:
    """The wheel of one kind of machine, and beside it the source distribution it was built from."""
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{kind}"
    env = {
        **os.environ,
        "CC": f"{sys.executable} -m ziglang cc -target {kind}-linux-gnu.{GLIBC} -s",
        "ZIG_GLOBAL_CACHE_DIR": str(cache),
        "SOURCE_DATE_EPOCH": "315532800",  # 1980: the earliest time that a zip file can tell
    }
    build = (sys.executable, "-m", "build", "--outdir", str(out))
    run(*build, f"-C--build-option=--plat-name={tag}", str(ROOT), env=env)
    (wheel,) = out.glob(f"plm_edge-*-py3-none-{tag}.whl")
    return wheel


def check(wheel: Path, kind: str) -> None:
    """Every kernel set is in; no symbol is newer than the glibc of the tag."""
    with zipfile.ZipFile(wheel) as content:
        library = content.read(LIBRARY)
    for name in SETS[kind]:
        if name.encode() + b"\0" not in library:
            raise SystemExit(f"{wheel}: expected kernel set {name} in {LIBRARY}, found none")
    said = run(sys.executable, "-m", "auditwheel", "show", str(wheel))
    found = _CONSISTENT.search(" ".join(said.split()))
    if not found or int(found[1]) > int(GLIBC.split(".")[1]) or found[2] != kind:
        raise SystemExit(f"{wheel}: expected symbols of glibc {GLIBC}, found: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build wheels for x86-64 and 64-bit ARM.")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as scratch:
        for kind in SETS:
            wheel = built(kind, Path(scratch), ROOT / "build/zig")
            check(wheel, kind)
        for made in sorted(Path(scratch).glob("plm_edge-*")):
            os.replace(made, out / made.name)
            print(f"{(out / made.name).stat().st_size:>12,} bytes  {out / made.name}")


if __name__ == "__main__":
    main()
