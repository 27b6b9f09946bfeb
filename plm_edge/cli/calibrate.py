"""Exports that are calibrated: the one place that shows an exporter what a session computes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plm_edge import head_screen
from plm_edge.cli.texts import CALIBRATION, TALES, read_text
from plm_edge.devices import HOST
from plm_edge.errors import UsageError

if TYPE_CHECKING:
    from plm_edge.bundle import Manifest
    from plm_edge.exporters.gguf_writer import Progress


def export(
    model: str | Path,
    target: str = HOST,
    out: str | Path | None = None,
    *,
    quant: str | None = None,
    layout: str | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    pure: bool = False,
    head: str = "full",
    bits: float | None = None,
    calibration: str | Path | None = None,
    allow_keys: Collection[str] = (),
    file_format: str = "gguf",
    onnx_standard: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    step: Callable[[str], None] | None = None,
) -> Manifest:
    """Write a bundle of `model` for `target`; by default into a folder named after both.

    `model` is a Hugging Face folder, a hub id, "demo", or a GGUF file or bundle, whose blocks stay
    as they are unless they are floats and `quant` is given; `allow_keys` are keys of config.json
    that are known to change nothing. Layout and cache type None: as the device wants, on a graphics
    card what llama.cpp runs in less memory. `pure`: the head in the format of the rest.
    head="screened" adds a screened head. `calibration`, a text file or "tales" (some ship with the
    package), fits the quantization and that head to it. `bits` mixes formats by measured
    sensitivity, so many bits a weight at most. Both work with tales where no text is given.
    `file_format`: "gguf", "onnx" or "both"; `onnx_standard`: without onnxruntime's own operators.
    `step` is told what is done.
    `force` replaces an earlier bundle.
    """
    from plm_edge import exporters
    from plm_edge.exporters.quantize.fitted import Fitting
    from plm_edge.exporters.screen import Calibration
    from plm_edge.reference import Reference

    check_head(head)
    if bits is not None and quant is not None:
        raise UsageError(f"expected --bits or --quant, found both ({bits:g} and {quant}); use one")
    if bits is not None and pure:
        raise UsageError("expected --bits or --pure, found both: a mix has the head that it finds")
    screened, fitted = head == "screened", calibration is not None or bits is not None
    file = CALIBRATION if calibration in (None, TALES) else Path(calibration or "")
    text = read_text(file, "--calibration") if screened or fitted else ""

    return exporters.export(
        model,
        target,
        out,
        quant=quant,
        layout=layout,
        n_ctx=n_ctx,
        cache_type=cache_type,
        pure=pure,
        calibration=Calibration(text, hidden_states) if screened else None,
        fitting=Fitting(text, Reference.from_checkpoint, step or _silent) if fitted else None,
        bits=bits,
        allow_keys=allow_keys,
        files=exporters.Files(file_format, onnx_standard),
        force=force,
        progress=progress,
    )


def _silent(said: str) -> None:
    """Nobody is told."""


def check_head(head: str) -> None:
    """Raises UsageError for a head that there is not."""
    if head not in head_screen.HEADS:
        raise UsageError(f"expected a head of {', '.join(head_screen.HEADS)}, found {head!r}")


def hidden_states(file: Path, text: str) -> NDArray[np.float32]:
    """Last hidden states after the output norm (T, d_model), in windows that start afresh."""
    from plm_edge.exporters.screen import WINDOW, windows_of
    from plm_edge.runtime import load

    # force: a window may be longer than a small model's trained context
    with load(file, n_ctx=WINDOW, cache_type="f16", force=True) as session:
        states = []
        try:
            for ids in windows_of(session.tokenizer.encode(text)):
                session.reset()
                states.append(session.hidden_states(ids))
        finally:
            session.model.close()
    return np.concatenate([*states, np.empty((0, session.spec.d_model), np.float32)])
