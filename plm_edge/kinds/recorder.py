"""What a kind of layer may say when its kernels are recorded; the native session listens.

Buffers are named as in plm_edge/workspace.py. T is the number of tokens of the call.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Weight(Protocol):
    """A weight as it lies in the file."""

    @property
    def arrangement(self) -> str:
        """Of its numbers: rows, tile16x4 or group32."""


CacheRows = NDArray[Any]  # one layer's cache (n_ctx, row), as plm_edge/cache_layout.py stores it


class Recorder(Protocol):
    """Appends kernels to the list of one kind of call."""

    few: bool  # the list is for a decode step, or for the few tokens that are as cheap
    expanded: bool  # keys and values are built for every head (long prefill)

    def norm(self, x: str, weight: Weight, y: str) -> None:
        """Y (T, width) = RMSNorm of x (T, width)."""

    def pack(self, x: str, *, square: bool = False) -> None:
        """The integers beside x (T, width); with `square`, x = max(0, x)^2 first."""

    def product(self, weight: Weight, x: str, y: str, *, add: bool = False) -> None:
        """Y (T, rows) = weight (rows, cols) . x (T, cols), or y += with `add`."""

    def rotate(self, q: str) -> None:
        """Turn the rotary part of every head of q (T, heads, nope + rope) to its position."""

    def remember(self, kv_a: str, norm: Weight, cache: CacheRows) -> None:
        """Append T rows to the cache: the normed latents and turned rope keys of kv_a."""

    def absorb(self, kv_b: Weight, cache: CacheRows, scale: float) -> None:
        """Fill "heads" (T, heads * v_head): attention over cached rows, which stay as they are."""

    def expand(self, kv_b: Weight, cache: CacheRows, scale: float) -> None:
        """The same through a key and a value for every head and row."""

    def fire(self, up: Weight, down: Weight, x: str, y: str) -> None:
        """Y (T, d_model) += down . max(0, up . x)^2, reading only the units that fired."""

    def up(self, up: Weight, down: Weight, x: str) -> None:
        """Which units of max(0, up . x)^2 fire, and how much."""

    def down(self, down: Weight, y: str) -> None:
        """Y (T, d_model) += down . the units that fired."""
