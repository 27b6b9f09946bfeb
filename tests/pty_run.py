"""A program in a real pseudo terminal: type, wait for output, read the exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

DEADLINE_S = 60


class PtyRun:
    """Standard streams are one terminal; `seen` holds all bytes so far."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = b""
        self._from = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ctrl_c(self) -> None:
        """As a hand does it: a signal within microseconds of the prompt waits for the next key."""
        time.sleep(0.3)
        self.type("\x03")

    def expect(self, text: str) -> str:
        """Wait until `text` comes, after what was expected before; what came up to its end."""
        wanted, end = text.encode(), time.monotonic() + DEADLINE_S
        while (at := self.seen.find(wanted, self._from)) < 0:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"no {text!r} in {self.seen[self._from :]!r}")
        start, self._from = self._from, at + len(wanted)
        return self.seen[start : self._from].decode("utf-8", "replace")

    def ends(self) -> int:
        """Wait for the end; the exit code."""
        end = time.monotonic() + DEADLINE_S
        while self._read(end - time.monotonic()):
            pass
        return self._process.wait(timeout=max(1.0, end - time.monotonic()))

    def __enter__(self) -> PtyRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, timeout_s))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the other end is closed
            return False
        self.seen += data
        return bool(data)
