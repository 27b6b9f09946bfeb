"""A bundle exported here, installed and run on an emulated Raspberry Pi by the commands it brings.

The Raspberry Pi is 64-bit Debian under qemu-user (tools/emulated_pi.py): its own Python, pip and
numpy, the wheel of `make wheels`, and the kernels that its CPU runs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import emulated_pi
import numpy as np
import pytest
from wheel_age import is_stale

import plm_edge
from plm_edge.native.kernels import isa_table

ROOT = Path(__file__).parents[1]
PROMPT = "Tell me a tale about a fox"
TESTS = ("test_kernels.py", "test_attention_kernels.py", "test_formats.py", "test_arrangements.py")

# `scp FILE... HOST:PLACE` and `ssh -t HOST COMMAND`, the host being the emulated one.
SHIMS = {
    "scp": """
home={home}
[ "$1" != -r ] || shift
for to; do :; done
while [ $# -gt 1 ]; do cp -r "$1" "$home/${{to#pi@raspberrypi.local:}}"; shift; done
chown -R 1000:1000 "$home"
""",
    "ssh": """
[ "$1 $2" = "-t pi@raspberrypi.local" ] || exit 255
shift 2
exec {python} {tool} run sh -c "$*"
""",
}

# Tokens by arg-max, and the logits that led to each.
GREEDY = """
import json, sys, numpy, plm_edge
bundle, isa, count, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
with plm_edge.load(bundle, isa=isa, n_ctx=128, cache_type="f32") as session:
    rows = [session.prefill(session.tokenizer.encode("Once upon a time"))]
    for _ in range(count):
        rows.append(session.step(int(rows[-1][: session.tokenizer.n_tokens].argmax())))
numpy.save(out, numpy.stack(rows))
print(json.dumps([int(row[: session.tokenizer.n_tokens].argmax()) for row in rows[:count]]))
"""


def skip_reason():
    why = emulated_pi.missing()
    if why is None and is_stale(emulated_pi.newest_wheel()):
        why = "the wheel in dist/ is older than the sources; `make emulated-pi`"
    return why


@pytest.fixture(scope="module")
def pi():
    """Its home, without what an earlier run left but the installed program."""
    why = skip_reason()
    if why:
        pytest.skip(why)
    for path in emulated_pi.HOME.iterdir():
        if path.name != ".local":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return emulated_pi.HOME


def run_in(*command, cpu="cortex-a76", text=None):
    done = subprocess.run(
        emulated_pi.command_in(map(str, command), cpu), input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    return done


@pytest.fixture(scope="module")
def chat(pi, tmp_path_factory):
    """What the last of the README's commands answered, after the others."""
    folder = tmp_path_factory.mktemp("here")
    out = folder / "out"
    plm_edge.export("demo", target="rpi", out=out)
    for name, text in SHIMS.items():
        fields = {"home": pi, "python": sys.executable, "tool": ROOT / "tools/emulated_pi.py"}
        (folder / name).write_text("#!/bin/sh\nset -eu" + text.format(**fields))
        (folder / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    for line in (out / "README.txt").read_text().splitlines()[1:]:
        cwd = emulated_pi.newest_wheel().parent if "whl" in line else out
        done = subprocess.run(
            line, shell=True, cwd=cwd, env=env, input=PROMPT, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done)
    return done


@pytest.fixture(scope="module")
def python(chat, pi):
    """The interpreter of the environment that install.sh made, as seen from there."""
    (found,) = pi.glob(".local/share/plm-edge/venv-*/bin/python")
    return Path("/home/pi") / found.relative_to(pi)


def greedy(pi, python, bundle, isa, count, cpu="cortex-a76"):
    """Tokens and logits (count + 1, vocab) of the bundle `bundle` in the home."""
    (pi / "greedy.py").write_text(GREEDY)
    done = run_in(python, "greedy.py", bundle, isa, count, "/tmp/logits.npy", cpu=cpu)
    return json.loads(done.stdout), np.load(emulated_pi.ROOTFS / "tmp/logits.npy")


def greedy_here(bundle, isa, count, folder):
    command = [sys.executable, "-c", GREEDY, bundle, isa, str(count), folder / "logits.npy"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), np.load(folder / "logits.npy")


def test_the_commands_of_the_readme_end_in_a_reply(chat):
    assert len(chat.stdout.split()) > 10
    assert re.search(r"threads \d+, not 4 as planned for Raspberry Pi 5, 4 GB", chat.stderr)
    assert re.search(r"answer \d+ tokens; [\d.]+ tokens/s", chat.stderr)


def test_scalar_kernels_give_the_same_bits_on_both_machines(chat, pi, python, tmp_path):
    tokens, logits = greedy(pi, python, "demo", "scalar", 64)
    here, logits_here = greedy_here(pi / "demo", "scalar", 64, tmp_path)
    assert tokens == here
    np.testing.assert_array_equal(logits, logits_here)
    assert len(set(tokens)) > 8


def test_dotprod_agrees_with_avx2_on_f32_weights(pi, python, tmp_path):
    if "avx2" not in isa_table():
        pytest.skip("this machine has no AVX2")
    plm_edge.export("demo", target="rpi", quant="F32", out=pi / "f32", force=True)
    tokens, logits = greedy(pi, python, "f32", "neon-dotprod", 64)
    here, logits_here = greedy_here(pi / "f32", "avx2", 64, tmp_path)
    assert tokens == here
    error = np.abs(logits - logits_here).max() / np.abs(logits_here).max()
    assert error < 1e-5, error
    _, of_q8 = greedy(pi, python, "demo", "neon-dotprod", 64)
    assert np.abs(of_q8 - logits_here).max() / np.abs(logits_here).max() > 1e-3


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [("cortex-a53", "neon"), ("cortex-a72", "neon"), ("cortex-a76", "neon-dotprod")],
)
def test_the_kernels_are_those_of_the_cpu(python, cpu, isa):
    # `plm-edge devices detect` would measure bandwidth and kernels too: minutes under emulation
    done = run_in(python, "-c", "from plm_edge.devices import detect; print(detect().isa)", cpu=cpu)
    assert done.stdout.strip() == isa


def test_a_raspberry_pi_4_chats_without_dotprod(chat):
    done = run_in("sh", "demo/run.sh", "-p", PROMPT, "-n", "8", cpu="cortex-a72")
    assert "kernels neon, not neon-dotprod as planned" in done.stderr
    assert len(done.stdout.split()) > 3


def test_the_service_answers_a_connection(chat, pi):
    """What systemd does: a connection on stdin and stdout of ExecStart."""
    base = pi / ".local/share/plm-edge"
    (unit,) = base.glob("venv-*/lib/*/site-packages/plm_edge/devices/raspberry_pi/*.service")
    (line,) = re.findall("^ExecStart=(.*)", unit.read_text(), re.MULTILINE)
    link = base / "bundle"  # as install.sh --service makes it
    link.unlink(missing_ok=True)
    link.symlink_to("/home/pi/demo")
    command = emulated_pi.command_in(shlex.split(line.replace("%h", "/home/pi")))
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as it:
        theirs.close()
        ours.sendall(PROMPT.encode())
        ours.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: ours.recv(4096), b""))
    assert it.returncode == 0
    assert len(answer.split()) > 10


def test_the_suite_passes_there(python):
    shutil.rmtree(emulated_pi.HOME / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", emulated_pi.HOME / "tests")
    paths = [f"/home/pi/tests/{name}" for name in TESTS]
    pytest_there = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *paths]
    done = run_in("env", "PYTHONPATH=/test-tools", *pytest_there)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done
    assert int(passed[1]) > 500
