"""What every session is, whatever computes in it: ids in, logits out, one thread at a time."""

from __future__ import annotations

import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plm_edge.cache_layout import CacheType
from plm_edge.errors import ContextOverflow, SessionBusy, UnsupportedError, UsageError
from plm_edge.runtime import session_file
from plm_edge.spec import ModelSpec
from plm_edge.tokenizer import Tokenizer

Logits = NDArray[np.float32]
S = TypeVar("S", bound="AnySession")
ALL_LOGITS_BYTES = 2**30  # prefill(all_logits=True) refuses more than 1 GiB of logits


class AnySession(ABC):
    """One sequence. Prefill and step append at `n_past`.

    A call that fails or is interrupted leaves it as it was. One thread at a time: a second one gets
    SessionBusy. What a backend fills in is abstract here.
    """

    model: Any  # what the weights came from; `model.sha256` names them
    head = "full"

    def __init__(
        self, spec: ModelSpec, tokenizer: Tokenizer, n_ctx: int, cache_type: CacheType
    ) -> None:
        if n_ctx < 1:
            raise UsageError(f"expected a context of at least 1 token, found {n_ctx}")
        self.spec, self.tokenizer = spec, tokenizer
        self.n_ctx, self.cache_type = n_ctx, cache_type
        self._ids: list[int] = []
        self._busy = threading.Lock()
        self._closed = False

    # ---- what a backend fills in

    @abstractmethod
    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> Logits:
        """Append ids; the logits of the last (vocab,), or of all (len(ids), vocab).

        Raises UsageError for no ids, an id outside the vocabulary or more logits than 1 GiB,
        ContextOverflow where they do not fit, both before anything is appended; Interrupted when
        `cancel` was called.
        """

    @abstractmethod
    def step(self, token: int) -> Logits:
        """Append one id; the logits (vocab,) of what follows. Errors as in prefill."""

    @abstractmethod
    def cancel(self) -> None:
        """Stop the call that is running, from any thread; it raises Interrupted."""

    @abstractmethod
    def cached_rows_of(self, n: int) -> NDArray[Any]:
        """The rows of the first n positions, in use or not: (layers, n, row), a view."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Bytes of the cache, all layers, the whole context."""

    @abstractmethod
    def _not_cancelled(self) -> None:
        """A new call begins: forget an earlier `cancel`."""

    @abstractmethod
    def _release(self) -> None:
        """End what runs and drop the cache."""

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append ids; what the head multiplies at each of them (len(ids), d_model)."""
        raise UnsupportedError("hidden states: expected the native backend, found another; use it")

    # ---- what they share

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens."""
        with self._running():
            if not 0 <= n <= self.n_past:
                raise UsageError(f"expected 0 to {self.n_past} tokens to keep, found {n}")
            del self._ids[n:]

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def save(self, path: Path | str) -> None:
        """Write the ids and cached rows to a file that belongs to these weights."""
        with self._running():
            session_file.write(Path(path), self)

    def restore(self, path: Path | str) -> None:
        """Take over what `save` wrote; FileFormatError for another model's or a torn file."""
        with self._running():
            self._ids = session_file.read(Path(path), self)

    def close(self) -> None:
        """End it and drop the cache; every later call but this raises UsageError."""
        if self._closed:
            return
        with self._running():
            self._release()
            self._closed = True

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return tuple(self._ids)

    def cached_rows(self) -> NDArray[Any]:
        """The rows in use as stored: (layers, n_past, row), a view."""
        return self.cached_rows_of(self.n_past)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One thread at a time; what fails leaves the session as it was."""
        if not self._busy.acquire(blocking=False):
            raise SessionBusy("expected one thread in a session, found a second; give it its own")
        try:
            self._check_open()
            self._not_cancelled()
            before = len(self._ids)
            try:
                yield
            except BaseException:
                del self._ids[before:]
                raise
        finally:
            self._busy.release()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("expected an open session, found a closed one; load it again")

    def _check_ids(self, ids: Sequence[int], all_logits: bool) -> list[int]:
        try:
            checked = [operator.index(i) for i in ids]
        except TypeError as why:
            raise UsageError(f"expected token ids, found something else ({why})") from None
        if not checked:
            raise UsageError("expected at least one token id, found none")
        wrong = next((i for i in checked if not 0 <= i < self.spec.vocab), None)
        if wrong is not None:
            raise UsageError(f"expected ids of 0 to {self.spec.vocab - 1}, found {wrong}")
        if self.n_past + len(checked) > self.n_ctx:
            raise ContextOverflow(
                f"expected at most {self.n_ctx} tokens, found {self.n_past} + {len(checked)}; "
                "shorten the text or load with a larger context (-c)"
            )
        if all_logits and 4 * len(checked) * self.spec.vocab > ALL_LOGITS_BYTES:
            most = ALL_LOGITS_BYTES // (4 * self.spec.vocab)
            raise UsageError(
                f"expected at most {most} tokens with all_logits (1 GiB), found {len(checked)}; "
                "call prefill for parts of them"
            )
        return checked
