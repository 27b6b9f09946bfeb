"""plm-edge bench: speed and memory of a model on this machine, alone or beside llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from plm_edge.cli.options import Activations, CacheType, Head, Model
from plm_edge.errors import OutputError, UnsupportedError, UsageError

RIVAL = "llama.cpp"
PROMPT, DEPTHS = 512, (0, 1024, 4096)  # where none are asked for, as far as trained
MAX_TOKENS = 1 << 20  # of a prompt, an answer, a depth


def command(
    ctx: typer.Context,
    model: Model = "demo",
    prompt: Annotated[
        int | None,
        typer.Option("-p", "--n-prompt", help="Tokens of a prompt; 0: none.  [default: 512]"),
    ] = None,
    predict: Annotated[
        int, typer.Option("-n", "--n-gen", help="Tokens decoded one by one; 0: none.")
    ] = 128,
    depths: Annotated[
        str | None,
        typer.Option(
            "-d",
            "--n-depth",
            help="Tokens cached before, separated by commas.  [default: 0,1024,4096, as trained]",
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", help="Numbers; as planned for this machine."),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="Runs of each.")] = 5,
    cache_type: CacheType = "f16",
    isa: Annotated[str | None, typer.Option(help="Kernel set; the best of this CPU.")] = None,
    head: Head = "full",
    activations: Activations = "int16",
    versus: Annotated[
        str | None, typer.Option("--vs", help="llama.cpp: at its fastest, run by run in turn.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="md, json or csv.")] = "md",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw decoding over context into this .svg file.")
    ] = None,
) -> None:
    """Measure reading a prompt (pp) and decoding (tg), with the bytes they move."""
    from plm_edge.cli.prepare import laid_out, prepare, spec_of
    from plm_edge.cli.progress import Progress, Steps
    from plm_edge.runtime.bench import report
    from plm_edge.runtime.bench.case import Result
    from plm_edge.runtime.bench.measure import Task, measure
    from plm_edge.runtime.bench.plot import write_plot
    from plm_edge.runtime.bench.subject import Subject
    from plm_edge.workspace import MAX_THREADS

    n_prompt = PROMPT if prompt is None else prompt
    _check_counts(n_prompt, predict, repetitions)
    _check_names(cache_type, isa, output, versus, head, activations)
    _check_plot(plot, predict)
    wanted_depths = DEPTHS if depths is None else _numbers("-d", depths, 0, MAX_TOKENS)
    wanted_threads = (None,) if threads is None else _numbers("-t", threads, 1, MAX_THREADS)
    with Progress(f"export {model} for this machine") as progress:
        found = prepare(model, progress, ctx.obj)
        path = laid_out(found, "native", progress)
    trained = spec_of(path).n_ctx_train
    if prompt is None:
        n_prompt = min(n_prompt, trained)
    if depths is None:
        wanted_depths = _as_trained(trained)
    longest = max(wanted_depths) + max(n_prompt, predict)
    subject = Subject.of(path, longest)
    task = Task(
        model=path,
        layout=subject.layout,
        ids=subject.ids,
        prompt=n_prompt,
        predict=predict,
        depths=wanted_depths,
        threads=wanted_threads,
        repetitions=repetitions,
        cache_type=cache_type,
        isa=isa,
        head=head,
        activations=activations,
        rivals={} if versus is None else _rivals(found),
    )
    results: list[Result] = []
    try:
        with Steps() as say:
            results.extend(measure(task, say))
    finally:  # what was measured before an error or Ctrl-C is not lost
        if results:
            print(report.report(output, subject.facts(versus is not None), results), flush=True)
    if plot is not None:
        write_plot(plot, subject.name, results)


def _as_trained(n_ctx: int) -> tuple[int, ...]:
    """The depths where none are asked for; what is left out is a line on stderr."""
    depths = tuple(depth for depth in DEPTHS if depth <= n_ctx)
    if depths != DEPTHS:
        said = ",".join(map(str, depths))
        print(f"plm-edge: -d {said}: trained for {n_ctx:,} tokens; -d goes beyond", file=sys.stderr)
    return depths


# What the options alone can tell to be wrong is said before anything is made or measured.


def _check_counts(prompt: int, predict: int, repetitions: int) -> None:
    for name, value, least in (("-p", prompt, 0), ("-n", predict, 0), ("-r", repetitions, 1)):
        if not least <= value <= MAX_TOKENS:
            raise UsageError(f"{name}: expected {least} to {MAX_TOKENS}, found {value}")
    if not prompt and not predict:
        raise UsageError("-p 0 -n 0: expected something to measure, found nothing")


def _check_names(
    cache_type: str,
    isa: str | None,
    output: str,
    versus: str | None,
    head: str,
    activations: str,
) -> None:
    from plm_edge.cache_layout import CACHE_TYPES
    from plm_edge.cli.prepare import check_kernels
    from plm_edge.head_screen import HEADS
    from plm_edge.native.kernels import ACTIVATIONS
    from plm_edge.runtime.bench import report
    from plm_edge.runtime.llama_engine import check_installed

    choices = (
        ("-ctk", cache_type, CACHE_TYPES),
        ("-o", output, report.FORMATS),
        ("--vs", versus or RIVAL, (RIVAL,)),
        ("--head", head, HEADS),
        ("--activations", activations, tuple(ACTIVATIONS)),
    )
    for name, value, known in choices:
        if value not in known:
            raise UsageError(f"{name}: expected {' or '.join(known)}, found {value!r}")
    check_kernels(isa)
    if versus is not None:
        check_installed("--vs llama.cpp")


def _check_plot(plot: Path | None, predict: int) -> None:
    if plot is None:
        return
    if plot.suffix != ".svg":
        raise UsageError(f"--plot: expected a file that ends in .svg, found {plot.name!r}")
    if not predict:
        raise UsageError("--plot: expected tokens to decode (-n), found none")
    if not plot.resolve().parent.is_dir():
        raise OutputError(f"{plot.parent}: expected a folder to write to, found none")


def _numbers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """The numbers of a list with commas."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"{option}: expected numbers separated by commas, found {text!r}")
    numbers = tuple(dict.fromkeys(int(word) for word in words))
    if not all(least <= number <= most for number in numbers):
        raise UsageError(f"{option}: expected {least} to {most}, found {text!r}")
    return numbers


def _rivals(path: Path) -> dict[str, Path]:
    """The same blocks in every layout that llama.cpp is tried with."""
    from plm_edge.cli.prepare import in_layout
    from plm_edge.cli.progress import Progress
    from plm_edge.llama_cpp import LAYOUTS

    files = {}
    for layout in LAYOUTS:
        try:
            with Progress(f"write the same model in layout {layout}") as progress:
                files[layout] = in_layout(path, layout, progress)
        except UnsupportedError as why:  # the layout cannot say this model
            refused = why
    if not files:
        raise refused
    return files
