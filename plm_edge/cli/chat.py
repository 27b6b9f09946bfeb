"""plm-edge chat: a conversation in the terminal, or one answer in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plm_edge.cli.options import Activations, Backend, Head, MaybeCacheType, ModelOrOnnx
from plm_edge.errors import UsageError

if TYPE_CHECKING:
    from plm_edge.runtime import AnySession
    from plm_edge.runtime.conversation import Conversation

DEMO = "demo"
DEMO_PROMPT = "Tell me a tale about a fox"  # where nobody is there to ask

_FLAGS = {  # setting of a conversation -> as it is typed
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "seed": "-s",
    "max_tokens": "-n",
}
_UNSET = {"seed": "; -1: a new one", "max_tokens": "; -1: no limit"}  # what -1 means


def command(
    ctx: typer.Context,
    model: ModelOrOnnx = DEMO,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", help="Answer this and end; - or a pipe: all of stdin."),
    ] = None,
    system: Annotated[str | None, typer.Option("-sys", "--system", help="System prompt.")] = None,
    predict: Annotated[
        int | None, typer.Option("-n", "--predict", help="Most tokens of an answer; -1: no limit.")
    ] = None,
    n_ctx: Annotated[int | None, typer.Option("-c", "--ctx", help="Tokens of context.")] = None,
    cache_type: MaybeCacheType = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads")] = None,
    backend: Backend = "auto",
    gpu_layers: Annotated[
        int | None,
        typer.Option(
            "-ngl",
            "--gpu-layers",
            help="On the GPU, with llama; all; of a card that was planned for, as many as fit.",
        ),
    ] = None,
    isa: Annotated[str | None, typer.Option(help="Kernel set; the best of this CPU.")] = None,
    head: Head = "full",
    activations: Activations = "int16",
    temperature: Annotated[
        float | None, typer.Option("--temp", help="0: the likeliest token.  [default: 0.7]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="0: off.  [default: 40]")] = None,
    top_p: Annotated[float | None, typer.Option(help="1: off.  [default: 0.95]")] = None,
    min_p: Annotated[float | None, typer.Option(help="0: off.  [default: 0.05]")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help="1: off.  [default: 1.1]")] = None,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", help="Same seed, same text; -1: a new one.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End an answer before this text; repeatable.")
    ] = None,
    lookup: Annotated[
        bool,
        typer.Option(help="Guess tokens from earlier text: the same answer, sooner if it repeats."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Allow -c above the trained context.")
    ] = False,
    saved: Annotated[
        Path | None, typer.Option("--load", help="Continue a conversation that /save wrote.")
    ] = None,
) -> None:
    """Chat with a model; /help lists the commands of the terminal."""
    from plm_edge.checkpoint.hub import check_name

    settings = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "max_tokens": predict,
    }
    talk = conversation(saved, settings, tuple(stop or ()), system)
    talk.lookup = lookup
    check_name(model)
    question = _question(prompt, model)
    asked = threads, n_ctx, cache_type, isa, force
    session = open_session(model, backend, *asked, ctx.obj, head, activations, gpu_layers)
    with session:
        if question is not None:
            _answer(talk, session, question)
        else:
            from plm_edge.cli.terminal import Terminal

            raise typer.Exit(Terminal(session, talk, model).run())


def _question(prompt: str | None, model: str) -> str | None:
    """The one text to answer; None where somebody sits at a terminal."""
    if prompt is None and sys.stdin.isatty():
        return None
    text = sys.stdin.read().rstrip("\n") if prompt in (None, "-") else prompt
    if text and text.strip():
        return text
    if prompt is not None or model != DEMO:
        raise UsageError("the prompt is empty; give a text to answer, with -p or on stdin")
    print(f"> {DEMO_PROMPT}", file=sys.stderr)
    return DEMO_PROMPT


def conversation(
    saved: Path | None, settings: dict[str, Any], stop: tuple[str, ...], system: str | None
) -> Conversation:
    """A new or a saved conversation with the settings that were given on the command line."""
    from plm_edge.cli.slash import set_as_typed
    from plm_edge.runtime.conversation import Conversation
    from plm_edge.runtime.stream import check_stops

    talk = Conversation.load(saved) if saved is not None else Conversation()
    for name, value in settings.items():
        if value is not None:
            unset = value == -1 and name in _UNSET
            set_as_typed(talk, name, None if unset else value, _FLAGS[name], _UNSET.get(name, ""))
    if stop:
        talk.stop = check_stops(stop)
    if system is not None:
        talk.set_system(system)
    return talk


def open_session(
    model: str,
    backend: str,
    threads: int | None,
    n_ctx: int | None,
    cache_type: str | None,
    isa: str | None,
    force: bool,
    offline: bool,
    head: str = "full",
    activations: str = "int16",
    gpu_layers: int | None = None,
) -> AnySession:
    """Prepare and load; with force the context may be longer than the model was trained for."""
    from plm_edge import runtime
    from plm_edge.cli.prepare import (
        check_kernels,
        for_backend,
        format_for,
        laid_out,
        prepare,
        spec_of,
    )
    from plm_edge.cli.progress import Progress

    check_kernels(isa)
    if backend == "llama":
        runtime.check_installed("--backend llama")
    with Progress(f"export {model} for this machine") as progress:
        path = prepare(model, progress, offline, file_format=format_for(backend))
        path = laid_out(for_backend(path, backend, n_ctx, progress), backend, progress)
    trained = spec_of(path).n_ctx_train
    if n_ctx is not None and n_ctx > trained and not force:
        raise UsageError(
            f"-c {n_ctx} is more than the {trained} tokens the model was trained for; "
            "use fewer, or --force"
        )
    asked = threads, n_ctx, cache_type, isa, force, head, activations, gpu_layers
    return runtime.load(path, backend, *asked)


def _answer(talk: Conversation, session: AnySession, question: str) -> None:
    """One answer on stdout, its numbers on stderr."""
    _write(talk.ask(session, question))
    if talk.answer is not None:
        print(talk.answer.stats, file=sys.stderr)


def _write(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
