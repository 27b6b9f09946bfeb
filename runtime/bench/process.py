"""An engine in a process of its own, as the one who measures sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from typing import Any

from plm_edge import errors

_LAST_WORDS = 300  # characters


class EngineDied(Exception):
    """The process ended instead of answering."""


# Python puts the user's folder before its own modules; a json.py there is not ours to run.
_WORKER = "import sys; sys.path.pop(0); from plm_edge.runtime.bench.worker import main; main()"


class Process:
    """Starts plm_edge.runtime.bench.worker; `ask` waits for its answer. `name` is for errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of Worker. Its error comes up here; EngineDied where none can."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineDied(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # a request that was not read
                continue

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> str:
        """How it ended, and what it said last."""
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").split()
        return f"{self._name} ended with {how}; {' '.join(words)[-_LAST_WORDS:] or 'no word'}"
