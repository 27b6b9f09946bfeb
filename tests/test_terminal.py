"""The chat in a real terminal: editing, commands, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pty_run import PtyRun
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.cli import slash
from plm_edge.cli.lines import read_text
from plm_edge.cli.terminal import Terminal
from plm_edge.exporters import export
from plm_edge.runtime import load
from plm_edge.runtime.conversation import Conversation
from plm_edge.runtime.sampler import Sampler

Start = Callable[..., PtyRun]
GREEDY = ("--temp", "0")  # this model then never ends an answer by itself


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    spec = replace(TINY_SHAPES["blocks"], n_ctx_train=8192)
    export(str(write_tiny_checkpoint(root / "hf", spec)), out=root / "tiny", quant="Q8_0")
    return root / "tiny"


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Start]:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8", "TERM": "xterm"}
    runs: list[PtyRun] = []

    def begin(*options: str) -> PtyRun:
        run = PtyRun([*PROGRAM, "chat", str(bundle), "-t", "1", *options], env, tmp_path)
        runs.append(run)
        run.expect(">>> ")
        return run

    yield begin
    for run in runs:
        run.__exit__()


PROGRAM = [str(Path(sys.executable).with_name("plm-edge"))]


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(start: Start) -> None:
    run = start(*GREEDY)
    run.type("hello\n")
    run.expect("Gher")
    run.ctrl_c()
    run.expect("interrupted]")
    run.expect(">>> ")
    run.type("/set n 3\n")
    run.expect("n = 3")
    run.expect(">>> ")
    run.type("and\n")
    assert "answer 3 tokens" in run.expect("length]")
    run.expect(">>> ")
    run.ctrl_c()
    run.expect("leaves")
    run.expect(">>> ")
    run.ctrl_c()
    assert run.ends() == 130
    run.seen.decode("utf-8")  # never half a character


def test_ctrl_c_twice_leaves(start: Start) -> None:
    run = start(*GREEDY)
    run.type("hello\n")
    run.expect("Gher")
    run.ctrl_c()
    run.expect("interrupted]")  # two at once would be one signal
    run.ctrl_c()
    assert run.ends() == 130
    assert b"Traceback" not in run.seen


def test_the_second_ctrl_c_need_not_wait_for_the_first(bundle: Path) -> None:
    with load(bundle, threads=1) as session:
        terminal = Terminal(session, Conversation(sampler=Sampler(temperature=0)), "tiny")

        def impatient() -> Iterator[str]:
            for piece in terminal.talk.ask(session, "hello"):
                yield piece
                os.kill(os.getpid(), signal.SIGINT)
                assert terminal.talk.answer is not None
                assert not list(terminal.talk.answer), "the first one cancels"
                os.kill(os.getpid(), signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            terminal.say(impatient())
        assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_during_a_long_prefill(start: Start) -> None:
    run = start(*GREEDY)
    run.type('"""\n')
    for _ in range(6):
        run.expect("... ")
        run.type("the girl " * 100 + "\n")
    run.expect("... ")
    run.type('"""\n')
    run.ctrl_c()
    run.expect(">>> ")
    run.type("/exit\n")
    assert run.ends() == 0


def test_ctrl_d_leaves(start: Start) -> None:
    run = start()
    run.type("\x04")
    assert run.ends() == 0


def test_a_line_ends_a_row_of_interrupts(start: Start) -> None:
    run = start(*GREEDY, "-n", "2")
    run.ctrl_c()
    run.expect("leaves")
    run.expect(">>> ")
    run.type("hi\n")
    run.expect("length]")
    run.expect(">>> ")
    run.ctrl_c()
    run.expect("leaves")
    run.expect(">>> ")
    run.type("/bye\n")
    assert run.ends() == 0


def test_a_line_of_a_longer_text_ends_a_row_of_interrupts(start: Start) -> None:
    run = start(*GREEDY, "-n", "2")
    run.ctrl_c()
    run.expect("leaves")
    run.expect(">>> ")
    run.type('"""\n')
    run.expect("... ")
    run.type("a line\n")
    run.expect("... ")
    run.ctrl_c()
    run.expect("leaves")
    run.expect(">>> ")
    run.type("/bye\n")
    assert run.ends() == 0


def test_commands(start: Start, tmp_path: Path) -> None:
    run = start("-n", "4", "-s", "7", "-sys", "be kind")

    def say(line: str, answer: str) -> str:
        run.type(line + "\n")
        shown = run.expect(answer)
        run.expect(">>> ")
        return shown

    say("/help", "/regen")
    say("/stats", "no answer yet")
    say("/regen", "no question")
    say("hello", "length]")
    assert "of them cached" in say("/regen", "length]")
    say("/stats", "seed 7")
    say("/dance", "no command /dance")
    say("/set top_k -1", "top_k must be a whole number")
    say("/set temp warm", "temp must be a number, not 'warm'")
    for typed in ("temp", "--temp", "temperature", "--top-k", "repeat-penalty", "n", "max_tokens"):
        shown = say(f"/set {typed} -1", ", not -1")
        assert f"\n{typed} must be a " in shown.replace("\r", ""), shown
    say("/set temp none", "temp must be a number, not 'none'")
    say("/set seed warm", "seed must be a whole number or none, not 'warm'")
    say("/set", "needs a name")
    say("/set --top-k 3", "top_k = 3")
    say("/set stop END", "stop = ['END']")
    say("/set n none", "n = none")
    say("/set max_tokens 4", "n = 4")
    names = "temp, top_k, top_p, min_p, repeat_penalty, seed, n, stop"
    say("/set --no-thing x", f"no setting '--no-thing'; there are {names}")
    say("/system be brief", "system prompt set")
    shown = say("/show", "stop ['END']")
    assert "be brief" in shown
    assert "top_k 3" in shown
    assert re.findall(r"^(\w+) ", shown, re.MULTILINE)[-8:] == names.split(", ")
    say(f"/save {tmp_path}/fox", "saved 3 messages")
    say("/reset", "forgotten")
    say(f"/load {tmp_path}/none", "found no conversation")
    say(f"/load {tmp_path}/fox", "loaded 3 messages")
    (tmp_path / "letter.txt").write_text("Dear fox")
    say(f"/save {tmp_path}/letter.txt", "is no conversation")
    assert (tmp_path / "letter.txt").read_text() == "Dear fox"
    run.type("/exit\n")
    assert run.ends() == 0
    saved = json.loads((tmp_path / "fox.chat.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["settings"]["top_k"] == 3
    again = start("--load", f"{tmp_path}/fox.chat.json", "--top-k", "5")
    again.type("/show\n")
    assert "top_k 5" in again.expect("['END']")


def test_stats_tell_of_drafts_and_lookup_outlives_a_load(start: Start) -> None:
    run = start("--lookup", *GREEDY, "--repeat-penalty", "1", "-n", "100")  # ids that go round
    run.type("hello\n")
    run.expect("length]")
    run.type("/stats\n")
    assert re.search(r"; \d+ of \d+ drafted accepted;", run.expect("length]"))
    run.type("/save fox\n/load fox\n/regen\n")
    run.expect("loaded 2 messages")
    assert "drafted accepted" in run.expect("length]")


def test_history_is_kept_for_this_user_alone(start: Start, tmp_path: Path) -> None:
    run = start(*GREEDY, "-n", "1")
    run.type("a question to remember\n")
    run.expect("length]")
    run.type("/exit\n")
    assert run.ends() == 0
    file = tmp_path / ".local/state/plm-edge/history"
    assert "a question to remember" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = start(*GREEDY, "-n", "1")
    again.type("\x1b[A\x1b[A")  # up twice: past /exit
    again.expect("a question to remember")


def test_texts_of_several_lines(start: Start) -> None:
    run = start(*GREEDY, "-n", "1", "-ctk", "f32")
    run.type('"""/reset is\nno command"""\n')
    run.expect("length]")
    run.type("one \\\ntwo\n")
    run.expect("length]")
    run.type("/save both\n")
    run.expect("saved 4 messages in both.chat.json")


def test_help_names_all_and_lines_up(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(bundle, threads=1) as session:
        slash.run(Terminal(session, Conversation(), "tiny"), "/?")
    lines = capsys.readouterr().err.splitlines()
    rows = dict(re.split(r" {2,}", line) for line in lines)
    words = {word for typed in rows for word in typed.split()}
    assert words >= {*slash.COMMANDS, *slash.ALIASES, '"""', "\\"}
    assert rows["/exit /bye /quit"] == "leave"
    assert rows["NAME"] == f"one of {', '.join(slash.SETTINGS)}"
    assert len({line.index(rows[re.split(r" {2,}", line)[0]]) for line in lines}) == 1


def test_every_setting_has_one_name() -> None:
    assert list(slash.SETTINGS.values()) == list(Conversation().settings())


@pytest.mark.parametrize(
    ("typed", "text", "plain"),
    [
        (["hello"], "hello", True),
        (['"""a', "b", 'c"""'], "a\nb\nc", False),
        (['"""one"""'], "one", False),
        (['"""', "a", '"""'], "a", False),
        (["a\\", "b\\", "c"], "a\nb\nc", False),
        (["/reset"], "/reset", True),
    ],
)
def test_read_text(typed: list[str], text: str, plain: bool) -> None:
    lines = iter(typed)
    assert read_text(lambda _: next(lines)) == (text, plain)
    assert list(lines) == []
