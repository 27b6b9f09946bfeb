"""Number formats of stored weights: ggml's blocks, the same bits as the public gguf package.

    name   values  bytes  a block
    F32    1       4
    F16    1       2      rounded to nearest, ties to even
    BF16   1       2      rounded to nearest, ties to even
    Q8_0   32      34     f16 d = max|x| / 127 | 32 int8 q                       x = d * q
    Q4_0   32      18     f16 d = (x of largest |x|) / -8 | 16 bytes q           x = d * (q - 8)
                          byte j: low nibble value j, high nibble value j + 16
    Q4_K   256     144    f16 d, f16 dmin, 8 parts of 32 values with 6-bit scale and least
                          x = d * scale * q - dmin * least, q 4 bits
    Q6_K   256     210    f16 d, 16 parts of 16 values with an int8 scale
                          x = d * scale * (q - 32), q 6 bits

Little-endian; native/quantize_k.h has the bits of Q4_K and Q6_K, which are read here; their scales
are searched where they are made (exporters/quantize/).
What a format cannot hold (NaN, an infinity, an f16 or a scale beyond 65,504) is
refused with the number of its row and never stored as an infinity. The one place where the gguf
package has no defined answer, a block whose largest |x| is below 3.8e-37, gives scale 0, quants 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import NumericalError, PlmEdgeError, UnsupportedError, UsageError
from plm_edge.native import quantize as native


@dataclass(frozen=True)
class Format:
    """How a row of numbers is packed; `block` values take `block_bytes` bytes."""

    name: str
    ggml_type: int
    block: int
    block_bytes: int
    halves: tuple[int, ...] = ()  # bytes of a block where an f16 begins

    def fits(self, cols: int) -> bool:
        """Whether a row of that many values is whole blocks."""
        return cols % self.block == 0

    def row_bytes(self, cols: int) -> int:
        """Bytes of one row of `cols` values."""
        if not self.fits(cols):
            raise UsageError(
                f"expected rows of a multiple of {self.block} values for {self.name}, "
                f"found {cols}; store this tensor as F16"
            )
        return cols // self.block * self.block_bytes


FORMATS = {
    row.name: row
    for row in (
        Format("F32", 0, 1, 4),
        Format("F16", 1, 1, 2, (0,)),
        Format("BF16", 30, 1, 2),
        Format("Q8_0", 8, 32, 34, (0,)),
        Format("Q4_0", 2, 32, 18, (0,)),
        Format("Q4_K", 12, 256, 144, (0, 2)),
        Format("Q6_K", 14, 256, 210, (208,)),
    )
}


def format_of(name: str, error: type[PlmEdgeError] = UnsupportedError) -> Format:
    """The format of that name, or `error` with the names there are."""
    if name not in FORMATS:
        raise error(f"expected a format of {', '.join(FORMATS)}, found {name!r}")
    return FORMATS[name]


def quantize(fmt: str, x: NDArray[np.float32], first_row: int = 0) -> NDArray[np.uint8]:
    """Pack x (rows, cols) into (rows, row bytes). Raises NumericalError naming the row.

    `first_row` is where a block of rows starts in its matrix; it only counts in that message.
    """
    form = format_of(fmt)
    x = np.ascontiguousarray(x, dtype=np.float32)
    rows, cols = x.shape
    packed = np.empty((rows, form.row_bytes(cols)), np.uint8)
    good = native.quantize(form.ggml_type, x, packed)
    if good == native.UNKNOWN:
        raise UnsupportedError(f"{fmt} is read from files and not made; choose another --quant")
    if good != rows:
        found = "NaN or infinity"
        if np.isfinite(x[good]).all():
            found = f"a value of size {np.abs(x[good]).max():.6g}"
        raise NumericalError(
            f"row {first_row + good}: expected numbers that {fmt} can hold, found {found}"
        )
    return packed


def dequantize(fmt: str, data: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """Unpack data (rows, row bytes) into (rows, cols). Raises NumericalError naming the row."""
    form = format_of(fmt)
    rows, row_bytes = data.shape
    if row_bytes != form.row_bytes(cols):
        raise UsageError(
            f"expected {form.row_bytes(cols)} bytes for {cols} values of {fmt}, found {row_bytes}"
        )
    data = np.ascontiguousarray(data, dtype=np.uint8)
    x = np.empty((rows, cols), np.float32)
    good = native.dequantize(form.ggml_type, data, x)
    if good != rows:
        raise NumericalError(f"row {good}: expected numbers of {fmt}, found NaN or infinity")
    return x


def check_finite(fmt: str, data: NDArray[np.uint8], first_row: int = 0) -> None:
    """Raises NumericalError naming the first of data's packed rows with a NaN or an infinity."""
    form = format_of(fmt)
    if form.halves:
        words = data.view("<u2").reshape(len(data), -1, form.block_bytes // 2)
        endless = [words[..., at // 2] & 0x7C00 == 0x7C00 for at in form.halves]
        bad = np.logical_or.reduce(endless).any(axis=1)
    elif fmt == "BF16":
        bad = (data.view("<u2") & 0x7F80 == 0x7F80).any(axis=1)
    else:
        bad = ~np.isfinite(data.view("<f4")).all(axis=1)
    if bad.any():
        row = first_row + int(bad.argmax())
        raise NumericalError(f"row {row}: expected numbers of {fmt}, found NaN or infinity")
