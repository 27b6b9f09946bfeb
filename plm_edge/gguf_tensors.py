"""Which tensor of a GGUF file is which weight of the model: checked both ways."""

from __future__ import annotations

from collections.abc import Mapping

from plm_edge import deepseek2, head_screen
from plm_edge.errors import FileFormatError
from plm_edge.formats import FORMATS
from plm_edge.ggml_types import GGML_TYPES
from plm_edge.gguf_file import GgufFile
from plm_edge.layouts import LAYOUTS, FileTensor, Layout, file_tensors
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo, tensor_table

_FORMAT_OF_TYPE = {fmt.ggml_type: fmt.name for fmt in FORMATS.values()}


def tensors_of(file: GgufFile, spec: ModelSpec) -> tuple[Layout, dict[str, FileTensor]]:
    """The file's layout, and the name of each weight there -> how it stands in the file.

    The names are canonical, but for those that layout deepseek2 has in place of two of them.

    Raises FileFormatError for a tensor that is missing, of another shape or format, or too many.
    """
    arch = file.metadata["general.architecture"]
    layout = next(layout for layout in LAYOUTS.values() if layout.arch == arch)
    table = tensor_table(spec)
    if any(layout.file_name(name) in file.tensors for name in head_screen.FORMATS):
        table |= head_screen.table(spec)
    formats = {name: _format(file, layout, info) for name, info in table.items()}
    tensors = {tensor.name: tensor for tensor in file_tensors(layout.name, spec, formats)}
    for tensor in tensors.values():
        found = file.tensors.get(tensor.file_name)
        if found is None:
            raise FileFormatError(
                f"{file.path.name}: expected tensor {tensor.file_name}, found none; export the "
                "model again"
            )
        if tuple(found.shape) != tensor.file_shape or found.nbytes != tensor.nbytes:
            raise FileFormatError(
                f"{file.path.name}: expected {tensor.file_name} of shape {tensor.file_shape}, "
                f"found {tuple(found.shape)}; export the model again"
            )
    extra = sorted(set(file.tensors) - {tensor.file_name for tensor in tensors.values()})
    if extra:
        raise FileFormatError(
            f"{file.path.name}: expected the tensors of layout {layout.name}, found also "
            f"{', '.join(extra[:3])}; export the model again"
        )
    return layout, tensors


def formats_of(tensors: Mapping[str, FileTensor]) -> dict[str, str]:
    """Canonical name -> format of what `tensors_of` found, in whatever layout."""
    return deepseek2.model_formats({name: tensor.format for name, tensor in tensors.items()})


def _format(file: GgufFile, layout: Layout, info: TensorInfo) -> str:
    """Of the weight's numbers; norms are F32, a screened head as head_screen.py says."""
    name = layout.file_name(info.name)
    if layout.name == "deepseek2":
        name = deepseek2.kept_format(name)
    tensor = file.tensors.get(name)
    if tensor is None:
        raise FileFormatError(
            f"{file.path.name}: expected tensor {name}, found none; export the model again"
        )
    fmt = _FORMAT_OF_TYPE.get(tensor.ggml_type)
    can_be = (
        (head_screen.FORMATS[info.name],)
        if info.name in head_screen.FORMATS
        else (tuple(FORMATS) if info.quantize else ("F32",))
    )
    if fmt not in can_be:
        wanted, cure = ", ".join(can_be), "export the model again"
        if fmt is None and layout.name == "plm":
            cure = "quantize it as Q4_K_M, Q6_K, Q8_0 or Q4_0"
        raise FileFormatError(
            f"{file.path.name}: expected {name} as {wanted}, found "
            f"{fmt or GGML_TYPES[tensor.ggml_type][0]}; {cure}"
        )
    return fmt
