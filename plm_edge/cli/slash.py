"""The commands of the terminal chat: a table of name, argument, text and function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from plm_edge.errors import FileFormatError, UsageError
from plm_edge.runtime.conversation import Conversation
from plm_edge.runtime.stream import check_stops

if TYPE_CHECKING:
    from plm_edge.cli.terminal import Terminal

SUFFIX = ".chat.json"
# the name a user types, and that of the conversation's setting
SETTINGS = {
    "temp": "temperature",
    **{name: name for name in ("top_k", "top_p", "min_p", "repeat_penalty", "seed")},
    "n": "max_tokens",
    "stop": "stop",
}
_LONG = {"temperature": "temp", "max_tokens": "n"}  # which /set takes as well
_MAY_BE_NONE = ("seed", "n")


def run(terminal: Terminal, line: str) -> None:
    """Run one line that begins with a slash."""
    name, _, rest = line.partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        raise UsageError(f"no command {name}; /help lists them")
    COMMANDS[name][2](terminal, rest.strip())


def _help(terminal: Terminal, _: str) -> None:
    rows = []
    for name, (argument, what, _function) in COMMANDS.items():
        short = [alias for alias, meant in ALIASES.items() if meant == name]
        rows.append((" ".join([name, *short, argument]).rstrip(), what))
    rows += [
        ("NAME", f"one of {', '.join(SETTINGS)}"),
        ('"""', "begins and ends a text of several lines"),
        ("\\", "at the end of a line: the text goes on in the next"),
        ("Ctrl-C", "stops the answer; twice leaves"),
        ("Ctrl-D", "leaves"),
    ]
    width = max(len(typed) for typed, _what in rows)
    for typed, what in rows:
        terminal.note(f"{typed:{width}}  {what}")


def _exit(_terminal: Terminal, _: str) -> None:
    raise EOFError


def _reset(terminal: Terminal, _: str) -> None:
    terminal.talk.reset()
    terminal.note("the conversation is forgotten; system prompt and settings stay")


def _system(terminal: Terminal, text: str) -> None:
    terminal.talk.set_system(text)
    terminal.note("system prompt set" if text else "no system prompt")


def _set(terminal: Terminal, text: str) -> None:
    typed, _, value = text.partition(" ")
    value = value.strip()
    if not value:
        raise UsageError("/set needs a name and a value; /show lists them")
    name = typed.lstrip("-").replace("-", "_")
    name = _LONG.get(name, name)
    if name not in SETTINGS:
        raise UsageError(f"no setting {typed!r}; there are {', '.join(SETTINGS)}")
    if name == "stop":
        terminal.talk.stop = () if value == "none" else check_stops([value])
    else:
        number = _number(typed, value, name in _MAY_BE_NONE)
        set_as_typed(terminal.talk, SETTINGS[name], number, typed)
    terminal.note(f"{name} = {_shown(terminal.talk, name)}")


def set_as_typed(
    talk: Conversation, name: str, value: float | int | None, typed: str, hint: str = ""
) -> None:
    """Change a setting; an error calls it as the user did, and ends with the hint."""
    try:
        talk.set(name, value)
    except UsageError as why:
        raise UsageError(typed + str(why).removeprefix(name) + hint) from None


def _number(typed: str, value: str, may_be_none: bool) -> float | int | None:
    if value == "none" and may_be_none:
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    kinds = "a whole number or none" if may_be_none else "a number"
    raise UsageError(f"{typed} must be {kinds}, not {value!r}")


def _shown(talk: Conversation, name: str) -> str:
    value = talk.settings()[SETTINGS[name]]
    return "none" if value in (None, []) else str(value)


def _show(terminal: Terminal, _: str) -> None:
    session, talk = terminal.session, terminal.talk
    terminal.note(f"model {terminal.model}")
    terminal.note(
        f"context {session.n_past} of {session.n_ctx} tokens, cache {session.cache_bytes:,} bytes"
    )
    terminal.note(f"system {talk.system() or 'none'}")
    for name in SETTINGS:
        terminal.note(f"{name} {_shown(talk, name)}")


def _regen(terminal: Terminal, _: str) -> None:
    terminal.say(terminal.talk.regenerate(terminal.session, terminal.notice))


def _stats(terminal: Terminal, _: str) -> None:
    answer = terminal.talk.answer
    terminal.note(str(answer.stats) if answer else "no answer yet")


def _save(terminal: Terminal, name: str) -> None:
    path = _path(name)
    if path.exists():
        try:
            Conversation.load(path)
        except FileFormatError:
            raise UsageError(f"{path} is no conversation; choose another name") from None
    terminal.talk.save(path)
    terminal.note(f"saved {len(terminal.talk.messages)} messages in {path}")


def _load(terminal: Terminal, name: str) -> None:
    path = _path(name)
    terminal.talk = replace(Conversation.load(path), lookup=terminal.talk.lookup)
    terminal.note(f"loaded {len(terminal.talk.messages)} messages from {path}")


def _path(name: str) -> Path:
    if not name:
        raise UsageError("the command needs a file name")
    path = Path(name).expanduser()
    return path if path.suffix else path.with_name(path.name + SUFFIX)


COMMANDS: dict[str, tuple[str, str, Callable[[Terminal, str], None]]] = {
    "/help": ("", "this list", _help),
    "/exit": ("", "leave", _exit),
    "/reset": ("", "forget the conversation", _reset),
    "/system": ("TEXT", "set the system prompt; no text removes it", _system),
    "/set": ("NAME VALUE", "change a setting", _set),
    "/show": ("", "model, context, settings", _show),
    "/regen": ("", "answer the last question again", _regen),
    "/stats": ("", "numbers of the last answer", _stats),
    "/save": ("FILE", "write conversation and settings", _save),
    "/load": ("FILE", "continue a saved conversation", _load),
}
ALIASES = {"/?": "/help", "/bye": "/exit", "/quit": "/exit", "/clear": "/reset"}
