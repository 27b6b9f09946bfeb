"""Which files a bundle gets."""

from __future__ import annotations

from dataclasses import dataclass

from plm_edge.cache_layout import CacheType
from plm_edge.errors import UsageError
from plm_edge.exporters import onnx
from plm_edge.exporters.quantize.fitted import MIXED

ONNX_BLOCKS = ("Q4_0", "Q8_0")  # that ONNX files have
FILE_FORMATS = ("gguf", "onnx", "both")


@dataclass(frozen=True)
class Files:
    """A GGUF file, ONNX files or both; without contrib operators if `onnx_standard`."""

    file_format: str = "gguf"
    onnx_standard: bool = False

    def __post_init__(self) -> None:
        if self.file_format not in FILE_FORMATS:
            names = ", ".join(FILE_FORMATS)
            raise UsageError(f"expected a file format of {names}, found {self.file_format!r}")
        if self.onnx_standard and not self.onnx:
            raise UsageError("--onnx-standard is for ONNX files: add --format onnx")

    @property
    def gguf(self) -> bool:
        """Whether there is a GGUF file."""
        return self.file_format != "onnx"

    @property
    def onnx(self) -> bool:
        """Whether there are ONNX files."""
        return self.file_format != "gguf"

    @property
    def mixed(self) -> tuple[str, ...]:
        """The formats that a mix may be made of."""
        return ONNX_BLOCKS if self.onnx else MIXED

    @property
    def cache_type(self) -> CacheType | None:
        """Of the session that the bundle is planned for; None: as the device wants."""
        return None if self.gguf else "f32"

    def check(self, screened: bool, layout: str | None, cache_type: str | None = None) -> None:
        """Raises for what cannot be written, before anything is read."""
        if layout is not None and not self.gguf:
            raise UsageError("a layout is for GGUF files: --format gguf or both")
        if screened and not self.gguf:
            raise UsageError("a screened head is for GGUF files: --format gguf or both")
        if not self.gguf and cache_type not in (None, self.cache_type):
            raise UsageError(
                f"ONNX graphs: expected a cache of {self.cache_type}, found {cache_type}; "
                "leave -ctk out, or add a GGUF file: --format both"
            )
        if self.onnx:
            onnx.check_installed()
