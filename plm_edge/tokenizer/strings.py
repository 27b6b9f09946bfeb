"""A list of strings in one piece of memory, decoded where it is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StringArray(Sequence[str]):
    """String i is `blob[offsets[i]:offsets[i + 1]]`, UTF-8.

    A large vocabulary is loaded without an object for each of its tokens.
    """

    blob: bytes | memoryview
    offsets: NDArray[np.int64]  # (n + 1,), ascending, the first is 0

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringArray:
        """Raises UnicodeEncodeError for a string that is no UTF-8 text (a lone surrogate)."""
        if isinstance(strings, cls):
            return strings
        encoded = [s.encode("utf-8") for s in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
        return cls(b"".join(encoded), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StringArray: ...
    def __getitem__(self, index: int | slice) -> str | StringArray:
        if isinstance(index, slice):
            return StringArray.of([self[i] for i in range(*index.indices(len(self)))])
        i = range(len(self))[index]  # negative ones too; IndexError past the end
        start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
        return bytes(self.blob[start:stop]).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        blob, bounds = bytes(self.blob), self.offsets.tolist()
        for start, stop in pairwise(bounds):
            yield blob[start:stop].decode("utf-8", "replace")

    def head(self, n: int) -> StringArray:
        """The first n strings, of the same memory."""
        return StringArray(self.blob, self.offsets[: n + 1])
