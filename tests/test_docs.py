"""What README and docs/ say is what the program does; each check is shown a planted mistake.

A check takes the text and returns what is wrong with it, so that a bent text can be checked too.
docs/layouts.md has a test of its own, tests/test_docs_layouts.py.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from docs_text import README, ROOT, blocks, spans, table

import plm_edge
from plm_edge import errors
from plm_edge.cli import app, slash

DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAM = str(Path(sys.executable).with_name("plm-edge"))
FOLDERS = "plm_edge|runtime|exporters|devices|tests|docs|examples|tools|benchmarks"


# ---------------------------------------------------------------- commands


@functools.cache
def help_of(*words: str) -> str:
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.check_output([PROGRAM, *words, "--help"], text=True, env=env)


@functools.cache
def commands(*words: str) -> Mapping[tuple[str, ...], set[str]]:
    """Every command below `words`, with all spellings of its options."""
    text = help_of(*words)
    options = {
        flag
        for line in re.findall(r"^  (-.*)$", text, re.MULTILINE)
        for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line.split("  ")[0])
    }
    found = {words: options - {"-h", "--help"}}
    for name in re.findall(r"^  ([a-z]+) ", text.partition("Commands:\n")[2], re.MULTILINE):
        found |= commands(*words, name)
    return found


def command_of(line: str) -> tuple[str, ...]:
    """("devices", "show") of "plm-edge devices show NAME"."""
    words: tuple[str, ...] = ()
    for word in line.split()[1:]:
        if (*words, word) not in commands():
            break
        words = (*words, word)
    return words


def wrong_commands(text: str) -> list[str]:
    said = {
        command_of(spans(cells[0])[0]): {
            flag for span in spans(cells[2]) for flag in span.split(", ")
        }
        for cells in table(text, "command")
    }
    return [
        f"{words}: {sorted(said.get(words, set()) ^ commands().get(words, set()))}"
        for words in {*said, *commands()}
        if said.get(words) != commands().get(words)
    ]


def wrong_calls(text: str) -> list[str]:
    """Calls of the program with a command or an option that it does not have."""
    lines = [line.removeprefix("$ ") for block in blocks(text) for line in block.splitlines()]
    wrong = []
    for line in [line.partition("  #")[0] for line in lines] + spans(text):
        words = line.split()
        if words[:1] != ["plm-edge"] or words[1:2] == ["COMMAND"]:
            continue
        command = command_of(line)
        flags = {word for word in words if re.fullmatch(r"--?[a-z][\w-]*", word)}
        plain = not command and words[1:] and words[1] not in commands()[()]
        if plain or flags - commands()[command] - {"--help"}:
            wrong.append(line)
    return wrong


def test_the_readme_lists_every_command_and_option() -> None:
    assert not wrong_commands(README)
    assert len(commands()) > 6


@pytest.mark.parametrize(("old", "new"), [
    ("`--allow-key` ", ""),
    ("`--zeros` ", "`--zeros` `--ones` "),
    ("| `plm-edge verify BUNDLE` | check the size and sha256 of every file | |\n", ""),
    ("`-n, --predict`", "`--predict`"),
])  # fmt: skip
def test_a_wrong_command_would_show(old: str, new: str) -> None:
    assert old in README
    assert wrong_commands(README.replace(old, new))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_call_in_the_docs_is_possible(path: Path) -> None:
    assert not wrong_calls(path.read_text())


@pytest.mark.parametrize(
    "planted", ["`plm-edge bake demo`", "```\n$ plm-edge chat out --hot 3\n```\n"]
)
def test_an_impossible_call_would_show(planted: str) -> None:
    assert wrong_calls(planted)


def test_the_readme_lists_the_commands_of_a_chat() -> None:
    said = {name: spans(cells[0]) for cells in table(README, "typed") for name in spans(cells[0])}
    assert {name.split()[0] for name in said} == {*slash.COMMANDS, *slash.ALIASES}
    for alias, name in slash.ALIASES.items():
        assert name in said[alias]


def test_the_readme_lists_the_exit_codes() -> None:
    family = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    ended = {app.Ended(number).exit_code for number in (signal.SIGHUP, signal.SIGTERM)}
    codes = {0, app.INTERNAL_ERROR, app.BROKEN_PIPE, *ended, *(kind.exit_code for kind in family)}
    said = {int(code) for cells in table(README, "code") for code in cells[0].split(", ")}
    assert said == codes


# ---------------------------------------------------------------- links and paths


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def wrong_links(text: str, folder: Path) -> list[str]:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = folder / name
        if not path.exists():
            wrong.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            wrong += [] if anchor in map(slug, headings) else [target]
    return wrong


def wrong_paths(text: str) -> list[str]:
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*", text)
    wrong = [name for name in named if not list(ROOT.glob(name.rstrip("./")))]
    for name, path in re.findall(r"`(\w+)`\s(?:\(`\w+`\)\s)?in\s`([\w-]+/[\w./-]+\.\w+)`", text):
        file = ROOT / path
        if not file.exists() or not re.search(rf"\b{name}\b", file.read_text()):
            wrong.append(f"{name} in {path}")
    return wrong


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_and_path_leads_somewhere(path: Path) -> None:
    assert not wrong_links(path.read_text(), path.parent)
    assert not wrong_paths(path.read_text())


def test_a_dead_link_or_path_would_show() -> None:
    assert wrong_links("[flow](docs/flows.md)", ROOT)
    assert wrong_links("[flow](docs/flow.md#nowhere)", ROOT)
    assert wrong_paths("as `plm_edge/spek.py` says")
    assert wrong_paths("tests/test_docs.py and devices/profiles/*.ini")
    assert wrong_paths("`LAYOUT_VERSIONS` in `plm_edge/gguf_spec.py`")


# ---------------------------------------------------------------- what can be run


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "100"}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_readme_shows_what_export_prints(
    tmp_path: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    session = next(block for block in blocks(README) if "$ plm-edge export" in block)
    _, call, *shown = re.split(r"^\$ (.*)\n", session, flags=re.MULTILINE)
    done = run([PROGRAM, *call.replace("demo", str(checkpoint_of("plm"))).split()[1:]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert shapeless(done.stderr + done.stdout) == shapeless(shown[0])
    assert shapeless(done.stdout) != shapeless(shown[0])


def shapeless(text: str) -> list[str]:
    """Lines without their numbers and widths."""
    return [" ".join(re.sub(r"\d[\d,.]*", "#", line).split()) for line in text.splitlines()]


def test_the_readme_example_runs(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> None:
    (code,) = blocks(README, "python")
    here = code.replace('"demo"', repr(str(checkpoint_of("plm"))))
    assert here != code
    done = run([sys.executable, "-W", "error", "-c", here], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    bent = here.replace("plm-host", "plm-bent").replace("session.step", "session.stride")
    assert "no attribute 'stride'" in run([sys.executable, "-c", bent], tmp_path).stderr


@pytest.mark.parametrize(("name", "said"), [
    ("perplexity.py TEXT", r"perplexity \d+\.\d+ over \d+ tokens"),
    ("saved_prompt.py TEXT Why?", r"\n0 of \d+ prompt tokens were cached"),
    ("two_sessions.py", r"The king said.*cache [\d,]+ bytes"),
])  # fmt: skip
def test_each_example_runs(
    tmp_path: Path, bundle_of: Callable[..., Path], name: str, said: str
) -> None:
    (tmp_path / "TEXT").write_text("once upon a time there was a house by the sea")
    command = [str(ROOT / "examples" / name.split()[0]), *name.split()[1:], str(bundle_of("plm"))]
    for _ in range(2 if "saved" in name else 1):
        done = run([sys.executable, "-W", "error", *command], tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(said, done.stdout, re.DOTALL)
        said = said.replace("n0 of", "n[1-9][0-9]* of")  # the second run reads what the first wrote


def test_a_text_that_is_too_long_for_an_example_is_one_line(
    tmp_path: Path, bundle_of: Callable[..., Path]
) -> None:
    (tmp_path / "TEXT").write_text("once upon a time " * 200)
    command = [str(ROOT / "examples/saved_prompt.py"), "TEXT", "Why?", str(bundle_of("plm"))]
    done = run([sys.executable, *command], tmp_path)
    assert done.returncode == 5
    assert "the context holds" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["perplexity.py TEXT", "saved_prompt.py TEXT Why?", "two_sessions.py"]
)
def test_a_model_that_is_not_there_is_one_line_of_an_example(tmp_path: Path, name: str) -> None:
    (tmp_path / "TEXT").write_text("once upon a time")
    command = [str(ROOT / "examples" / name.split()[0]), *name.split()[1:], "./none"]
    done = run([sys.executable, *command], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "found no file or folder './none'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["perplexity.py TEXT", "saved_prompt.py TEXT Why?"])
@pytest.mark.parametrize("bytes_there", [None, b"\xff\xfe"])
def test_a_text_that_cannot_be_read_is_one_line_of_an_example(
    tmp_path: Path, bundle_of: Callable[..., Path], name: str, bytes_there: bytes | None
) -> None:
    if bytes_there is not None:
        (tmp_path / "TEXT").write_bytes(bytes_there)
    command = [str(ROOT / "examples" / name.split()[0]), *name.split()[1:], str(bundle_of("plm"))]
    done = run([sys.executable, *command], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert ("'TEXT'" if bytes_there is None else "codec can't decode") in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_text_too_short_for_an_example_is_one_line(
    tmp_path: Path, bundle_of: Callable[..., Path]
) -> None:
    (tmp_path / "TEXT").write_text("")
    command = [str(ROOT / "examples/perplexity.py"), "TEXT", str(bundle_of("plm"))]
    done = run([sys.executable, *command], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "expected a text of 2 tokens or more, found 0\n"


def test_every_example_is_run() -> None:
    mark = next(m for m in test_each_example_runs.pytestmark if m.name == "parametrize")
    names = {case[0].split()[0] for case in mark.args[1]}
    assert names == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first
    assert first[1] == plm_edge.__version__
