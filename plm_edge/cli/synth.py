"""plm-edge synth: a model of true shape with seeded weights, for benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plm_edge.cli.options import FileFormat, Pure, Quant, named


def command(
    out: Annotated[
        Path,
        typer.Option("-o", "--out", parser=named, metavar="PATH", help="The folder to write."),
    ],
    shape: Annotated[str, typer.Option(help="Which model's shape.")] = "plm-1.8b",
    zeros: Annotated[float, typer.Option(help="Share of idle feed-forward units.")] = 0.8,
    quant: Quant = "Q4_0",
    pure: Pure = False,
    file_format: FileFormat = "gguf",
    layout: Annotated[str, typer.Option(help="latent, plm or deepseek2.")] = "latent",
    seed: Annotated[int, typer.Option("-s", "--seed")] = 0,
    n_ctx: Annotated[int | None, typer.Option("-c", "--ctx", help="Tokens of context.")] = None,
    head: Annotated[str, typer.Option(help="screened: with a screened head too.")] = "full",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier bundle.")] = False,
) -> None:
    """Write a model of true shape with seeded weights."""
    from plm_edge.cli.calibrate import check_head
    from plm_edge.cli.progress import Progress
    from plm_edge.exporters.synth import synth

    check_head(head)
    with Progress("synth") as progress:
        report = synth(
            shape,
            out,
            zeros=zeros,
            quant=quant,
            layout=layout,
            file_format=file_format,
            pure=pure,
            seed=seed,
            n_ctx=n_ctx,
            screen=head == "screened",
            force=force,
            progress=progress,
        )
    print(report)
