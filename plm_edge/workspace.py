"""What a session needs beside weights and cache: named buffers of exact sizes.

The planner counts these bytes and the session allocates these buffers, so the two agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plm_edge import head_screen
from plm_edge.native import kernels
from plm_edge.spec import ModelSpec

PREFILL_CHUNK = 512  # tokens that pass the layers together
HEAD_ROWS = 8  # tokens whose logits are computed together
MAX_THREADS = 256  # of a session
_BYTES = {"i8": 8, "f4": 4, "i4": 4, "i2": 2, "u2": 2, "i1": 1, "u1": 1}


@dataclass(frozen=True)
class Buffer:
    """One array of the workspace; dtype as numpy writes it (f4, i8, i4, i2, u2, i1, u1)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "f4"

    @property
    def nbytes(self) -> int:
        """Bytes, rounded up to whole cache lines of 64."""
        return -(-math.prod(self.shape) * _BYTES[self.dtype] // 64) * 64


def _activations(name: str, tokens: int, width: int, in_bytes: bool = False) -> list[Buffer]:
    """Floats, and the integers that meet integer weights (plm_vectors in plm.h).

    in_bytes: room for those of 8 bits too, whether `--activations int8` asks or not. Not for the
    units: squares are too unequal for 8 bits.
    """
    rows = [Buffer(name, (tokens, width))]
    if width % kernels.BLOCK == 0:
        rows += [
            Buffer(f"{name}.q", (tokens, width), "i2"),
            Buffer(f"{name}.scale", (tokens, width // kernels.BLOCK)),
            Buffer(f"{name}.sum", (tokens, width // kernels.BLOCK), "i4"),
        ]
        rows += [Buffer(f"{name}.bytes", (tokens, width), "i1")] if in_bytes else []
    return rows


def workspace(
    spec: ModelSpec, n_ctx: int, chunk: int, threads: int, screened: bool = False
) -> list[Buffer]:
    """Every buffer of a session of `n_ctx` tokens that takes `chunk` tokens at a time.

    `screened`: the file carries a screened head.
    """
    few, groups = min(kernels.FEW, chunk), -(-spec.d_ffn // kernels.BLOCK)
    partial = kernels.partial_floats(spec.heads, spec.rank)
    queries = kernels.query_bytes(spec.heads, spec.rank, spec.rope)
    scratch = kernels.attention_scratch(
        spec.heads, spec.nope, spec.rope, spec.v_head, spec.rank, chunk
    )
    return [
        Buffer("ids", (chunk,), "i4"),
        Buffer("turns", (n_ctx, spec.rope)),
        Buffer("x", (chunk, spec.d_model)),
        *_activations("h", chunk, spec.d_model, True),
        Buffer("q", (chunk, spec.heads * (spec.nope + spec.rope))),
        Buffer("kv_a", (chunk, spec.rank + spec.rope)),
        Buffer("queries", (chunk, queries), "u1"),
        Buffer("partial", (max(chunk, few * kernels.SLICES), partial)),
        *_activations("heads", chunk, spec.heads * spec.v_head, True),
        *_activations("units", chunk, spec.d_ffn),  # or what fired of them: d_ffn values a token
        Buffer("fired.scale", (groups, chunk)),
        Buffer("fired.which", (groups, chunk, kernels.BLOCK), "u1"),
        Buffer("fired.count", (groups, chunk), "u1"),
        Buffer("fired.token", (groups, chunk), "u2"),
        Buffer("sums", (chunk, spec.d_model)),
        Buffer("slices", (few, kernels.SLICES, spec.d_model)),
        Buffer("unit_rows", (kernels.SLICES,), "i8"),
        *_activations("last", HEAD_ROWS, spec.d_model, True),
        Buffer("logits", (HEAD_ROWS, spec.vocab)),
        Buffer("scratch", (threads, scratch), "u1"),
        *(_screen(spec) if screened else ()),
    ]


def _screen(spec: ModelSpec) -> list[Buffer]:
    """Of a screened head: the rotated hidden state, and what plm_screen in plm.h asks for."""
    tiles = head_screen.tiles_of(spec)
    return [
        *_activations("screen", 1, head_screen.width(spec)),
        Buffer("peaks", (tiles + 1,), "i4"),
        Buffer("chosen", (tiles,), "i4"),
        Buffer("tails", (tiles, 4)),
    ]


def workspace_bytes(
    spec: ModelSpec, n_ctx: int, chunk: int, threads: int, screened: bool = False
) -> int:
    """Bytes of the whole workspace."""
    return sum(buffer.nbytes for buffer in workspace(spec, n_ctx, chunk, threads, screened))
