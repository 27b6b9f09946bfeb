"""Layouts: which arrangement each tensor has in a file, under which name, with how many bytes.

latent   ours: matrices as tile16x4, ffn_down as group32, kv_b and norms as rows. A rearranged
         tensor's name ends in its arrangement ("blk.0.ffn_up.weight.tile16x4"), so that no
         other reader takes it for plain blocks. It declares the ggml type of its numbers and
         the shape of a plain tensor of as many bytes: (rows, cols) padded to the tile for
         tile16x4, (d_ffn, d_model) for group32, but for Q4_K and Q6_K, whose blocks are of units:
         (d_model, d_ffn). Data aligned to 64 bytes.
plm      llama.cpp's: plain rows under plain names, aligned to 32 bytes.
deepseek2  the same, in the tensors with which llama.cpp keeps a latent cache (deepseek2.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plm_edge import deepseek2, head_screen
from plm_edge.arrangements import padded_shape
from plm_edge.deepseek2 import Part
from plm_edge.errors import PlmEdgeError, UnsupportedError
from plm_edge.formats import format_of
from plm_edge.gguf_spec import DEEPSEEK2_ARCH, LATENT_ARCH, PLM_ARCH
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table


@dataclass(frozen=True)
class Layout:
    """One way to lay a model into a GGUF file. Kinds of tensors that are not named are rows."""

    name: str
    arch: str  # general.architecture
    alignment: int  # bytes, of each tensor's data
    arrangements: Mapping[str, str]  # "ffn_up" of "blk.3.ffn_up.weight" -> arrangement
    backend: str = "native"  # that runs it best

    def arrangement(self, name: str) -> str:
        """Of the tensor with that canonical name."""
        return self.arrangements.get(name.split(".")[-2], "rows")

    def file_name(self, name: str) -> str:
        """The tensor's name in the file."""
        arrangement = self.arrangement(name)
        return name if arrangement == "rows" else f"{name}.{arrangement}"


_TILED = (
    *("token_embd", "output", "attn_q", "attn_kv_a_mqa", "attn_output", "ffn_up"),
    *("head_screen_rotation", "head_screen"),
)

LAYOUTS = {
    "latent": Layout(
        "latent",
        LATENT_ARCH,
        64,
        {**dict.fromkeys(_TILED, "tile16x4"), "ffn_down": "group32"},
    ),
    "plm": Layout("plm", PLM_ARCH, 32, {}),
    "deepseek2": Layout("deepseek2", DEEPSEEK2_ARCH, 32, {}, "llama"),
}


@dataclass(frozen=True)
class FileTensor:
    """One tensor as it stands in a file."""

    name: str  # canonical
    file_name: str
    arrangement: str
    format: str
    rows: int  # of the model, padding not counted; 1 for a vector
    cols: int
    nbytes: int
    file_shape: tuple[int, ...]  # what the file declares, numpy order: nbytes follow from it


def layout_of(name: str, error: type[PlmEdgeError] = UnsupportedError) -> Layout:
    """The layout of that name, or `error` with the names there are."""
    if name not in LAYOUTS:
        raise error(f"expected a layout of {', '.join(LAYOUTS)}, found {name!r}")
    return LAYOUTS[name]


def file_tensors(layout: str, spec: ModelSpec, quant: Mapping[str, str]) -> list[FileTensor]:
    """Every tensor of the file, in its order; `quant` maps canonical names to formats.

    Those of a screened head are there if `quant` names them.
    """
    chosen = layout_of(layout)
    screened = head_screen.COARSE in quant
    if chosen.name != "latent":
        _check_llama_cpp_can(chosen.name, spec)
        if screened:
            raise UnsupportedError(
                f"layout {chosen.name}: expected the full head alone (llama.cpp refuses other "
                "tensors), found a screened one too; use --layout latent"
            )
    tensors = []
    extra = head_screen.table(spec) if screened else {}
    for info in (*tensor_table(spec).values(), *extra.values()):
        fmt = quant[info.name]
        parts: Iterable[Part] = (Part(info.name, info.shape, fmt),)
        if chosen.name == "deepseek2":
            parts = deepseek2.parts(info, fmt, spec)
        tensors += [_file_tensor(chosen, part) for part in parts]
    return tensors


def _file_tensor(layout: Layout, part: Part) -> FileTensor:
    name, shape, fmt = part.name, part.shape, part.format
    rows, cols = math.prod(shape[:-1]), shape[-1]
    arrangement = layout.arrangement(name)
    padded = padded_shape(arrangement, fmt, rows, cols)
    nbytes = padded[0] * format_of(fmt).row_bytes(padded[1])
    declared = padded if len(shape) == 2 else shape
    file_name = layout.file_name(name)
    return FileTensor(name, file_name, arrangement, fmt, rows, cols, nbytes, declared)


def data_bytes(layout: str, tensors: list[FileTensor]) -> int:
    """Bytes of the file's data section: every tensor padded to the layout's alignment."""
    step = layout_of(layout).alignment
    return sum(-(-tensor.nbytes // step) * step for tensor in tensors)


def _check_llama_cpp_can(layout: str, spec: ModelSpec) -> None:
    if layout == "plm" and not spec.tied:
        raise UnsupportedError(
            "layout plm: expected the embedding as head (llama.cpp's plm always ties them), "
            "found a head of its own; use --layout latent or deepseek2"
        )
    if spec.latent_eps != spec.eps:
        raise UnsupportedError(
            f"layout {layout}: expected one eps (llama.cpp's {layout} has no second), found "
            f"{spec.eps:g} and {spec.latent_eps:g} for the latent; use --layout latent"
        )
    if spec.nope % 2:
        raise UnsupportedError(
            f"layout {layout}: expected an even nope width (llama.cpp's rope aborts otherwise), "
            f"found {spec.nope}; use --layout latent"
        )
