"""Options that several commands have. Names of formats in any case: the library knows one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _upper(name: str | None) -> str | None:
    return None if name is None else name.upper()


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()


def named(path: str) -> Path:
    """A path to write to: an empty one, of a variable that is not set, would be this folder."""
    if not path:
        raise typer.BadParameter("expected a path, found ''")
    return Path(path)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_MODELS = "Hugging Face folder, hub id, bundle, .gguf file"
Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODELS}, or demo.")]
ModelOrOnnx = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{_MODELS}, .onnx file of a bundle, or demo.")
]
ModelOrShape = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{_MODELS}, demo, or the shape plm-1.8b.")
]
Quant = Annotated[
    str, typer.Option(callback=_upper, help="F32, F16, BF16, Q8_0, Q6_K, Q4_K or Q4_0.")
]
MaybeQuant = Annotated[
    str | None,
    typer.Option(callback=_upper, help="F32, F16, BF16, Q8_0, Q6_K, Q4_K or Q4_0; what fits."),
]
Pure = Annotated[
    bool, typer.Option("--pure", help="The head in the format of the rest, not a wider one.")
]
CacheType = Annotated[
    str, typer.Option("-ctk", "--cache-type", callback=_lower, help="f16, q8_0 or f32.")
]
MaybeCacheType = Annotated[
    str | None, typer.Option("-ctk", "--cache-type", callback=_lower, help="f16, q8_0 or f32.")
]
Head = Annotated[str, typer.Option(help="screened: decode faster, if the export has such a head.")]
Activations = Annotated[
    str, typer.Option(help="int16; int8: coarser, faster with AVX2 or AVX-512.")
]
Layout = Annotated[
    str | None,
    typer.Option(help="latent; plm or deepseek2 for llama.cpp. The best for the target."),
]
FileFormat = Annotated[
    str, typer.Option("--format", callback=_lower, help="gguf, onnx, or both in one bundle.")
]
OnnxStandard = Annotated[
    bool,
    typer.Option("--onnx-standard", help="ONNX without onnxruntime's own operators; slower there."),
]
Backend = Annotated[
    str, typer.Option(help="auto, native, llama (llama.cpp), onnx or onnx:PROVIDER.")
]
