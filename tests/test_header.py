"""plm.h and its twin in ctypes say the same: sizes, offsets, numbers."""

from __future__ import annotations

import ctypes
import subprocess

from primitives import PANEL, IsaTable

from plm_edge.native import kernels
from plm_edge.native.build import HERE, compiler


def assertions():
    """What plm.h must say for the ctypes structures to fit, as C."""
    structs = [kernels.Matrix, kernels.Vectors, kernels.Step, kernels.Kernel, kernels.Op, IsaTable]
    structs += {struct for _, struct in kernels.OPS}
    for struct in structs:
        c_name = "plm_isa" if struct is IsaTable else f"plm_{struct.__name__.lower()}"
        yield f"sizeof({c_name}) == {ctypes.sizeof(struct)}"
        for field, _ in struct._fields_:
            at = getattr(struct, field)
            yield f"offsetof({c_name}, {field}) == {at.offset}"
            yield f"sizeof((({c_name} *)0)->{field}) == {at.size}"
    for code, (op, _) in enumerate(kernels.OPS):
        yield f"PLM_OP_{op.upper()} == {code}"
    yield f"PLM_OPS == {len(kernels.OPS)}"
    for codes in (kernels.FORMAT_CODES, kernels.ARRANGEMENT_CODES):
        yield from (f"PLM_{key.upper()} == {code}" for key, code in codes.items())
    yield f"PLM_FORMATS == {len(kernels.FORMAT_CODES)}"
    for key in ("BLOCK", "TILE", "SLICES", "FEW"):
        yield f"PLM_{key} == {getattr(kernels, key)}"
    for key, code in kernels.CACHE_CODES.items():
        yield f"PLM_CACHE_{key.upper()} == {code}"
    yield f"PLM_LARGEST == {kernels.ACTIVATIONS['int16']}"
    yield f"PLM_BYTE == {kernels.ACTIVATIONS['int8']}"
    yield f"PLM_PANEL == {PANEL}"


def compile_with(lines, folder):
    source = folder / "layout.c"
    claims = "".join(f'_Static_assert({line}, "{line}");\n' for line in lines)
    source.write_text('#include "plm.h"\n' + claims)
    command = [*compiler().split(), "-std=c11", f"-I{HERE}", "-fsyntax-only", str(source)]
    return subprocess.run(command, capture_output=True, text=True)


def test_ctypes_has_the_layout_of_the_header(tmp_path):
    lines = list(assertions())
    assert (done := compile_with(lines, tmp_path)).returncode == 0, done.stderr
    assert compile_with([*lines, "sizeof(plm_fire) == 0"], tmp_path).returncode != 0
