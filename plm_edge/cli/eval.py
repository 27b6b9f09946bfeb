"""plm-edge eval: perplexity of a text, and the distance to another model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plm_edge.cli.options import Activations, Backend, Json, MaybeCacheType, ModelOrOnnx

if TYPE_CHECKING:
    from plm_edge.runtime.any_session import AnySession
    from plm_edge.runtime.evaluate import Evaluation
    from plm_edge.runtime.logit_file import LogitFile


def command(
    ctx: typer.Context,
    file: Annotated[Path, typer.Option("-f", "--file", help="The text, UTF-8.")],
    model: ModelOrOnnx = "demo",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL2",
            help="KL and top-1 agreement: a model (a checkpoint in full), or saved logits.",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option("-c", "--ctx", help="Tokens of a window; 512, or as trained.")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", help="How many windows; all of the text.")
    ] = None,
    save_logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save them for a later --against.")
    ] = None,
    cache_type: MaybeCacheType = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads")] = None,
    backend: Backend = "auto",
    isa: Annotated[str | None, typer.Option(help="Kernel set.")] = None,
    activations: Activations = "int16",
    as_json: Json = False,
) -> None:
    """Perplexity of a text as llama.cpp counts it; with --against also KL and top-1 agreement."""
    from contextlib import ExitStack

    from plm_edge.cli.prepare import (
        check_kernels,
        for_backend,
        format_for,
        laid_out,
        prepare,
        spec_of,
    )
    from plm_edge.cli.progress import Progress, Steps
    from plm_edge.cli.texts import read_text
    from plm_edge.runtime import load
    from plm_edge.runtime.evaluate import WINDOW, evaluate
    from plm_edge.runtime.logit_file import LogitFile

    text = read_text(file, "-f")
    kind = format_for(backend)
    check_kernels(isa)
    with Progress(f"export {model} for this machine") as progress:
        found = prepare(model, progress, ctx.obj, file_format=kind)
    saved = LogitFile(Path(against)) if against and LogitFile.is_one(Path(against)) else None
    if window is None:
        trained = spec_of(found).n_ctx_train
        window = saved.window if saved is not None else min(WINDOW, trained)

    def opened(path: Path) -> AnySession:
        with Progress(f"lay {path.name} out for this machine") as progress:
            path = laid_out(for_backend(path, backend, window, progress), backend, progress)
        session = load(path, backend, threads, window, cache_type, isa, activations=activations)
        stack.callback(session.model.close)
        return stack.enter_context(session)

    tty = sys.stderr.isatty()  # elsewhere a line for each window would be noise
    with ExitStack() as stack, Steps() as steps:
        session = opened(found)
        reference: AnySession | LogitFile | None = saved
        if against is not None and saved is None:
            with Progress(f"export {against} in full") as progress:
                full = prepare(against, progress, ctx.obj, in_full=True, file_format=kind)
            reference = opened(full)
        result = evaluate(
            session,
            _ids(session, reference, text, against),
            window,
            reference,
            windows=chunks,
            save=save_logits,
            progress=lambda done, total: steps(f"window {done} of {total}") if tty else None,
        )
    print(json.dumps(result.to_dict(), indent=2) if as_json else _shown(result, against))


def _ids(session: AnySession, reference: object, text: str, against: str | None) -> list[int]:
    """The text's ids, which are the reference's too."""
    from plm_edge.errors import UsageError
    from plm_edge.runtime.any_session import AnySession

    ids = session.tokenizer.encode(text)
    if isinstance(reference, AnySession) and reference.tokenizer.encode(text) != ids:
        raise UsageError(
            f"expected a reference that cuts the text into the same tokens, found {against} to "
            "differ; compare models of the same tokenizer"
        )
    return ids


def _shown(found: Evaluation, against: str | None) -> str:
    lines = [
        f"perplexity  {found.perplexity:.4f} +- {found.perplexity_error:.4f}, "
        f"{found.positions:,} tokens: the second halves of {found.windows} windows of "
        f"{found.window}"
    ]
    if found.compared is not None:
        two = found.compared
        lines += [
            f"reference   {two.reference_perplexity:.4f}, {against}",
            f"KL          {two.kl:.3e} +- {two.kl_error:.1e} nats to it, median "
            f"{two.kl_median:.1e}, 99 % below {two.kl_99:.1e}, at most {two.kl_max:.1e}",
            f"top-1       {two.same_top:.2%} of its likeliest tokens",
        ]
    return "\n".join(lines)
