"""What a session remembers of a token: one row per layer, shapes and bytes computed here only.

    f32, f16   | latent after its RMSNorm: rank | shared rope key after rotation: rope |
    q8_0       | latent: rank int8 | f16 scale of each 32 | rope key: rope f16 |

Nothing is kept per head. PLM-1.8B (rank 512, rope 64) in f16: 576 values, 1,152 bytes a row, and
1,152 x 4,096 tokens x 32 layers = 150,994,944 bytes; in q8_0 512 + 32 + 128 = 672 bytes a row,
88,080,384 in all. Expanded keys and values would be 5,120 values a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plm_edge.errors import UnsupportedError

CacheType = Literal["f16", "q8_0", "f32"]
CACHE_TYPES = ("f16", "q8_0", "f32")
BLOCK = 32  # values of a latent that share a scale in q8_0
_DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype("<f2"),
    "q8_0": np.dtype("u1"),
    "f32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class CacheLayout:
    """The rows of all layers of one session; a layer's rows are contiguous."""

    rank: int  # latent width, values
    rope: int  # shared rotary key width, values
    value: CacheType = "f16"

    def __post_init__(self) -> None:
        if self.value not in CACHE_TYPES:
            names = ", ".join(CACHE_TYPES)
            raise UnsupportedError(f"expected a cache type of {names}; found {self.value!r}")
        if self.value == "q8_0" and self.rank % BLOCK:
            raise UnsupportedError(
                f"cache type q8_0: expected latents of a multiple of {BLOCK} values, found "
                f"{self.rank}; use f16"
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in one layer."""
        if self.value == "q8_0":
            return self.rank + 2 * (self.rank // BLOCK + self.rope)
        return (self.rank + self.rope) * _DTYPES[self.value].itemsize

    def bytes(self, n_ctx: int, layers: int) -> int:
        """Bytes of `n_ctx` tokens in all layers."""
        return n_ctx * layers * self.row_bytes

    def empty(self, n_ctx: int, layers: int) -> NDArray[Any]:
        """Zeros (layers, n_ctx, row); the system takes a page when a row first lies in it."""
        dtype = _DTYPES[self.value]
        return np.zeros((layers, n_ctx, self.row_bytes // dtype.itemsize), dtype)
