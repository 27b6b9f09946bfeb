"""The chat in a terminal: reads, answers, obeys Ctrl-C.

Ctrl-C stops an answer and keeps the conversation; twice in a row it leaves. Ctrl-D leaves.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from plm_edge.cli import slash
from plm_edge.cli.lines import History, read_line, read_text
from plm_edge.errors import Interrupted, PlmEdgeError
from plm_edge.runtime import AnySession
from plm_edge.runtime.conversation import Conversation

# Control characters other than tab and line feed, which a model has no business sending here.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class Terminal:
    """One conversation with one user."""

    def __init__(self, session: AnySession, talk: Conversation, model: str) -> None:
        self.session, self.talk, self.model = session, talk, model
        self._interrupts = 0  # in a row
        self._notices: set[str] = set()

    def run(self) -> int:
        """Until the user leaves; the exit code."""
        self.note(f"{self.model}: context {self.session.n_ctx} tokens. /help lists the commands")
        with History():
            while True:
                try:
                    self._turn()
                except EOFError:
                    print()
                    return 0
                except KeyboardInterrupt:
                    print()
                    self._interrupts += 1
                    if self._interrupts > 1:
                        return Interrupted.exit_code
                    self.note("Ctrl-C once more or /exit leaves")
                except PlmEdgeError as error:
                    self.note(str(error))

    def say(self, pieces: Iterator[str]) -> None:
        """Show an answer while it is written."""
        with self._ctrl_c():
            for piece in pieces:
                print(piece.translate(_CONTROLS), end="", flush=True)
        print(flush=True)
        if self.talk.answer is None:
            return
        stats = self.talk.answer.stats
        if stats.reason == "interrupted":
            self._interrupts = 1
        self.note(str(stats))

    def note(self, line: str) -> None:
        """A line that is not the model's."""
        print(line, file=sys.stderr, flush=True)

    def notice(self, line: str) -> None:
        """A note that need not be repeated with every turn."""
        if line not in self._notices:
            self._notices.add(line)
            self.note(line)

    def _turn(self) -> None:
        text, plain = read_text(self._line)
        if plain and text.lstrip().startswith("/"):
            slash.run(self, text.strip())
        elif text.strip():
            self.say(self.talk.ask(self.session, text, self.notice))

    def _line(self, prompt: str) -> str:
        line = read_line(prompt)
        self._interrupts = 0  # also within a text of several lines
        return line

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends the answer where it is, the second the program."""
        pressed = 0

        def stop(_number: int, _frame: FrameType | None) -> None:
            nonlocal pressed
            pressed += 1
            if pressed > 1 or self.talk.answer is None:
                self._interrupts = 1
                raise KeyboardInterrupt
            self.talk.answer.cancel()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
