"""Our session as the benchmark drives it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plm_edge.runtime.load import load_native


class Native:
    """A session of just the context that a case needs."""

    def __init__(
        self,
        path: str,
        n_ctx: int,
        cache_type: str,
        threads: int | None,
        isa: str | None,
        head: str,
        activations: str,
    ) -> None:
        # force: speed does not depend on what the model was trained for
        asked = threads, n_ctx, cache_type, isa, True, head, activations
        self._session = load_native(Path(path), *asked)
        self.facts = {
            "threads": self._session.threads,
            "isa": self._session.isa,
            "cache_bytes": self._session.cache_bytes,
        }

    def keep(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self._session.truncate(n)

    def extend(self, ids: Sequence[int]) -> None:
        """Append ids; the logits of the last."""
        self._session.prefill(ids)

    def step(self, token: int) -> None:
        """Append one; its logits."""
        self._session.step(token)

    def bytes_read(self) -> int | None:
        """Of the last step."""
        return self._session.bytes_read

    def kernel_s(self) -> float | None:
        """Seconds spent in kernels so far."""
        return self._session.kernel_s

    def set_threads(self, threads: int) -> None:
        """A session has its threads from the start."""
        assert threads == self._session.threads
