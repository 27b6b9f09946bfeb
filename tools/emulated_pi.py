"""A Raspberry Pi to try things on: this Debian's 64-bit ARM packages, unpacked, under qemu-user.

    python tools/emulated_pi.py build           all it needs, into build/pi (as root, with network)
    python tools/emulated_pi.py run [--cpu CPU] COMMAND...      in it, as user pi in /home/pi

CPU is qemu's name: cortex-a76 for a Raspberry Pi 5, cortex-a72 for a 4, cortex-a53 for a Zero 2.
Nothing of the host is changed but binfmt_misc, which learns to start ARM programs with qemu
(`echo -1 >/proc/sys/fs/binfmt_misc/plm-edge-aarch64` takes that back).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/pi"
ROOTFS, DONE = FOLDER / "root", FOLDER / "done"
HOME, WHEELS, TEST_TOOLS = ROOTFS / "home/pi", ROOTFS / "wheels", ROOTFS / "test-tools"
QEMU = "qemu-aarch64-static"
CPUS = ("cortex-a76", "cortex-a72", "cortex-a53", "max")

# What install.sh needs, and a C++ library for numpy; Raspberry Pi OS has all of it.
PACKAGES = ("python3", "python3-venv", "dash", "coreutils", "findutils", "diffutils", "grep")
PACKAGES += ("libc-bin", "sed", "libstdc++6")

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

# In a mount namespace of its own: what is mounted goes with the command.
_ENTER = """
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
exec chroot --userspec=1000:1000 "$0" "$@"
"""


def missing() -> str | None:
    """Why there can be no emulated Raspberry Pi here, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "an emulated Raspberry Pi needs root (chroot, mount)"
    for program, package in ((QEMU, "qemu-user-static"), ("apt-get", "apt"), ("dpkg", "dpkg")):
        if not shutil.which(program):
            return f"{program} is not installed (Debian: {package})"
    if not _is_built():
        return "no emulated Raspberry Pi in build/pi; `make emulated-pi` unpacks one"
    try:
        register()
    except (OSError, subprocess.CalledProcessError) as why:
        return f"binfmt_misc does not take qemu: {why}"
    return None


def _is_built() -> bool:
    return DONE.exists() and DONE.read_text() == _made_of()


def _made_of() -> str:
    """What decides its packages and wheels, as a hash."""
    files = (ROOT / "pyproject.toml", Path(__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def build() -> None:
    """Unpack the packages and gather the wheels; nothing is done twice once it is complete."""
    if _is_built():
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    for package in _packages():
        subprocess.run(["dpkg", "-x", package, ROOTFS], check=True)
    for name in ("proc", "dev", "tmp", "home/pi", "etc"):
        (ROOTFS / name).mkdir(parents=True, exist_ok=True)
    (ROOTFS / "tmp").chmod(0o1777)
    (ROOTFS / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\npi:x:1000:1000::/home/pi:/bin/sh\n")
    (ROOTFS / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    os.chown(HOME, 1000, 1000)
    _gather_wheels(os.readlink(ROOTFS / "usr/bin/python3").removeprefix("python"))
    DONE.write_text(_made_of())


def _packages() -> Iterable[Path]:
    """The ARM packages with all they depend on, from where this machine's come from.

    apt gets folders of its own, in which nothing is installed; the machine's stay as they are.
    """
    own = FOLDER / "apt"
    for name in ("lists/partial", "archives/partial"):
        (own / name).mkdir(parents=True)
    (own / "status").touch()
    options = {
        "Dir::State::lists": own / "lists",
        "Dir::State::status": own / "status",
        "Dir::Cache::archives": own / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "-y", "--download-only", *PACKAGES], check=True)
    return sorted((own / "archives").glob("*.deb"))


def _gather_wheels(python: str) -> None:
    """Wheels of what plm-edge needs, for its installer to find; the tests' tools, installed."""
    wheel = newest_wheel()
    kind = [
        "--only-binary=:all:",
        "--python-version",
        python,
        "--platform",
        "manylinux2014_aarch64",
    ]
    for minor in (17, 28, 34):
        kind += ["--platform", f"manylinux_2_{minor}_aarch64"]
    pip = [sys.executable, "-m", "pip"]
    tools = ["pytest", "hypothesis"]
    subprocess.run([*pip, "download", "-q", "-d", WHEELS, *kind, wheel, *tools], check=True)
    (WHEELS / wheel.name).unlink()  # brought by whoever tries it
    here = ["--no-index", "--find-links", WHEELS, "--target", TEST_TOOLS]
    subprocess.run([*pip, "install", "-q", *kind, *here, *tools], check=True)


def newest_wheel() -> Path:
    """The wheel for it that `make wheels` built last."""
    found = sorted((ROOT / "dist").glob("plm_edge-*_aarch64.whl"), key=os.path.getmtime)
    if not found:
        raise SystemExit("expected dist/plm_edge-*_aarch64.whl, found none; run: make wheels")
    return found[-1]


def register() -> None:
    """Let the kernel start ARM programs with qemu, opened now, so that it is found in a chroot."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], check=True)
    if not (_BINFMT / "plm-edge-aarch64").exists():
        line = f":plm-edge-aarch64:M::{_MAGIC}:{_MASK}:{shutil.which(QEMU)}:F"
        (_BINFMT / "register").write_text(line)


def command_in(arguments: Iterable[str], cpu: str = CPUS[0]) -> list[str]:
    """The command that runs this one there, for subprocess, once nothing is missing."""
    env = {
        "PATH": "/home/pi/.local/bin:/usr/bin:/bin",
        "HOME": "/home/pi",
        "LANG": "C.UTF-8",
        "QEMU_CPU": cpu,
    }
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _ENTER]
    inside = ["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in env.items())]
    return [*enter, str(ROOTFS), *inside, "sh", "-c", 'cd && exec "$@"', "sh", *arguments]


def main() -> None:
    parser = argparse.ArgumentParser(description="A Raspberry Pi under qemu-user.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build")
    running = commands.add_parser("run")
    running.add_argument("--cpu", choices=CPUS, default=CPUS[0])
    running.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if asked.command == "build":
        build()
        return
    why = missing()
    if why:
        raise SystemExit(why)
    sys.exit(subprocess.run(command_in(asked.arguments, asked.cpu)).returncode)


if __name__ == "__main__":
    main()
