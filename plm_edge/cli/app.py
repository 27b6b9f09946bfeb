"""All commands together, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Any, ClassVar, TextIO

import typer
from typer.core import TyperGroup

import plm_edge
from plm_edge.atomic import CURES
from plm_edge.cli.bench import command as bench
from plm_edge.cli.cache import app as cache
from plm_edge.cli.chat import command as chat
from plm_edge.cli.devices import app as devices
from plm_edge.cli.doctor import command as doctor
from plm_edge.cli.eval import command as evaluate
from plm_edge.cli.export import command as export
from plm_edge.cli.inspect import command as inspect
from plm_edge.cli.plan import command as plan
from plm_edge.cli.synth import command as synth
from plm_edge.cli.verify import command as verify
from plm_edge.errors import DoesNotFit, Interrupted, OutputError, PlmEdgeError

INTERNAL_ERROR = 70
BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended
UsageMistake: Any = typer.BadParameter.__base__  # of all of them, in whichever click typer brings


class Ended(SystemExit):
    """A signal asks the program to end: as an exception, so that what is half written goes."""

    first: ClassVar[Ended | None] = None  # that came to this process

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)  # as a shell reports it
        self.line = f"ended by {signal.Signals(number).name}"
        self.exit_code = 128 + number


class Stdout(io.TextIOWrapper):
    """Standard output, whose errors say so: the system names files alone."""

    def write(self, text: str, /) -> int:
        """As any text file."""
        with _named():
            return super().write(text)

    def flush(self) -> None:
        """As any text file."""
        with _named():
            super().flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = "stdout"
        raise


class Group(TyperGroup):
    """Runs a command; what the user can cause is one line on stderr."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse what stands before a command; -h and --version print here."""
        try:
            return super().make_context(*args, **kwargs)
        except UsageMistake as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # typer prints the help
                raise
            fail(_mistaken(error), error.exit_code)
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None

    def invoke(self, ctx: Any) -> Any:
        """Call the command, and turn its errors into exit codes."""
        try:
            return self._call(ctx)
        except PlmEdgeError as error:
            fail(str(error), error.exit_code)
        except UsageMistake as error:
            fail(_mistaken(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", Interrupted.exit_code)
        except Ended as end:
            fail(end.line, end.exit_code)
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None
        except MemoryError:
            fail("the memory of this machine is used up", DoesNotFit.exit_code)
        except OSError as error:
            fail(_said(error), OutputError.exit_code)

    def _call(self, ctx: Any) -> Any:
        """A signal comes between any two steps: code there may make another error of it."""
        try:
            return super().invoke(ctx)
        except BaseException as error:
            behind = _signal_behind(error)
            if behind is None:
                raise
            raise behind from None


def _signal_behind(error: BaseException | None) -> BaseException | None:
    """What a signal raised before `error`, if one did."""
    if Ended.first is not None:
        return Ended.first
    while not (error is None or isinstance(error, KeyboardInterrupt)):
        error = error.__context__
    return error


def _mistaken(error: Any) -> str:
    """What a command was given that it does not take, and where it says what it takes."""
    # A missing value knows no command.
    asked = f"{error.ctx.command_path if error.ctx else 'plm-edge'} -h"
    message = error.format_message().removesuffix(".")
    return f"{message}{'' if message.endswith('?') else ';'} `{asked}` shows what it takes"


def _said(error: OSError) -> str:
    """Where it was, if that is known, and what; on a full disk what to do."""
    place = f"{error.filename}: " if error.filename else ""
    cure = f"; {CURES[errno.ENOSPC]}" if error.errno == errno.ENOSPC else ""
    return f"{place}{error.strerror or error}{cure}"


def fail(message: str, code: int) -> None:
    """One line on stderr, then the exit code."""
    _say(" ".join(message.split("\n")))
    raise typer.Exit(code)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed, a full disk
        print("plm-edge:", message, file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print("plm-edge", plm_edge.__version__)
        raise typer.Exit


app = typer.Typer(
    name="plm-edge",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def common(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Take hub models from the local cache only.")
    ] = False,
) -> None:
    """Small MLA language models on small machines, with a latent cache.

    MODEL is a Hugging Face folder or hub id, a bundle, a .gguf file, or `demo`; for chat, eval and
    inspect also an .onnx file of a bundle.
    """
    ctx.obj = offline


app.command("export")(export)
app.command("chat")(chat)
app.command("plan")(plan)
app.add_typer(devices, name="devices")
app.command("doctor")(doctor)
app.add_typer(cache, name="cache")
app.command("bench")(bench)
app.command("eval")(evaluate)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("synth")(synth)


def run() -> None:
    """Run the command of sys.argv and end the process."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (
            getattr(sys, name) is None
        ):  # the caller closed it; a file opened later would take its place
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    sys.stdout = _with_a_name(sys.stdout)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows `?`
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _end)
    code = _exit_code()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = code or _code_of(error)  # what came first was said
            # the interpreter flushes once more at its end
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _with_a_name(stdout: TextIO) -> TextIO:
    if not isinstance(stdout, io.TextIOWrapper):
        return stdout
    how = stdout.encoding, stdout.errors, None, stdout.line_buffering, stdout.write_through
    return Stdout(stdout.detach(), *how)


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the clean-up
    Ended.first = Ended.first or Ended(number)
    raise Ended.first


def _exit_code() -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except OSError as error:  # the commands' own are lines by now
        return _code_of(error)
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        _say("internal error; please report the lines above")
        return INTERNAL_ERROR
    return 0


def _code_of(error: OSError) -> int:
    """Say it, unless a pipe was closed."""
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    _say(_said(error))
    return OutputError.exit_code
