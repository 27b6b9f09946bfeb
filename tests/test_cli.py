"""The command line as users meet it: a process, its streams and its exit code."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import PROGRAM, Ran, Run, one_line
from tiny import TINY_SHAPES, write_tiny_checkpoint

import plm_edge
from plm_edge import devices
from plm_edge.cli import app
from plm_edge.cli.chat import DEMO_PROMPT
from plm_edge.errors import FileFormatError, UsageError
from plm_edge.runtime.conversation import Conversation
from plm_edge.runtime.sampler import Sampler

Bundles = Callable[..., Path]


def test_version_and_help(run: Run, inside: Run) -> None:
    assert run("--version") == Ran(0, f"plm-edge {plm_edge.__version__}\n", "")
    shown = run("--help")
    assert shown.code == 0
    for name in ("export", "chat", "plan", "devices", "verify", "synth"):
        assert f"  {name} " in shown.out
        assert inside(name, "--help").code == 0


def test_every_command_calls_a_model_the_same(inside: Run) -> None:
    for name in ("export", "chat", "plan", "bench", "eval", "inspect"):
        shown = " ".join(inside(name, "--help").out.split())
        assert "MODEL Hugging Face folder, hub id, bundle, .gguf file, " in shown, name


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("nothing", "No such command 'nothing'; `plm-edge -h` shows what it takes"),
        ("export2 demo", "Did you mean 'export'? `plm-edge -h` shows"),
        ("--nothing", "No such option: --nothing; `plm-edge -h` shows"),
        ("chat --nothing", "No such option: --nothing; `plm-edge chat -h` shows"),
        ("chat -n many", "'many' is not a valid int; `plm-edge chat -h` shows"),
        ("chat --top-k", "Option '--top-k' requires an argument; `plm-edge -h` shows"),
        ("export demo", "Missing option '--target'; `plm-edge export -h` shows"),
        ("devices show", "Missing argument 'NAME'; `plm-edge devices show -h` shows"),
    ],
)
def test_usage_errors(inside: Run, words: str, line: str) -> None:
    one_line(inside(*words.split()), 2, line)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["chat", "./none", "-p", "a"], 2, "./none"),
        (["plan", "{hf}", "--target", "toaster"], 2, "unknown target 'toaster'"),
        (["chat", "{bundle}", "-p", ""], 2, "prompt is empty"),
        (["chat", "{bundle}", "-p", "a", "--temp", "nan"], 2, "--temp must be a number from 0"),
        (["chat", "{bundle}", "-p", "a", "--top-k", "-1"], 2, "--top-k must be a whole"),
        (["chat", "{bundle}", "-p", "a", "-s", "18446744073709551616"], 2, "-s must be a"),
        (["chat", "{bundle}", "-p", "a", "-n", "0"], 2, "-n must be a whole number from 1, not 0"),
        (["chat", "{bundle}", "-p", "a", "-n", "-5"], 2, "from 1, not -5; -1: no limit"),
        (["chat", "{bundle}", "-p", "a", "--top-p", "2"], 2, "--top-p must be"),
        (["chat", "{bundle}", "-p", "a", "--min-p", "2"], 2, "--min-p must be"),
        (["chat", "{bundle}", "-p", "a", "--repeat-penalty", "0"], 2, "--repeat-penalty must be"),
        (["chat", "{bundle}", "-p", "a", "--stop", ""], 2, "stop must hold"),
        (["chat", "{bundle}", "-p", "a", "-c", "129"], 2, "trained for; use fewer, or --force"),
        (["chat", "{bundle}", "-p", "a", "-c", "1000000000", "--force"], 5, "host leaves"),
        (["chat", "{bundle}", "-p", "a", "-c", "0"], 2, "context of 0"),
        (["chat", "{bundle}", "-p", "a", "-ctk", "q3"], 2, "q3"),
        (["chat", "{bundle}", "-p", "a", "--isa", "mmx"], 2, "mmx"),
        (["chat", "{bundle}", "-p", "a", "-t", "0"], 2, "0 threads"),
        (["chat", "{bundle}", "-p", "a", "-t", "257"], 2, "257 threads"),
        (["plan", "{bundle}", "--target", "rpi", "-t", "100000"], 2, "100000 threads"),
        (["plan", "demo", "--isa", "avx2"], 2, "--isa avx2: expected one device to plan for"),
        (["chat", "{bundle}", "-p", "a", "--backend", "magic"], 2, "magic"),
        (["chat", "{bundle}", "-p", "{long}"], 5, "the context holds 128 tokens"),
        (["chat", "{bundle}", "--load", "none.json"], 2, "found no conversation 'none.json'"),
        (["chat", "{bundle}", "--load", "{hf}"], 4, "cannot read"),
        (["eval", "{bundle}", "-f", "none.txt"], 2, "found no file 'none.txt'; check -f"),
        (["eval", "{bundle}", "-f", "{hf}"], 4, "cannot be read: Is a directory"),
        (["plan", "{hf}", "--target", "none.toml"], 2, "found no profile 'none.toml'"),
        (["export", "{hf}", "--target", "none.toml"], 2, "found no profile 'none.toml'"),
        (["verify", "none"], 2, "none"),
        (["verify", "{hf}"], 3, "manifest.json"),
        (["plan", "{bundle}", "--target", "{small}"], 5, "leaves 1 MiB"),
        (["export", "{hf}", "--target", "rpi", "-o", "{bundle}"], 4, "--force"),
        (["export", "{hf}", "--target", "rpi", "--quant", "Q9"], 2, "Q9"),
        (["export", "{hf}", "--target", "rpi", "--layout", "flat"], 2, "flat"),
    ],
)
def test_a_mistake_is_one_line(
    inside: Run,
    bundle_of: Bundles,
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    small = tmp_path / "small.toml"
    small.write_text(
        'name = "Toy"\n[memory]\ntotal = "2 MiB"\nusable = "1 MiB"\nsource = "made up"\n'
    )
    words = {
        "hf": checkpoint_of("plain"),
        "bundle": bundle_of("plain"),
        "small": small,
        "long": "word " * 200,
    }
    one_line(inside(*(argument.format(**words) for argument in arguments)), code, part)


def test_export_verify_chat(run: Run, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    ran = run("export", checkpoint_of("plain"), "--target", "rpi4", "--quant", "F16", "-c", 64)
    assert ran.code == 0
    assert "wrote plain-rpi4;" in ran.out
    assert "F16 in layout latent, context 64 tokens" in ran.out
    assert ran.err.startswith("export: ")
    assert run("verify", "plain-rpi4").out.splitlines()[-1].startswith("ok: plain-rpi4, 5 files")
    ran = run("chat", "plain-rpi4", "-p", "hello", "-n", 5, "-s", 1)
    assert ran.code == 0
    assert "answer 5 tokens" in ran.err.splitlines()[-1]
    assert ran.out == run("chat", "plain-rpi4", "-p", "-", "-n", 5, "-s", 1, stdin="hello").out
    assert ran.out != run("chat", "plain-rpi4", "-p", "hello", "-n", 5, "-s", 2).out
    model = tmp_path / "plain-rpi4/model.gguf"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    one_line(run("verify", "plain-rpi4"), 3, "sha256")


def test_a_folder_is_exported_once_into_the_cache(
    run: Run, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "hf", TINY_SHAPES["plain"])
    assert "for this machine: " in run("chat", folder, "-p", "a", "-n", 1).err
    (cached,) = (tmp_path / ".cache/plm-edge").iterdir()
    before = (cached / "model.gguf").stat().st_mtime_ns
    assert "for this machine: " not in run("chat", folder, "-p", "a", "-n", 1).err
    assert (cached / "model.gguf").stat().st_mtime_ns == before
    write_tiny_checkpoint(folder, TINY_SHAPES["plain"], seed=1)
    assert "for this machine: " in run("chat", folder, "-p", "a", "-n", 1).err
    assert len(list((tmp_path / ".cache/plm-edge").iterdir())) == 2


def test_a_cache_folder_that_cannot_be_is_one_line(
    inside: Run,
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cure = "; set XDG_CACHE_HOME to a folder you may write to\n"
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    ran = inside("chat", checkpoint_of("plain"), "-p", "a")
    one_line(ran, 4, f"the cache folder {tmp_path}/.cache/plm-edge cannot be written to{cure}")
    (tmp_path / ".cache/plm-edge").rmdir()
    (tmp_path / ".cache").rmdir()
    (tmp_path / ".cache").write_text("")
    ran = inside("chat", checkpoint_of("plain"), "-p", "a")
    one_line(ran, 4, f"no cache folder {tmp_path}/.cache/plm-edge: Not a directory{cure}")


def test_minus_one_unsets_what_was_saved(inside: Run, bundle_of: Bundles, tmp_path: Path) -> None:
    talk = Conversation(sampler=Sampler(seed=123), max_tokens=2)
    talk.save(tmp_path / "talk.json")
    chat = ("chat", bundle_of("plain"), "-p", "a", "--load", "talk.json", "--temp", 0)
    assert "answer 2 tokens; " in inside(*chat).err
    assert "seed 123; length]" in inside(*chat).err
    assert "answer 2 tokens; " not in inside(*chat, "-n", -1).err
    assert "seed 123; " not in inside(*chat, "-s", -1).err


def test_a_pipe_is_one_prompt(run: Run, bundle_of: Bundles) -> None:
    chat = ("chat", bundle_of("plain"), "-n", 2, "-s", 1)
    piped = run(*chat, stdin="one\n\n/exit\n")  # a command is text where nobody sits
    assert piped.code == 0
    assert piped.err.count("answer 2 tokens") == 1
    asked = run(*chat, "-p", "one\n\n/exit")
    prompt = re.compile(r"prompt [\d,]+ tokens")
    assert prompt.findall(piped.err) == prompt.findall(asked.err) != []
    assert prompt.findall(run(*chat, stdin="one\n").err) != prompt.findall(asked.err)
    assert piped.out == asked.out == run(*chat, "-p", "-", stdin="one\n\n/exit\n").out


def test_nobody_there(
    inside: Run,
    bundle_of: Bundles,
    checkpoint_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_line(inside("chat", bundle_of("plain")), 2, "the prompt is empty")
    one_line(inside("chat", "-p", "-"), 2, "the prompt is empty")
    one_line(inside("chat", "nosuch"), 2, "found no file or folder 'nosuch'; ")
    one_line(inside("chat", "no/such"), 2, "the prompt is empty")  # the hub was not asked
    monkeypatch.setattr("plm_edge.checkpoint.hub._DEMO", checkpoint_of("plain"))
    ran = inside("chat", "-n", 3, "-s", 5)  # the demo shows what it can do
    assert ran.code == 0
    assert f"> {DEMO_PROMPT}\n" in ran.err
    assert ran.err.endswith("length]\n")


def test_load_takes_what_chat_takes(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with plm_edge.load(checkpoint_of("plain"), n_ctx=64, threads=1) as session:
        assert session.n_ctx == 64
        assert list(plm_edge.chat(session, [{"role": "user", "content": "hi"}], max_tokens=2))
    (cached,) = (tmp_path / "plm-edge").iterdir()
    with plm_edge.load(cached) as session:
        assert session.n_ctx == 128
    with plm_edge.load(cached, n_ctx=200, force=True) as session:
        assert session.n_ctx == 200
    with pytest.raises(UsageError, match="200 tokens"):
        plm_edge.load(cached, n_ctx=200)


def test_bytes_that_are_no_text_are_answered(run: Run, bundle_of: Bundles) -> None:
    ran = run("chat", bundle_of("plain"), "-n", 1, "-p", "-", stdin=b"\xff\x00\xc3")
    assert ran.code == 0


def test_a_plan_of_all_devices_is_numbers_in_json(inside: Run) -> None:
    """And words in the table."""
    rows = {row["device"]: row for row in json.loads(inside("plan", "demo", "--json").out)}
    assert list(rows) == [name for name in devices.names() if name != "host"]
    for name, row in rows.items():
        kinds = {key: type(value) for key, value in row.items() if key != "speed"}
        words = ("device", "fits", "quant", "cache_type", "file", "speed_unknown")
        assert kinds == {key: str if key in words else int for key in kinds}, name
        assert row["speed"] is None  # its weights stay in a cache
    one = json.loads(inside("plan", "demo", "--target", "rpi5-4gb", "--json").out)
    assert rows["rpi5-4gb"]["cache_bytes"] == one["budget"]["cache"]
    assert rows["rpi5-4gb"]["n_ctx"] == one["n_ctx"]
    large = json.loads(inside("plan", "plm-1.8b", "--json").out)
    board = next(row for row in large if row["device"] == "rpi5-4gb")
    assert 0 < board["speed"]["full"]["high"] < board["speed"]["empty"]["high"]
    assert one["speed_unknown"] == rows["rpi5-4gb"]["speed_unknown"]
    assert "speed_unknown" not in board
    table = inside("plan", "demo").out
    assert f"\nunknown: {one['speed_unknown']}.\n" in table
    assert re.search(r"\| rpi5-4gb \| [\d,]+ of 4,096 MiB \| .* \| unknown \| unknown \|", table)


def test_a_longer_context_with_force(run: Run, bundle_of: Bundles) -> None:
    ran = run("chat", bundle_of("plain"), "-c", 200, "--force", "-p", "word " * 20, "-n", 1)
    assert ran.code == 0, ran.err


def test_plan_and_devices(inside: Run, bundle_of: Bundles) -> None:
    plan = json.loads(inside("plan", bundle_of("plain"), "--target", "rpi", "--json").out)
    assert plan["n_ctx"] == 128
    assert "reasons" not in plan
    shown = inside("plan", bundle_of("plain"), "--target", "rpi", "-c", 64, "--explain").out
    assert "context   64 tokens" in shown
    assert "because" in shown
    assert inside("devices").out == inside("devices", "list").out
    assert "(also: rpi, rpi5)" in inside("devices").out
    assert "rpi5-4gb" in json.loads(inside("devices", "list", "--json").out)["names"]
    assert json.loads(inside("devices", "show", "rpi", "--json").out)["performance_cores"] == 4
    assert "memory.usable" in inside("devices", "show", "host").out


@pytest.mark.parametrize(("quant", "cache"), [("Q8_0", "q8_0"), ("q8_0", "Q8_0")])
def test_formats_in_any_case(
    inside: Run, checkpoint_of: Callable[[str], Path], tmp_path: Path, quant: str, cache: str
) -> None:
    hf = checkpoint_of("blocks")
    asked = ("--target", "rpi4", "--quant", quant)
    plan = json.loads(inside("plan", hf, *asked, "-ctk", cache, "--json").out)
    assert (plan["quant"], plan["cache_type"]) == ("Q8_0", "q8_0")
    assert "Q8_0 in layout" in inside("export", hf, *asked, "-o", "out").out
    assert inside("chat", "out", "-ctk", cache, "-p", "a", "-n", 1).code == 0


def test_synth(inside: Run, tmp_path: Path) -> None:
    ran = inside("synth", "--shape", "plm-tiny", "-o", "made", "-s", 3, "--quant", "q8_0")
    assert ran.code == 0, ran.err
    assert "wrote made" in ran.out
    assert inside("chat", "made", "-p", "a", "-n", 1).code == 0
    one_line(inside("synth", "--shape", "cube", "-o", "made"), 2, "unknown shape 'cube'")


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "-h",
        "chat -h",
        "chat {bundle} -p a --temp 0",
        "plan demo --target rpi --json",
    ],  # the last one in the last flush
)
def test_a_reader_that_leaves(env: dict[str, str], bundle_of: Bundles, words: str) -> None:
    process = subprocess.Popen(
        [PROGRAM, *words.format(bundle=bundle_of("plain")).split()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_an_interrupt_of_one_answer(env: dict[str, str], tmp_path: Path) -> None:
    spec = replace(TINY_SHAPES["blocks"], n_ctx_train=32_768)
    folder = write_tiny_checkpoint(tmp_path / "hf", spec)
    plm_edge.export(folder, out=tmp_path / "long", quant="Q8_0")
    process = subprocess.Popen(
        [PROGRAM, "chat", tmp_path / "long", "-p", "hello", "--temp", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"plm-edge: interrupted\n")
    out.decode("utf-8", "strict")


def test_a_stdout_with_a_name_is_as_it_was() -> None:
    for errors, lines, through in (("strict", False, True), ("replace", True, False)):
        how = {"errors": errors, "line_buffering": lines, "write_through": through}
        named = app._with_a_name(io.TextIOWrapper(io.BytesIO(), encoding="ascii", **how))
        assert isinstance(named, app.Stdout)
        assert named.encoding == "ascii"
        assert {name: getattr(named, name) for name in how} == how


def raising(error: BaseException) -> Callable[[Path], None]:
    def verify(_: Path) -> None:
        raise error

    return verify


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FileFormatError("two\nlines"), 3, "plm-edge: two lines\n"),
        (KeyboardInterrupt(), 130, "plm-edge: interrupted\n"),
        (
            OSError(28, "No space left on device", "x"),
            4,
            "plm-edge: x: No space left on device; free some space or write elsewhere\n",
        ),
        (OSError(5, "Input/output error", "x"), 4, "plm-edge: x: Input/output error\n"),
        (MemoryError(), 5, "plm-edge: the memory of this machine is used up\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("plm_edge.bundle.verify_bundle", raising(error))
    monkeypatch.setattr(sys, "argv", ["plm-edge", "verify", "x"])
    assert app._exit_code() == code
    assert capsys.readouterr() == ("", line)


def test_our_own_mistake_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("plm_edge.bundle.verify_bundle", raising(ZeroDivisionError("here")))
    monkeypatch.setattr(sys, "argv", ["plm-edge", "verify", "x"])
    assert app._exit_code() == 70
    assert "ZeroDivisionError: here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} devices >&-", 0),
        ("{} chat demo -p hi -n 2 2>&-", 0),
        ("{} chat demo -n 2 <&-", 0),
        ("{} chat demo -p hi -n 2 <&- 2>&-", 0),
    ],
)
def test_a_stream_that_the_caller_closed_is_an_empty_one(
    shell: str, code: int, env: dict[str, str], tmp_path: Path
) -> None:
    command = ["sh", "-c", shell.format(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["export demo --target rpi", "synth", "devices detect"])
def test_an_empty_path_is_not_this_folder(command: str, inside: Run, tmp_path: Path) -> None:
    said = inside(*command.split(), "-o", "")
    assert said.code == 2
    assert "expected a path, found ''" in said.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file_format", "said"), [("onnx", "Q8_0 in ONNX files"), ("both", "Q8_0 in layout latent")]
)
def test_a_layout_is_named_where_there_is_one(
    inside: Run, checkpoint_of: Callable[[str], Path], file_format: str, said: str
) -> None:
    pytest.importorskip("onnx")
    hf = checkpoint_of("blocks")
    ran = inside("export", hf, "--target", "rpi4", "--quant", "Q8_0", "--format", file_format)
    assert ran.out.startswith(f"{said}, context 128 tokens\n"), ran.err
