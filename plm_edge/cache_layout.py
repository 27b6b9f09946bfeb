"""What a session remembers of a token: one row per layer, shapes and bytes computed here only.

    | latent after its RMSNorm: rank values | shared rope key after rotation: rope values |

Nothing is kept per head. PLM-1.8B (rank 512, rope 64) in f16: 576 values, 1,152 bytes a row, and
1,152 x 4,096 tokens x 32 layers = 150,994,944 bytes. Expanded keys and values would be 5,120
values a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plm_edge.errors import UnsupportedError

CacheType = Literal["f16", "f32"]
VALUE_BYTES = {"f16": 2, "f32": 4}


@dataclass(frozen=True)
class CacheLayout:
    """The rows of all layers of one session; a layer's rows are contiguous, (n_ctx, row_values)."""

    rank: int  # latent width, values
    rope: int  # shared rotary key width, values
    value: CacheType = "f16"

    def __post_init__(self) -> None:
        if self.value not in VALUE_BYTES:
            names = " or ".join(VALUE_BYTES)
            raise UnsupportedError(f"expected a cache type of {names}, found {self.value!r}")

    @property
    def row_values(self) -> int:
        """Values of one token in one layer."""
        return self.rank + self.rope

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in one layer."""
        return self.row_values * VALUE_BYTES[self.value]

    def bytes(self, n_ctx: int, layers: int) -> int:
        """Bytes of `n_ctx` tokens in all layers."""
        return n_ctx * layers * self.row_bytes
