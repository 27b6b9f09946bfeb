"""Tiny stock files of Q4_K and Q6_K with seeded blocks, mixed as llama.cpp's quantizer does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.exporters.gguf_writer import header_bytes, write_gguf
from plm_edge.exporters.source import from_checkpoint
from plm_edge.formats import dequantize, format_of, quantize
from plm_edge.gguf_spec import spec_to_gguf
from plm_edge.layouts import file_tensors, layout_of
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

SPEC = TINY_SHAPES["plm"]  # every row is whole superblocks
MIXES = {
    # what the quantizer gives for Q4_K_M: ffn_down and the embedding partly better
    "Q4_K_M": {"token_embd": "Q6_K", "blk.1.ffn_down": "Q6_K", "": "Q4_K"},
    "turned": {"token_embd": "Q4_K", "blk.1.ffn_down": "Q4_K", "": "Q6_K"},
    "mixed": {"token_embd": "Q8_0", "attn_q": "Q4_0", "ffn_up": "F16", "": "Q6_K"},
}


def random_blocks(fmt: str, rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Packed rows (rows, row bytes) of numbers with deviation about 1/sqrt(cols), mean about 0."""
    form = format_of(fmt)
    blocks = rng.integers(0, 256, (rows, cols // form.block, form.block_bytes), np.uint8)
    size = rng.uniform(0.7, 1.3, blocks.shape[:2]) / np.sqrt(cols)
    if fmt == "Q4_K":  # 4.6: deviation of 0..15; scales and leasts are alike, so that means are 0
        scales = rng.integers(0, 256, (*blocks.shape[:2], 12), np.uint8)
        scales[..., 4:8] = scales[..., :4]
        scales[..., 8:] = scales[..., 8:] & 15 | scales[..., 8:] << 4
        blocks[..., 4:16] = scales
        put(blocks, 0, size / 36 / 4.6)
        put(blocks, 2, size / 36 / 4.6 * 7.5)
    else:
        put(blocks, 208, size / 74 / 18.5)
    return blocks.reshape(rows, -1)


def put(blocks: NDArray[np.uint8], at: int, halves: NDArray[np.float64]) -> None:
    blocks[..., at : at + 2] = halves.astype("<f2")[..., None].view(np.uint8)


def format_in(mix: dict[str, str], name: str) -> str:
    return next(fmt for part, fmt in mix.items() if part in name)


def write_stock(
    folder: Path, mix: str = "Q4_K_M", spec: ModelSpec = SPEC, layout: str = "plm"
) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    """A file and its weights, dequantized."""
    rng, packed, weights, formats = np.random.default_rng(7), {}, {}, {}
    with open_checkpoint(write_tiny_checkpoint(folder / "hf", spec)) as checkpoint:
        source = from_checkpoint(checkpoint)
        for name, info in tensor_table(spec).items():
            fmt = format_in(MIXES[mix], name) if info.quantize else "F32"
            x = checkpoint.read(name)
            rows, cols = x.shape if x.ndim == 2 else (1, x.size)
            if fmt in ("Q4_K", "Q6_K"):
                packed[name] = random_blocks(fmt, rows, cols, rng)
            else:
                packed[name] = quantize(fmt, x.reshape(rows, cols))
            weights[name] = dequantize(fmt, packed[name], cols).reshape(x.shape)
            formats[name] = fmt
    tensors = file_tensors(layout, spec, formats)
    keys = {
        "general.type": "model",
        "general.name": mix,
        **spec_to_gguf(spec, layout_of(layout).arch),
        **source.vocabulary,
    }
    header = header_bytes(layout, keys, tensors)
    path = folder / f"{mix}.gguf"
    write_gguf(path, header, layout, tensors, lambda name, _, start, stop: packed[name][start:stop])
    return path, weights
