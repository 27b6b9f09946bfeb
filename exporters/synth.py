"""synth: a model of true shape with seeded weights, to measure speed and memory with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_edge import devices
from plm_edge.bundle import MODEL_FILE, BundleFile
from plm_edge.errors import UsageError
from plm_edge.exporters import Files, write_bundle
from plm_edge.exporters.gguf_writer import Progress
from plm_edge.exporters.screen import random_screen, screened
from plm_edge.exporters.source import Source, quantizing
from plm_edge.exporters.synth_check import Activity, measure_activity
from plm_edge.exporters.synth_vocabulary import made_up_vocabulary
from plm_edge.exporters.synth_weights import SynthWeights
from plm_edge.gguf_weights import GgufWeights
from plm_edge.plan import make_plan
from plm_edge.spec import ModelSpec
from plm_edge.tensors import head_name
from plm_edge.tokenizer import Tokenizer

SAMPLE_TOKENS = 32  # of the text that the written file is measured with


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the merges of its vocabulary."""

    spec: ModelSpec
    merges: int


SHAPES = {
    "plm-1.8b": Shape(
        ModelSpec(
            layers=32,
            d_model=2048,
            heads=16,
            d_ffn=8192,
            nope=128,
            rope=64,
            v_head=128,
            rank=512,
            vocab=151936,
            n_ctx_train=4096,
            rope_theta=1e5,
            eps=1e-6,
            latent_eps=1e-6,
            tied=True,
        ),
        merges=151_387,
    ),
    # For tests: the same proportions, everything in whole blocks of 32.
    "plm-tiny": Shape(
        ModelSpec(
            layers=3,
            d_model=128,
            heads=4,
            d_ffn=512,
            nope=32,
            rope=32,
            v_head=32,
            rank=64,
            vocab=512,
            n_ctx_train=256,
            rope_theta=1e5,
            eps=1e-6,
            latent_eps=1e-6,
            tied=True,
        ),
        merges=200,
    ),
}


@dataclass(frozen=True)
class SynthReport:
    """What was written, and how its feed-forward units behave on a sample of tokens."""

    out: Path
    quant: str
    layout: str
    file: BundleFile
    layers: tuple[Activity, ...]

    @property
    def zeros(self) -> float:
        """Share of idle units, mean over the layers."""
        return float(np.mean([layer.zeros for layer in self.layers]))

    @property
    def jaccard(self) -> float:
        """What the active sets of two tokens share, mean over the layers."""
        return float(np.mean([layer.jaccard for layer in self.layers]))

    @property
    def chance(self) -> float:
        """The same for sets drawn at random."""
        return float(np.mean([layer.chance for layer in self.layers]))

    def __str__(self) -> str:
        shares = [layer.zeros for layer in self.layers]
        return (
            f"{self.file.size:,} bytes  {self.file.name} ({self.quant}, layout {self.layout})\n"
            f"zeros    {self.zeros:.3f} of the feed-forward units "
            f"(layers {min(shares):.3f} to {max(shares):.3f}), {SAMPLE_TOKENS} tokens\n"
            f"jaccard  {self.jaccard:.3f} of two active sets ({self.chance:.3f} by chance)\n"
            f"wrote {self.out}; the words it says are random"
        )


def synth(
    shape: str,
    out: Path,
    *,
    zeros: float = 0.8,
    quant: str = "Q4_0",
    layout: str = "latent",
    seed: int = 0,
    n_ctx: int | None = None,
    pure: bool = False,
    screen: bool = False,
    file_format: str = "gguf",
    force: bool = False,
    progress: Progress | None = None,
) -> SynthReport:
    """Write a bundle of that shape; the same arguments give the same model file.

    `pure`: the head in the format of the rest. `screen`: with a screened head of random axes, whose
    speed is that of a true one.

    Nothing is kept of the weights but a block of rows; the written file is then measured, or, where
    there is no GGUF file, the weights before they were rounded.
    """
    files = Files(file_format)
    files.check(screen, layout if layout != "latent" else None)
    if shape not in SHAPES:
        raise UsageError(f"unknown shape {shape!r}, expected one of {', '.join(SHAPES)}")
    weights = SynthWeights(SHAPES[shape].spec, zeros, seed)
    spec = weights.spec
    plan = make_plan(
        spec, devices.detect(), quant, layout, n_ctx, files.cache_type, pure=pure, screened=screen
    )
    tokenizer = Tokenizer(made_up_vocabulary(SHAPES[shape].merges))
    source = Source(
        spec=spec,
        description={"name": f"synth-{shape}", "zeros": zeros, "seed": seed},
        vocabulary=tokenizer.to_gguf(spec.vocab),
        packed_rows=quantizing(weights),
        assert_unchanged=lambda: None,
    )
    if screen:
        source = screened(source, plan.formats[head_name(spec)], random_screen(spec, seed))
    manifest = write_bundle(source, plan, out, files, force=force, progress=progress)
    ids = np.random.Generator(np.random.SFC64(seed)).integers(0, tokenizer.n_tokens, SAMPLE_TOKENS)
    layers = measure_activity(GgufWeights(out / MODEL_FILE) if files.gguf else weights, ids)
    return SynthReport(out, plan.quant, manifest.plan["layout"], manifest.files[0], tuple(layers))
