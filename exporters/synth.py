"""synth: a model of true shape with seeded weights, to measure speed and memory with."""

from __future__ import annotations

from dataclasses import dataclass

from plm_edge.spec import ModelSpec


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
