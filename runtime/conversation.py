"""A conversation: what was said, the settings it is continued with, and its file.

The file is JSON with a schema number, written whole or not at all. The cache is not in it: the
messages say everything, and are computed again on the next turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from plm_edge.atomic import write_atomic
from plm_edge.errors import FileFormatError, OutputError, UsageError
from plm_edge.runtime.chat import Answer, Notice, chat
from plm_edge.runtime.prompt import Message
from plm_edge.runtime.sampler import Sampler
from plm_edge.runtime.stream import check_stops
from plm_edge.template import check_messages

if TYPE_CHECKING:
    from plm_edge.runtime.any_session import AnySession

SCHEMA = 1
MAX_FILE_BYTES = 64 * 2**20
SAMPLING = tuple(f.name for f in fields(Sampler) if f.init)  # the settings a user may name


@dataclass
class Conversation:
    """Messages and settings; grows by one question and one answer with each turn."""

    messages: list[Message] = field(default_factory=list)
    sampler: Sampler = field(default_factory=Sampler)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    lookup: bool = False  # guess from earlier text: how fast, not what, so the file leaves it out
    answer: Answer | None = None  # the running or the last one

    def ask(self, session: AnySession, text: str, notice: Notice | None = None) -> Iterator[str]:
        """Pieces of the answer to `text`. A question that got no answer before is dropped."""
        kept = self.messages[:-1] if self.pending() else self.messages
        asked = [*kept, {"role": "user", "content": text}]
        return self._answer(session, asked, notice)

    def regenerate(self, session: AnySession, notice: Notice | None = None) -> Iterator[str]:
        """Another answer to the last question."""
        kept = self.messages if self.pending() else self.messages[:-1]
        if not kept or kept[-1]["role"] != "user":
            raise UsageError("there is no question to answer again")
        return self._answer(session, list(kept), notice)

    def _answer(
        self, session: AnySession, messages: list[Message], notice: Notice | None
    ) -> Iterator[str]:
        self.answer = chat(
            session, messages, self.max_tokens, self.sampler, self.stop, notice, self.lookup
        )
        self.messages = messages
        return self._listen(self.answer)

    def _listen(self, answer: Answer) -> Iterator[str]:
        """Hand on the pieces; what was said becomes a message, also after an interrupt."""
        said: list[str] = []
        try:
            for piece in answer:
                said.append(piece)
                yield piece
        finally:
            answer.close()
            if said or answer.stats.reason in ("stop", "length"):
                self.messages.append({"role": "assistant", "content": "".join(said)})

    def pending(self) -> bool:
        """Whether the last message is a question without an answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "user"

    def system(self) -> str | None:
        """The system prompt, if there is one."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first and first["role"] == "system" else None

    def set_system(self, text: str) -> None:
        """Put `text` in the place of the system prompt; an empty text removes it."""
        rest = self.messages[1:] if self.system() is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *rest] if text else list(rest)

    def reset(self) -> None:
        """Forget everything but the system prompt and the settings."""
        self.messages = self.messages[:1] if self.system() is not None else []

    def set(self, name: str, value: float | int | None) -> None:
        """Change one setting by its name; it is checked before anything changes."""
        if name == "max_tokens":
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"max_tokens must be a whole number from 1, not {value!r}")
            self.max_tokens = value
        elif name in SAMPLING:
            self.sampler = replace(self.sampler, **{name: value})  # type: ignore[arg-type]
        else:
            raise UsageError(
                f"no setting {name!r}; there are {', '.join((*SAMPLING, 'max_tokens'))}"
            )

    def settings(self) -> dict[str, Any]:
        """Every setting by name."""
        sampling = {name: getattr(self.sampler, name) for name in SAMPLING}
        return {**sampling, "max_tokens": self.max_tokens, "stop": list(self.stop)}

    def save(self, path: Path) -> None:
        """Write the file; an older one of that name stays whole until the new one is."""
        content = {"schema": SCHEMA, "settings": self.settings(), "messages": self.messages}
        data = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")

        def write(file: BinaryIO) -> None:
            file.write(data)

        write_atomic(path, write)

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a saved conversation; every field is checked."""
        content = _read(path)
        expected = {"schema", "settings", "messages"}
        if content.get("schema") != SCHEMA or set(content) != expected:
            raise FileFormatError(
                f"{path}: expected a conversation of schema {SCHEMA} with {sorted(expected)}, "
                f"found schema {content.get('schema')!r} with {sorted(content)}"
            )
        settings, messages = content["settings"], content["messages"]
        if not isinstance(settings, dict) or not isinstance(messages, list):
            raise FileFormatError(f"{path}: settings must be an object and messages a list")
        blank = cls()
        known = sorted(blank.settings())
        if sorted(settings) != known:
            raise FileFormatError(
                f"{path}: expected the settings {known}, found {sorted(settings)}"
            )
        try:
            if messages:
                check_messages(messages)
            stop = check_stops(settings.pop("stop"))
            for name, value in settings.items():
                blank.set(name, value)
        except UsageError as error:
            raise FileFormatError(f"{path}: {error}") from None
        return replace(blank, messages=messages, stop=stop)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"found no conversation {str(path)!r}; check its name") from None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise FileFormatError(f"{path}: larger than {MAX_FILE_BYTES} bytes; not a conversation")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: not a saved conversation ({error!s:.80}); /save writes one"
        ) from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
