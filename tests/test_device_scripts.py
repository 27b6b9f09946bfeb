"""The install and run scripts of devices/, in sandboxes laid out like the devices.

Commands that change something go through a recorder that fails, or is killed with the script, at
any of them; the next run must then do the rest, and a program that was installed keeps working.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from wheel_age import is_stale

import plm_edge
from plm_edge import devices
from plm_edge.bundle import verify_bundle
from plm_edge.exporters.on_device import SCRIPTS

ROOT = Path(__file__).parents[1]
FOLDERS = ("raspberry_pi", "termux")
TERMUX = "data/data/com.termux/files"

# What the scripts call besides those that are recorded; the devices have them.
PLAIN = (
    *("basename", "cat", "chmod", "cmp", "cut", "dirname", "find", "getconf", "grep", "id"),
    *("mkdir", "readlink", "sh", "sha256sum", "sort", "wc"),
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_shellcheck_has_nothing_to_say(folder):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (Debian: shellcheck)")
    scripts = [path.name for path in sorted((ROOT / "devices" / folder).glob("*.sh"))]
    command = ["shellcheck", "-x", *scripts]
    done = subprocess.run(command, cwd=ROOT / "devices" / folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_systemd_takes_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    program = tmp_path / ".local/bin/plm-edge"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    units = sorted((ROOT / "devices/raspberry_pi").glob("plm-edge*.s*"))
    assert len(units) == 2
    command = ["systemd-analyze", "verify", "--user", "--man=no", *map(str, units)]
    env = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


# ---- what an export brings along ----


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for target in ("rpi", "android"):
        plm_edge.export("demo", target=target, out=folder / target)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("target", "folder", "package"),
    [
        ("rpi", "raspberry_pi", "plm_edge-0.1.0-py3-none-manylinux_2_17_aarch64.whl"),
        ("android", "termux", "plm_edge-0.1.0.tar.gz"),
    ],
)
def test_a_bundle_brings_its_scripts_and_five_lines(bundles, target, folder, package):
    bundle = bundles[target]
    for name in SCRIPTS:
        assert (bundle / name).read_bytes() == (ROOT / "devices" / folder / name).read_bytes()
    lines = (bundle / "README.txt").read_text().splitlines()
    assert len(lines) == 5
    what, copy, bring, install, run = (line.partition("     #")[0] for line in lines)
    assert what.startswith(f"demo in Q8_0 for {devices.load(target).name}: context of 512 tokens, ")
    assert copy.startswith("scp ")
    assert copy.endswith(":demo")
    assert f" {package} " in bring
    assert install.endswith(" sh demo/install.sh")
    assert run.endswith(" sh demo/run.sh")
    names = {file.name for file in verify_bundle(bundle).files}
    assert names == {"model.gguf", "README.txt", *SCRIPTS}


@pytest.mark.parametrize(("target", "layout"), [("host", "latent"), ("rpi", "deepseek2")])
def test_another_device_or_runtime_gets_the_model_alone(tmp_path, target, layout):
    manifest = plm_edge.export("demo", target=target, layout=layout, out=tmp_path / "out")
    assert [file.name for file in manifest.files] == ["model.gguf"]


# ---- a sandbox ----

# Counts the commands that change something; at number $FAIL_AT it fails, or kills what called it.
RECORDER = """#!/bin/sh
echo "{name} $*" >>"$LOG"
if [ "$(wc -l <"$LOG")" -eq "$FAIL_AT" ]; then
    [ "$HOW" != kill ] || kill -9 "$PPID"
    exit 1
fi
{command}
"""

# `python3 -m venv FOLDER` puts a python there, whose `-m pip install FILE` puts a plm-edge there.
PYTHON3 = """
case "$*" in
"-m venv "*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    ln -s "$RECORDED/venv-python" "$folder/bin/python"
    ;;
"-c import sys; print"*) echo 3.11 ;;
esac
"""
VENV_PYTHON = """
case "$*" in
"-m pip install "*)
    for file; do :; done
    { cat "$RECORDED/plm-edge"; echo "basename $file"; } >"${0%/*}/plm-edge"
    chmod +x "${0%/*}/plm-edge"
    ;;
*) echo "$DEVICES" ;;
esac
"""


class Sandbox:
    """A device's folders, and a PATH of its commands: those that change something are recorded."""

    def __init__(self, folder, bin_folder, home, recorded):
        self.folder, self.bin, self.home = folder, folder / bin_folder, folder / home
        self.log = folder / "log"
        for made in (self.bin, self.home, folder / "recorded"):
            made.mkdir(parents=True)
        for name in PLAIN:
            (self.bin / name).symlink_to(shutil.which(name))
        for name in ("rm", "cp", "mv", "ln", "sync"):
            self.record(self.bin / name, f'exec {shutil.which(name)} "$@"')
        self.record(self.bin / "python3", PYTHON3)
        self.record(folder / "recorded/venv-python", VENV_PYTHON)
        self.record(folder / "recorded/plm-edge", "")
        for name, command in recorded.items():
            self.record(self.bin / name, command)
        self.env = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "LOG": str(self.log),
            "RECORDED": str(folder / "recorded"),
            "DEVICES": str(ROOT / "devices"),
        }

    def record(self, path, command):
        path.unlink(missing_ok=True)
        path.write_text(RECORDER.format(name=path.name, command=command))
        path.chmod(0o755)

    def say(self, name, text):
        """Let a command print this."""
        self.record(self.bin / name, f"echo {text}")

    def run(self, script, *arguments, fail_at=0, how="fail", cwd=None):
        self.log.write_text("")
        env = {**self.env, "FAIL_AT": str(fail_at), "HOW": how}
        command = [self.bin / "sh", script, *arguments]
        done = subprocess.run(
            command, env=env, cwd=cwd or self.home, capture_output=True, text=True
        )
        self.calls = self.log.read_text().splitlines()
        return done

    def installed(self):
        """The package that the program came from, or None."""
        env = {**self.env, "FAIL_AT": "0"}
        if not self.program.exists():
            return None
        return subprocess.check_output([self.program], text=True, env=env).strip()

    def left(self):
        """Names around the program and in its folder, to see what is half-made."""
        base = self.home / ".local/share/plm-edge"
        around = self.program.parent.glob("plm-edge*")
        return sorted(path.name for path in (*base.iterdir(), *around))


class Termux(Sandbox):
    """Termux' layout of paths; pkg adds what is asked for to the packages that dpkg knows."""

    def __init__(self, folder):
        listed = folder / "packages"
        recorded = {
            "dpkg": f'[ "$1" != -s ] || {{ grep -qx "$2" {listed} && '
            "echo Status: install ok installed; }",
            "pkg": f'shift 2; for name; do echo "$name" >>{listed}; done',
            "termux-wake-lock": "",
            "termux-wake-unlock": "",
        }
        super().__init__(folder, f"{TERMUX}/usr/bin", f"{TERMUX}/home", recorded)
        listed.write_text("python\n")
        self.env["PREFIX"] = str(self.bin.parent)
        self.program = self.bin / "plm-edge"
        self.say("uname", "aarch64")

    def packages(self):
        return (self.folder / "packages").read_text().split()


class RaspberryPi(Sandbox):
    """A home on a Raspberry Pi."""

    def __init__(self, folder):
        recorded = {"sudo": 'exec "$@"', "apt-get": "", "loginctl": "", "systemctl": "", "cp": ""}
        super().__init__(folder, "usr/bin", "home/pi", recorded)
        self.program = self.home / ".local/bin/plm-edge"
        self.say("uname", "aarch64")


DEVICES = {
    "termux": (Termux, "plm_edge-0.0.{}.tar.gz"),
    "raspberry_pi": (RaspberryPi, "plm_edge-0.0.{}-py3-none-manylinux_2_17_aarch64.whl"),
}


@pytest.fixture(params=DEVICES)
def device(request, tmp_path, bundles):
    """Its name, how a sandbox of it is made, the bundle for it, two packages."""
    make, pattern = DEVICES[request.param]
    packages = [tmp_path / pattern.format(number) for number in (1, 2)]
    for package in packages:
        package.write_text(package.name)
    count = iter(range(1000))
    bundle = bundles["android" if request.param == "termux" else "rpi"]
    return lambda: make(tmp_path / f"device{next(count)}"), bundle, *packages


@pytest.mark.parametrize("how", ["fail", "kill"])
def test_whatever_step_stops_the_next_run_does_the_rest(device, how):
    make, bundle, _, new = device
    script = bundle / "install.sh"
    whole = make()
    assert whole.run(script, new).returncode == 0
    steps = len(whole.calls)
    assert steps > 8
    assert whole.installed() == new.name
    failed = 0
    for step in range(1, steps + 1):
        fresh = make()
        stopped = fresh.run(script, new, fail_at=step, how=how)
        failed += stopped.returncode != 0
        assert fresh.run(script, new).returncode == 0, whole.calls[step - 1]
        assert (fresh.installed(), fresh.left()) == (new.name, whole.left()), whole.calls[step - 1]
    assert failed > steps / 2


@pytest.mark.parametrize("how", ["fail", "kill"])
def test_whatever_step_stops_an_update_leaves_a_program_that_runs(device, how):
    make, bundle, old, new = device
    script = bundle / "install.sh"
    sandbox = make()
    for step in range(1, 100):
        assert sandbox.run(script, old).returncode == 0
        assert sandbox.installed() == old.name
        stopped = sandbox.run(script, new, fail_at=step, how=how)
        if len(sandbox.calls) < step:
            break
        assert sandbox.installed() in (old.name, new.name), sandbox.calls[-1]
        assert sandbox.run(script, new).returncode == 0
        assert sandbox.installed() == new.name
    assert stopped.returncode == 0
    assert step > 6


def test_a_second_run_changes_nothing(device):
    make, bundle, _, new = device
    sandbox = make()
    sandbox.run(bundle / "install.sh", new)
    done = sandbox.run(bundle / "install.sh", new)
    assert done.returncode == 0
    assert f"{new.name} is installed already" in done.stderr
    changing = ("pkg", "apt-get", "rm", "cp", "venv-python -m pip", "python3 -m venv", "sync")
    assert not [call for call in sandbox.calls if call.startswith(changing)]


def test_the_package_is_found_beside_the_bundle(device):
    make, bundle, old, new = device
    sandbox = make()
    inside = sandbox.home / "model"
    shutil.copytree(bundle, inside)
    done = sandbox.run("model/install.sh")
    assert done.returncode == 4
    assert "found none; `make wheels` in plm-edge's source builds it" in done.stderr
    shutil.copy(new, sandbox.home)
    assert sandbox.run("model/install.sh").returncode == 0
    assert sandbox.run("install.sh", cwd=inside).returncode == 0
    assert sandbox.installed() == new.name
    shutil.copy(old, sandbox.home)
    done = sandbox.run("model/install.sh")
    assert done.returncode == 2
    assert "found several; name one: sh model/install.sh FILE" in done.stderr
    done = sandbox.run("model/install.sh", "absent.whl")
    assert done.returncode == 4
    assert "expected the file absent.whl, found none that can be read" in done.stderr


def test_a_damaged_copy_of_the_bundle_is_named(device):
    make, bundle, _, new = device
    sandbox = make()
    sandbox.record(sandbox.folder / "recorded/plm-edge", '[ "$1" != verify ] || exit 3')
    done = sandbox.run(bundle / "install.sh", new)
    assert done.returncode == 3
    assert "is not what was exported, see above; copy it again" in done.stderr


def test_run_chats_with_the_bundle_it_lies_in(device):
    make, bundle, _, new = device
    sandbox = make()
    done = sandbox.run(bundle / "run.sh")
    assert done.returncode == 6
    assert f"found none; run: sh {bundle}/install.sh" in done.stderr
    sandbox.run(bundle / "install.sh", new)
    done = sandbox.run(bundle / "run.sh", "-p", "Tell me a tale", "-n", "3")
    assert done.returncode == 0
    assert f"plm-edge chat {bundle} -p Tell me a tale -n 3" in sandbox.calls


# ---- what users complain of ----


def test_a_32_bit_system_under_a_64_bit_kernel_is_refused(tmp_path, bundles):
    sandbox = RaspberryPi(tmp_path / "pi")
    sandbox.say("getconf", "32")
    done = sandbox.run(bundles["rpi"] / "install.sh")
    assert done.returncode == 6
    assert "expected a 64-bit ARM system, found aarch64 with programs of 32 bits" in done.stderr


def test_an_old_python_is_refused(tmp_path, bundles):
    sandbox = RaspberryPi(tmp_path / "pi")
    sandbox.record(
        sandbox.bin / "python3",
        'case "$*" in *version_info*) exit 1 ;; --version) echo Python 3.9.2 ;; esac',
    )
    done = sandbox.run(bundles["rpi"] / "install.sh")
    assert done.returncode == 6
    assert "expected Python 3.10 or newer, found Python 3.9.2" in done.stderr


def test_a_missing_venv_comes_from_apt(tmp_path, bundles):
    sandbox = RaspberryPi(tmp_path / "pi")
    package = tmp_path / "x_aarch64.whl"
    package.touch()
    sandbox.record(
        sandbox.bin / "python3",
        f'case "$*" in *ensurepip*) [ -e {tmp_path}/apt ]; exit ;; esac\n{PYTHON3}',
    )
    sandbox.record(sandbox.bin / "apt-get", f"[ $1 = update ] || : >{tmp_path}/apt")
    assert sandbox.run(bundles["rpi"] / "install.sh", package).returncode == 0
    assert "apt-get install -y python3-venv" in sandbox.calls


@pytest.mark.parametrize(("bits", "slow"), [("0x0", False), ("0x50000", False), ("0x50005", True)])
def test_a_throttled_raspberry_pi_is_named(tmp_path, bundles, bits, slow):
    sandbox = RaspberryPi(tmp_path / "pi")
    package = tmp_path / "x_aarch64.whl"
    package.touch()
    sandbox.run(bundles["rpi"] / "install.sh", package)
    sandbox.say("vcgencmd", f"throttled={bits}")
    done = sandbox.run(bundles["rpi"] / "run.sh")
    assert done.returncode == 0
    assert ("slowed down now" in done.stderr) == slow


def test_the_service_is_set_up_for_the_user(tmp_path, bundles):
    sandbox = RaspberryPi(tmp_path / "pi")
    sandbox.record(sandbox.bin / "cp", f'exec {shutil.which("cp")} "$@"')
    package = tmp_path / "x_aarch64.whl"
    package.touch()
    for _ in range(2):
        done = sandbox.run(bundles["rpi"] / "install.sh", "--service", package)
        assert done.returncode == 0, done
    assert "systemctl --user enable --now plm-edge.socket" in sandbox.calls
    units = sandbox.home / ".config/systemd/user"
    for name in ("plm-edge.socket", "plm-edge@.service"):
        assert (units / name).read_bytes() == (ROOT / "devices/raspberry_pi" / name).read_bytes()
    (start,) = (
        line.partition("=")[2].replace("%h", str(sandbox.home)).split()
        for line in (units / "plm-edge@.service").read_text().splitlines()
        if line.startswith("ExecStart=")
    )
    assert Path(start[0]).exists()
    assert (start[1], Path(start[2]).resolve()) == ("chat", bundles["rpi"])


def test_a_bundle_on_shared_storage_is_copied_once(tmp_path, bundles):
    """As seen from Termux: the path begins with /storage, here through a link in its place."""
    text = (bundles["android"] / "install.sh").read_text()
    shared = tmp_path / "storage/emulated/0/Download/model"
    shutil.copytree(bundles["android"], shared)
    (shared / "install.sh").write_text(text.replace("/storage/*", f"{tmp_path}/storage/*"))
    sandbox = Termux(tmp_path / "phone")
    package = tmp_path / "plm_edge-0.0.1.tar.gz"
    package.touch()
    assert sandbox.run(shared / "install.sh", package).returncode == 0
    copy = sandbox.home / "model"
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        path.name for path in bundles["android"].iterdir()
    )
    assert f"plm-edge verify {copy}" in sandbox.calls
    assert sandbox.run(shared / "install.sh", package).returncode == 0
    assert not [call for call in sandbox.calls if call.startswith("cp")]
    (copy / "manifest.json").write_text("{}")
    done = sandbox.run(shared / "install.sh", package)
    assert done.returncode == 4
    assert f"expected no other {copy}, found one; move it away" in done.stderr


def test_a_chat_that_android_ends_says_why_and_lets_the_phone_sleep(tmp_path, bundles):
    sandbox = Termux(tmp_path / "phone")
    package = tmp_path / "plm_edge-0.0.1.tar.gz"
    package.touch()
    sandbox.run(bundles["android"] / "install.sh", package)
    sandbox.program.unlink()
    sandbox.record(sandbox.program, "kill -9 $$")
    done = sandbox.run(bundles["android"] / "run.sh")
    assert done.returncode == 137
    assert "Android ended it (signal 9)" in done.stderr
    assert [call.split()[0] for call in sandbox.calls][-1] == "termux-wake-unlock"


def test_the_source_compiles_with_clang_alone_and_chats(tmp_path, bundles):
    """The real pip, compiler and package; what pip would download is found in this checkout's."""
    (source,) = sorted((ROOT / "dist").glob("plm_edge-*.tar.gz"))[-1:] or [None]
    site = "lib/python{}.{}/site-packages".format(*sys.version_info)
    found = [ROOT / ".venv-wheels" / site, Path(typer.__file__).parents[1]]
    if source is None or not found[0].exists():
        pytest.skip("no source distribution in dist/; `make wheels` packs it")
    if is_stale(source):
        pytest.skip("the one in dist/ is older than the sources; `make wheels` packs it anew")
    if not shutil.which("clang"):
        pytest.skip("clang is not installed (Debian: clang)")
    sandbox = Termux(tmp_path / "phone")
    sandbox.record(sandbox.bin / "python3", f'exec {sys.executable} "$@"')
    for name in ("clang", "ld"):
        (sandbox.bin / name).symlink_to(shutil.which(name))
    sandbox.env |= {
        "PYTHONPATH": ":".join(map(str, found)),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without
        "TMPDIR": str(tmp_path),
    }
    shutil.copytree(bundles["android"], sandbox.home / "demo")
    shutil.copy(source, sandbox.home)
    done = sandbox.run("demo/install.sh")
    assert done.returncode == 0, done
    assert "Building wheel for plm-edge" in done.stderr
    assert sandbox.packages() == ["python", "python-pip", "python-numpy", "clang"]
    (library,) = sandbox.home.glob(".local/share/plm-edge/venv-*/lib/*/*/plm_edge/native/*.so")
    assert b"clang" in library.read_bytes()
    done = sandbox.run("demo/run.sh", "-p", "Tell me a tale", "-n", "8")
    assert done.returncode == 0, done
    assert len(done.stdout.split()) > 3


def test_outside_termux_it_says_so(tmp_path, bundles):
    sandbox = RaspberryPi(tmp_path / "pi")
    done = sandbox.run(bundles["android"] / "install.sh")
    assert done.returncode == 6
    assert "expected Termux, found no pkg or no $PREFIX" in done.stderr
