"""Whatever is wrong: one line, the right exit code, nothing left behind, nothing harmed.

Each row spoils one thing in a folder that holds a checkpoint `hf`, a bundle of it for this machine
`mine` and an earlier bundle `out`, and runs the program there. " ... " in a message stands for
anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from pty_run import PtyRun
from spoils import (
    CONFIG,
    WEIGHTS,
    Spoil,
    assert_one_line,
    beside,
    claim,
    config,
    flipped,
    foreign,
    nothing,
    pickled,
    removed,
    replaced,
    saved_session,
    scale_is_nan,
    shards,
    size,
    text,
    too_many_tokens,
    tree,
    untied,
    weight,
    write_zeros,
)
from tiny import TINY_SHAPES, write_tiny_checkpoint

import plm_edge
from plm_edge import devices
from plm_edge.bundle import MANIFEST, verify_bundle
from plm_edge.cli import app
from plm_edge.native.kernels import isa_table

PROGRAM = str(Path(sys.executable).with_name("plm-edge"))
EMBED = "model.embed_tokens.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
TOY = """
name = "Toy"
[memory]
total = "64 MiB"
usable = "64 MiB"
[memory.source]
total = "x"
usable = "x"
"""


@pytest.fixture
def here(
    tmp_path: Path,
    bundle_of: Callable[..., Path],
    checkpoint_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder of one user, which is the current one."""
    shutil.copytree(checkpoint_of("plain"), tmp_path / "hf")
    shutil.copytree(bundle_of("plain"), tmp_path / "mine")
    shutil.copytree(bundle_of("plain", "Q4_0"), tmp_path / "out")
    (tmp_path / ".cache/plm-edge").mkdir(parents=True)
    (tmp_path / "toy.toml").write_text(TOY)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str, int, str], None]:
    """Runs the command in this process; the whole promise is checked here."""

    def call(command: str, code: int, message: str) -> None:
        before = tree(here)
        monkeypatch.setattr(sys, "argv", ["plm-edge", *shlex.split(command)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert_one_line(app._exit_code(), *capfd.readouterr(), code, message)
        assert tree(here) == before

    return call


CHANGES: list[Spoil] = [
    text("new", ""),
    flipped("out/model.gguf", -1),
    removed("out/model.gguf"),
    lambda here: (here / "folder").mkdir(),
    lambda here: (here / "out").chmod(0o700),
    lambda here: os.utime(here / "toy.toml", (1, 1)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_command_changed_would_be_noticed(here: Path, change: Spoil) -> None:
    before = tree(here)
    assert tree(here) == before
    change(here)
    assert tree(here) != before


@pytest.mark.parametrize(
    ("code", "out", "err"),
    [
        (3, "", "plm-edge: a b\n"),
        (4, "said", "plm-edge: a b\n"),
        (4, "", "a b\n"),
        (4, "", "plm-edge: a b\nmore\n"),
        (4, "", "plm-edge: b a\n"),
    ],
)
def test_another_answer_would_be_noticed(code: int, out: str, err: str) -> None:
    assert_one_line(4, "", "plm-edge: a b\n", 4, "a ... b")
    with pytest.raises(AssertionError):
        assert_one_line(code, out, err, 4, "a ... b")


# ---- checkpoints


CHECKPOINTS: dict[str, tuple[Spoil, int, str]] = {
    "header cut": (size(f"hf/{WEIGHTS}", 100), 3, "truncated ... 92 follow; download it again"),
    "header too long": (claim(1 << 40), 3, "claims 1099511627776 bytes ... download it again"),
    "weights cut": (size(f"hf/{WEIGHTS}", 100_000), 3, "truncated ... 100000 found; download"),
    "shard missing": (
        lambda here: (
            shards(lambda m: None)(here), removed("hf/model-00002-of-00002.safetensors")(here)
        ), 3, "'model-00002-of-00002.safetensors', which is missing; download it",
    ),
    "shard outside": (
        shards(lambda m: m.update({EMBED: "../x"})), 3, "plain file name, found '../x'; nothing",
    ),
    "NaN": (weight(EMBED, np.nan), 3, "token_embd.weight ... NaN ... row 166; ... download"),
    "Inf": (weight("model.norm.weight", np.inf), 3, "output_norm.weight holds NaN or infinity"),
    "too large for Q8_0": (
        weight(EMBED, 3e38), 3, "token_embd.weight, ... row 166 ... choose another format",
    ),
    "rope scaling": (
        config(rope_scaling={"type": "yarn", "factor": 4}), 3, "rope_scaling = ... not supported",
    ),
    "unknown key": (config(use_magic=1), 3, "use_magic = 1, which is unknown: ... --allow-key"),
    "experts": (config(n_routed_experts=8), 3, "n_routed_experts = 8, ... not supported: export"),
    "ties not said": (config(tie_word_embeddings=None), 3, "lacks tie_word_embeddings; ... Write"),
    "weights a pointer": (text(f"hf/{WEIGHTS}", LFS), 3, "Git LFS pointer ... git lfs pull"),
    "tokenizer a pointer": (
        text("hf/tokenizer.json", LFS), 3, "tokenizer.json is a Git LFS pointer ... git lfs pull",
    ),
    "pickled": (pickled, 6, "'pytorch_model.bin' ... never opened; convert"),
    "other width": (
        config(intermediate_size=129), 3, "shape [128, 64], ... asks for [129, 64]; take both",
    ),
    "other head count": (config(num_key_value_heads=2), 3, "num_key_value_heads"),
    "config not JSON": (text(f"hf/{CONFIG}", "{'a': 1}"), 3, "not valid JSON ... get it anew"),
    "config empty": (text(f"hf/{CONFIG}", ""), 3, "not valid JSON ... get it anew"),
    "config of 200 MB": (size(f"hf/{CONFIG}", 200 << 20), 3, "209715200 ... 1000000 are expected"),
    "config deep": (
        text(f"hf/{CONFIG}", '{"a":' * 30_000 + "1" + "}" * 30_000), 3, "deeper than 64 levels; ",
    ),
    "config with a key twice": (
        text(f"hf/{CONFIG}", '{"hidden_size": 1, "hidden_size": 2}'), 3, "hidden_size' twice; keep",
    ),
    "no config": (removed(f"hf/{CONFIG}"), 3, "expected config.json in 'hf', found none"),
    "no weights": (removed(f"hf/{WEIGHTS}"), 3, "model.safetensors ... found neither; download"),
    "no tokenizer": (removed("hf/tokenizer.json"), 3, "tokenizer.json, found no such file; a"),
    "broken tokenizer": (text("hf/tokenizer.json", "{"), 3, "tokenizer.json ... get it anew"),
    "no tokenizer of ours": (
        text("hf/tokenizer.json", '{"model": {"type": "Unigram"}}'), 3, "'BPE' ... 'Unigram'",
    ),
    "too many tokens": (too_many_tokens, 3, "at most 300 tokens ... found 319; "),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(here: Path, refused: Callable[..., None], name: str) -> None:
    spoil, code, message = CHECKPOINTS[name]
    spoil(here)
    refused("export hf --target rpi -o out --force", code, message)
    refused("export hf --target rpi -o new", code, message)
    refused("chat hf -p hello", code, message)
    verify_bundle(here / "out")


def test_a_key_that_the_user_answers_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config(use_magic=1)(here)
    words = "export hf --target rpi -o new --allow-key use_magic"
    monkeypatch.setattr(sys, "argv", ["plm-edge", *words.split()])
    assert app._exit_code() == 0
    assert "wrote new" in capfd.readouterr().out
    verify_bundle(here / "new")


# ---- what is written, and where


OUTPUTS: dict[str, tuple[Spoil, str, int, str]] = {
    "there": (nothing, "-o out", 4, "out: ... nothing there, found a bundle; --force replaces it"),
    "foreign": (foreign, "-o photos", 4, "photos: ... found one.jpg; it will not be deleted"),
    "foreign, force": (
        foreign, "-o photos --force", 4, "photos: ... found one.jpg; it will not be deleted",
    ),
    "more than a bundle": (
        beside, "-o out --force", 4, "out: ... found thesis.tex; it will not be deleted",
    ),
    "a file": (nothing, "-o toy.toml", 4, "toy.toml: expected a folder or nothing ... choose"),
    "a file, force": (nothing, "-o toy.toml --force", 4, "toy.toml: expected a folder or nothing"),
    "below a file": (nothing, "-o toy.toml/x", 4, "toy.toml/x: ... Not a directory; choose"),
    "a link": (
        lambda here: (here / "link").symlink_to("out"), "-o link --force", 4, "a symbolic link",
    ),
    "no parent": (nothing, "-o none/new", 4, "none/new: ... No such file ... create the folder"),
    "a long name": (nothing, f"-o {'x' * 300}", 4, "name too long; choose a shorter name"),
    "the root": (nothing, "-o /", 4, "expected a name to write to"),
    "no target": (nothing, "-o new --target toaster", 2, "unknown target 'toaster'; known are"),
    "no profile": (nothing, "-o new --target none.toml", 2, "found no profile 'none.toml'"),
    "no profile in it": (
        text("a.toml", "[["), "-o new --target a.toml", 3, "a.toml",
    ),
    "quant": (nothing, "-o new --quant Q3_K", 2, "F32, F16, BF16, Q8_0, Q4_0 ... found 'Q3_K'"),
    "layout": (nothing, "-o new --layout flat", 2, "latent, plm, deepseek2, found 'flat'"),
    "context above trained": (nothing, "-o new -c 129", 2, "129 tokens, expected 1..128"),
    "context 0": (nothing, "-o new -c 0", 2, "context of 0 tokens, expected 1..128"),
    "context -1": (nothing, "-o new -c -1", 2, "context of -1 tokens, expected 1..128"),
    "a layout of ONNX": (nothing, "-o new --format onnx --layout plm", 2, "layout is for GGUF"),
    "a cache of ONNX": (nothing, "-o new --format onnx -ctk q8_0", 2, "cache of f32, found q8_0"),
    "a head of ONNX": (nothing, "-o new --format onnx --head screened", 2, "head is for GGUF"),
    "too small a device": (
        config(max_position_embeddings=1 << 24), "-o new --target toy.toml -c 16777216", 5,
        "Toy leaves ... try -c",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(here: Path, refused: Callable[..., None], name: str) -> None:
    spoil, words, code, message = OUTPUTS[name]
    spoil(here)
    target = "" if "--target" in words else "--target rpi"
    refused(f"export hf {target} {words}", code, message)


def test_models_that_cannot_be_exported(here: Path, refused: Callable[..., None]) -> None:
    untied(here)
    refused("export untied --target rpi --layout plm -o new", 6, "layout plm: ... --layout latent")
    refused("export none --target rpi -o new", 2, "no file or folder 'none'; expected a path")
    refused("export toy.toml --target rpi -o new", 3, "toy.toml: the file starts with")
    (here / "empty").mkdir()
    refused("export empty --target rpi -o new", 3, "expected config.json in 'empty', found none")
    refused("chat none -p a", 2, "no file or folder 'none'; expected a path")
    refused("plan none --target rpi", 2, "no file or folder 'none'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(here: Path, refused: Callable[..., None]) -> None:
    (here / "locked").mkdir(mode=0o500)
    refused("export hf --target rpi -o locked/new", 4, "locked/new: ... Permission denied; choose")


# ---- bundles, GGUF files, saved conversations


_ANSWER = "chat mine -p hello -n 2"
FILES: dict[str, tuple[Spoil, str, int, str]] = {
    **{
        f"byte {at} of {name}": (
            flipped(f"mine/{name}", at), "verify mine", 3, f"mine/{name}: expected",
        )
        for name in ("model.gguf", MANIFEST)
        for at in (0, 300, -1)
    },
    "manifest changed, chat": (flipped(f"mine/{MANIFEST}", 300), _ANSWER, 3, MANIFEST),
    "a file more": (
        text("mine/x", ""), "verify mine", 3, "mine/x: expected the bundle's files only; move",
    ),
    "a file less": (
        removed("mine/model.gguf"), "verify mine", 3, "model.gguf: expected this file, found none",
    ),
    "no manifest": (removed(f"mine/{MANIFEST}"), "verify mine", 3, "found no manifest.json"),
    "a future manifest": (
        replaced(f"mine/{MANIFEST}", b'"schema_version": 1', b'"schema_version": 2'),
        "verify mine", 3, "schema version 1, found 2; use the version of plm-edge that wrote it",
    ),
    "a future manifest, chat": (
        replaced(f"mine/{MANIFEST}", b'"schema_version": 1', b'"schema_version": 9'),
        _ANSWER, 3, "schema version 1, found 9; use the version",
    ),
    "verify nothing": (nothing, "verify none", 2, "found no bundle 'none'"),
    "verify a file": (nothing, "verify toy.toml", 3, "toy.toml: expected the folder of a bundle"),
    "bundle cut": (
        size("mine/model.gguf", 5000), _ANSWER, 3, "bytes, found 5000; copy it again",
    ),
    "GGUF cut in its header": (
        size("mine/model.gguf", 5000), "chat mine/model.gguf -p a", 3, "model.gguf",
    ),
    "GGUF cut in its data": (
        size("mine/model.gguf", 200_000), "chat mine/model.gguf -p a", 3, "model.gguf",
    ),
    "no GGUF": (nothing, "chat toy.toml -p a", 3, "toy.toml"),
    "empty GGUF": (text("a.gguf", ""), "chat a.gguf -p a", 3, "a.gguf"),
    "pointer to a GGUF": (text("a.gguf", LFS), "chat a.gguf -p a", 3, "LFS pointer ... lfs pull"),
    "GGUF of another architecture": (
        replaced("mine/model.gguf", b"\x0f\0\0\0\0\0\0\0plm-edge-latent",
                 b"\x0f\0\0\0\0\0\0\0llama-of-ever-x"),
        "chat mine/model.gguf -p a", 6, "architecture 'llama-of-ever-x'; plm, deepseek2,",
    ),
    "NaN in a scale": (
        scale_is_nan, "chat nan.gguf -p hello", 3, "finite logits, found nan; weights or cache are",
    ),
    "a session, no conversation": (
        saved_session, f"{_ANSWER} --load saved", 3, "saved: not a saved ... /save writes",
    ),
    "a conversation that is cut": (text("a", '{"sche'), f"{_ANSWER} --load a", 3, "a: "),
    "a future conversation": (
        text("a", '{"schema": 2, "settings": {}, "messages": []}'),
        f"{_ANSWER} --load a", 3, "a: expected a conversation of schema 1 ... found schema 2",
    ),
    "no conversation": (nothing, f"{_ANSWER} --load none", 2, "found no conversation 'none'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(here: Path, refused: Callable[..., None], name: str) -> None:
    spoil, command, code, message = FILES[name]
    spoil(here)
    refused(command, code, message)


def test_a_session_of_other_weights(here: Path, bundle_of: Callable[..., Path]) -> None:
    saved_session(here)
    before = tree(here)
    with plm_edge.load(bundle_of("plain", "Q8_0")) as session:
        with pytest.raises(plm_edge.FileFormatError, match="expected a session of these weights"):
            session.restore(here / "saved")
        assert session.n_past == 0
    assert tree(here) == before


def test_a_session_for_the_load_of_the_terminal(here: Path) -> None:
    """It is refused, and the terminal goes on."""
    saved_session(here)
    (here / "saved").rename(here / "saved.chat.json")
    before = tree(here)
    env = {"PATH": os.environ["PATH"], "HOME": str(here), "XDG_STATE_HOME": "/dev/null"}
    with PtyRun([PROGRAM, "chat", str(here / "mine")], env, here) as terminal:
        terminal.expect(">>> ")
        terminal.type("/load saved\n")
        terminal.expect("saved.chat.json: not a saved conversation")
        terminal.type("/exit\n")
        assert terminal.ends() == 0
    assert tree(here) == before


# ---- chat


CHATS: dict[str, tuple[str, int, str]] = {
    "empty prompt": ("-p ''", 2, "prompt is empty; give a text"),
    "blank prompt": ("-p '  '", 2, "prompt is empty; give a text"),
    "nothing on stdin": ("", 2, "prompt is empty; give a text to answer, with -p or on stdin"),
    "temperature NaN": ("-p a --temp nan", 2, "--temp must be ... nan"),
    "temperature -1": ("-p a --temp -1", 2, "--temp must be ... -1"),
    "top_p 2": ("-p a --top-p 2", 2, "--top-p must be ... 2"),
    "top_k -1": ("-p a --top-k -1", 2, "--top-k must be ... -1"),
    "min_p inf": ("-p a --min-p inf", 2, "--min-p must be ... inf"),
    "max_tokens 0": ("-p a -n 0", 2, "-n must be ... 0"),
    "context above trained": ("-p a -c 129", 2, "-c 129 ... use fewer, or --force"),
    "context 0": ("-p a -c 0", 2, "context of 0 tokens, expected 1..128"),
    "context -5": ("-p a -c -5", 2, "context of -5 tokens, expected 1..128"),
    "no threads": ("-p a -t 0", 2, "0 threads, expected"),
    "too many threads": ("-p a -t 100000", 2, "100000 threads, expected 1..256"),
    "no cache": ("-p a -ctk q3", 2, "'q3', expected one of"),
    "a prompt too long": (f"-p '{'word ' * 200}'", 5, "the context holds 128 tokens"),
    "a context of 10^12": ("-p a -c 1000000000000 --force", 5, "needs ... host leaves ... try -c"),
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(refused: Callable[..., None], name: str) -> None:
    words, code, message = CHATS[name]
    refused(f"chat mine {words}", code, message)


@pytest.mark.parametrize(
    ("backend", "found"),
    [("magic", "'magic'"), ("native:", "'native:'"), ("onnx:abacus", "'abacus'"), ("onnx:", "''")],
)
def test_a_backend_of_no_known_name_is_refused_before_the_export(
    refused: Callable[..., None], backend: str, found: str
) -> None:
    refused(f"chat hf -p a --backend {backend}", 2, f"expected a ... found {found}")


@pytest.mark.parametrize("words", ["chat hf -p a", "eval hf -f long.txt", "bench hf"])
def test_a_kernel_set_is_refused_before_the_export(
    here: Path, refused: Callable[..., None], words: str
) -> None:
    text("long.txt", "once upon a time " * 200)(here)
    sets = ", ".join(isa_table())
    refused(f"{words} --isa mmx", 2, f"unknown kernel set 'mmx', expected one of {sets}\n")
    other = next(name for name in devices.ISAS if name not in isa_table())
    refused(f"{words} --isa {other}", 6, f"of this CPU ({sets}), found {other!r}; leave --isa")


def test_a_context_that_does_not_fit(here: Path, refused: Callable[..., None]) -> None:
    spec = replace(TINY_SHAPES["plm"], n_ctx_train=1 << 24)
    plm_edge.export(write_tiny_checkpoint(here / "long", spec), out=here / "wide", n_ctx=128)
    refused("chat wide -p a -c 16777216 -ctk f32", 5, "needs ... try -c")


# ---- the program from outside


def run(here: Path, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(here), "LANG": "C.UTF-8"}
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=here, **more)


@pytest.mark.parametrize("name", ["NaN", "pickled"])
def test_the_installed_program_says_the_same(here: Path, name: str) -> None:
    spoil, code, message = CHECKPOINTS[name]
    spoil(here)
    before = tree(here)
    done = run(here, "export", "hf", "--target", "rpi", "-o", "out", "--force")
    assert_one_line(done.returncode, done.stdout, done.stderr, code, message)
    assert tree(here) == before


CLEAR = "\r\x1b[K"


@pytest.mark.parametrize("words", ["export hf --target rpi -o new", "inspect hf", "chat hf -p a"])
def test_the_bar_of_an_export_goes_before_its_error(here: Path, words: str) -> None:
    weight("model.norm.weight", np.inf)(here)
    env = {"PATH": os.environ["PATH"], "HOME": str(here)}
    with PtyRun([PROGRAM, *words.split()], env, here) as terminal:
        assert terminal.ends() == 3
        bar, *_, error = terminal.seen.decode().split(CLEAR)
    assert "[###" in bar
    assert error.startswith("plm-edge: ")


@pytest.mark.parametrize("words", ["inspect hf", "eval hf -f long.txt"])
def test_a_line_takes_the_place_of_the_bar(here: Path, words: str) -> None:
    text("long.txt", "once upon a time " * 200)(here)
    env = {"PATH": os.environ["PATH"], "HOME": str(here)}
    with PtyRun([PROGRAM, *words.split()], env, here) as terminal:
        terminal.expect("[###")
        terminal.expect(f"{CLEAR}export hf for this machine: ")
        terminal.expect(" s\r\n")
        assert terminal.ends() == 0


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip(f"no file system of its own: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small(here: Path, refused: Callable[..., None]) -> None:
    with small_disk(here / "disk", "size=100k"):
        message = "bytes of free space, found ... free some or choose another folder"
        refused("export hf --target rpi -o disk/new", 4, message)


def test_a_disk_that_is_full_before_the_end(here: Path, refused: Callable[..., None]) -> None:
    """Room enough, but for a folder and one file only: the manifest finds none."""
    with small_disk(here / "disk", "size=9m,nr_inodes=3"):
        refused("export hf --target rpi -o disk/new", 4, "No space left on device; free some space")


def test_a_file_that_may_not_grow(here: Path) -> None:
    before = tree(here)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = run(here, "export", "hf", "--target", "rpi", "-o", "out", "--force", preexec_fn=limit)
    assert_one_line(done.returncode, done.stdout, done.stderr, 4, "File too large; raise the limit")
    assert tree(here) == before


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@needs_dev_full
@pytest.mark.parametrize(
    "words", ["--version", "verify mine", "inspect mine", "plan hf --json", "chat mine -p a -n 1"]
)
def test_a_stdout_without_space(here: Path, words: str) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(here)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAM, *words.split()], stdout=full, stderr=subprocess.PIPE, env=env, text=True
        )
    said = "stdout: No space left on device; free some space or write elsewhere\n"
    assert_one_line(done.returncode, "", done.stderr, 4, said)


@needs_dev_full
@pytest.mark.parametrize(("words", "code"), [("--version", 4), ("plan none", 2)])
def test_a_stdout_and_a_stderr_without_space(here: Path, words: str, code: int) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(here)}
    with open("/dev/full", "w") as full:
        done = subprocess.run([PROGRAM, *words.split()], stdout=full, stderr=full, env=env)
    assert done.returncode == code


@needs_dev_full
def test_a_mistake_of_ours_and_a_stderr_without_space(here: Path) -> None:
    with open("/dev/full", "w") as full:
        done = amidst(here, "1 / 0", signal.SIGTERM, stderr=full)
    assert done.returncode == app.INTERNAL_ERROR


def test_offline_takes_nothing_from_the_hub(
    here: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
    message = "a/b is not in the local cache; run once without --offline"
    refused("--offline chat a/b -p hello", 4, message)
    refused("--offline plan a/b --target rpi", 4, message)
    refused("--offline export a/b --target rpi", 4, message)


SIGNALS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "ended by SIGTERM"),
    (signal.SIGHUP, 129, "ended by SIGHUP"),
]


@pytest.mark.parametrize(("number", "code", "message"), SIGNALS)
def test_a_signal_during_an_export(
    here: Path, number: signal.Signals, code: int, message: str
) -> None:
    write_zeros(here / "zeros")
    before = tree(here)
    words = shlex.split("export zeros --target rpi --quant Q4_0 -o out --force")
    env = {"PATH": os.environ["PATH"], "HOME": str(here)}
    process = subprocess.Popen(
        [PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # it may be ignored here
    )
    part = here / ".out.part/.model.gguf.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert_one_line(process.returncode, out, err, code, message)
    assert tree(here) == before
    verify_bundle(here / "out")


# Code in whose midst a signal comes: as in a lock that a wait had not taken again yet.
AMIDST = {
    "a lock": """
lock = threading.Condition()
with lock:
    lock.release()
    signal.raise_signal(number)
""",
    "another error": """
try: signal.raise_signal(number)
except BaseException: raise OSError(5, "b")
""",
    "an error from None": """
try: signal.raise_signal(number)
except BaseException: raise plm_edge.OutputError("b") from None
""",
}
EATEN = """
try: signal.raise_signal(number)
except BaseException: pass
raise RuntimeError("later")
"""
ONE_COMMAND_MORE = """
import signal, sys, threading
import plm_edge
from plm_edge.cli import app
from plm_edge.native.kernels import isa_table
number, code = int(sys.argv.pop()), sys.argv.pop()
app.app.command("amidst")(lambda: exec(code))
app.run()
"""


def amidst(
    here: Path, code: str, number: signal.Signals, stderr: int | IO[str] = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ONE_COMMAND_MORE, "amidst", code, str(int(number))]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=here)


@pytest.mark.parametrize(("number", "code", "message"), SIGNALS)
@pytest.mark.parametrize("name", AMIDST)
def test_what_code_makes_of_a_signal_is_that_signal(
    here: Path, name: str, number: signal.Signals, code: int, message: str
) -> None:
    done = amidst(here, AMIDST[name], number)
    assert_one_line(done.returncode, done.stdout, done.stderr, code, message)


@pytest.mark.parametrize(("number", "code", "message"), SIGNALS[1:])
def test_an_error_after_a_signal_that_was_eaten_is_that_signal(
    here: Path, number: signal.Signals, code: int, message: str
) -> None:
    done = amidst(here, EATEN, number)
    assert_one_line(done.returncode, done.stdout, done.stderr, code, message)


def test_of_two_signals_the_first_counts(here: Path) -> None:
    code = """
try: signal.raise_signal(number)
except BaseException: signal.raise_signal(signal.SIGHUP)
"""
    done = amidst(here, code, signal.SIGTERM)
    assert_one_line(done.returncode, done.stdout, done.stderr, 143, "ended by SIGTERM")


def test_an_error_after_an_answered_ctrl_c_is_an_error(here: Path) -> None:
    """A chat answers it and goes on."""
    done = amidst(here, EATEN, signal.SIGINT)
    assert done.returncode == app.INTERNAL_ERROR
    assert "RuntimeError: later\nplm-edge: internal error; please report" in done.stderr
