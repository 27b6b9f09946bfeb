"""How well a model foretells a text, and how far its logits are from another's.

As llama.cpp's llama-perplexity counts: the text is cut into windows that are read from an empty
cache on, and the second half of each is scored, where every token has half a window before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from plm_edge.atomic import write_atomic
from plm_edge.errors import NumericalError, UsageError
from plm_edge.runtime.any_session import AnySession
from plm_edge.runtime.logit_file import NATS, LogitFile, header, scored, windows_of, write_rows

Float64 = NDArray[np.float64]
Progress = Callable[[int, int], None]  # windows done, windows of all

WINDOW = 512  # ids, unless the model was trained for fewer or another number is asked for
_PART = 128  # positions whose logits are in memory at once: 78 MB at 151,936 tokens
_ROWS = 16  # of them as float64


@dataclass(frozen=True)
class Comparison:
    """Of two models at the scored positions; KL is KL(reference || model) in nats."""

    kl: float  # mean
    kl_error: float  # standard error of the mean
    kl_median: float
    kl_99: float  # 99 of 100 positions are below
    kl_max: float
    same_top: float  # share of positions with the same likeliest token
    reference_perplexity: float


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a text."""

    windows: int
    window: int  # ids
    positions: int  # scored, of all windows
    perplexity: float
    perplexity_error: float  # standard error
    compared: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def evaluate(
    session: AnySession,
    ids: Sequence[int],
    window: int,
    against: AnySession | LogitFile | None = None,
    *,
    windows: int | None = None,
    save: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score `ids` in whole windows, the first `windows` of them or all.

    `save` writes the log probabilities to a file for a later `against`. Raises UsageError where the
    text is too short, or `against` has another vocabulary or text; NumericalError for logits that
    are no numbers.
    """
    texts = _windows(session, ids, window, windows)
    if isinstance(against, LogitFile):
        _check_text(against, texts, session.spec.vocab)
    elif against is not None and against.spec.vocab != session.spec.vocab:
        raise UsageError(
            f"expected a reference of {session.spec.vocab} tokens, found {against.spec.vocab}; "
            "compare models of the same vocabulary"
        )
    rows = _Rows(least=-NATS if isinstance(against, LogitFile) else -math.inf)

    def run(saved: BinaryIO | None = None) -> None:
        if saved is not None:
            saved.write(header(window, session.spec.vocab, [i for text in texts for i in text]))
        for number, text in enumerate(texts):
            _score(session, number, text, against, rows, saved)
            if progress is not None:
                progress(number + 1, len(texts))

    if save is None:
        run()
    else:
        write_atomic(save, run)
    return rows.evaluation(len(texts), window)


class _Rows:
    """What was measured at each scored position; a reference counts above `least` (log p)."""

    def __init__(self, least: float) -> None:
        self._least = least
        self.nll: list[float] = []  # -log p(next id), nats
        self.kl: list[float] = []
        self.same: list[bool] = []
        self.reference_nll: list[float] = []

    def add(self, log_q: Float64, following: Sequence[int], log_p: Float64 | None) -> None:
        """Rows (n, vocab) of the model and its reference, and the ids that follow (n,)."""
        every = np.arange(len(log_q))
        self.nll += (-log_q[every, following]).tolist()
        if log_p is None:
            return
        terms = np.where(log_p > self._least, np.exp(log_p) * (log_p - log_q), 0.0)
        self.kl += terms.sum(axis=1).tolist()
        self.same += (log_p.argmax(axis=1) == log_q.argmax(axis=1)).tolist()
        self.reference_nll += (-log_p[every, following]).tolist()

    def evaluation(self, windows: int, window: int) -> Evaluation:
        """Of everything that was added."""
        nll = np.array(self.nll)
        perplexity = math.exp(nll.mean())
        error = perplexity * _error(nll)
        compared = self._comparison() if self.kl else None
        return Evaluation(windows, window, len(nll), perplexity, error, compared)

    def _comparison(self) -> Comparison:
        kl = np.array(self.kl)
        return Comparison(
            kl=float(kl.mean()),
            kl_error=_error(kl),
            kl_median=float(np.median(kl)),
            kl_99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            same_top=float(np.mean(self.same)),
            reference_perplexity=math.exp(np.mean(self.reference_nll)),
        )


def _error(values: Float64) -> float:
    """Standard error of the mean; 0 of one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _windows(
    session: AnySession, ids: Sequence[int], window: int, windows: int | None
) -> list[list[int]]:
    if not 3 <= window <= session.n_ctx:
        raise UsageError(
            f"expected windows of 3 to {session.n_ctx} tokens, found {window}; give another -c, or "
            "leave it out"
        )
    if windows is not None and windows < 1:
        raise UsageError(
            f"expected at least 1 window, found {windows}; give --chunks more, or leave it out for "
            "all of the text"
        )
    texts = list(windows_of(ids, window))[:windows]
    if not texts:
        raise UsageError(
            f"expected a text of at least {window} tokens, found {len(ids)}; give a longer one or "
            "a smaller -c"
        )
    return texts


def _check_text(saved: LogitFile, texts: list[list[int]], vocab: int) -> None:
    ids = [token for text in texts for token in text]
    if saved.vocab != vocab:
        raise UsageError(
            f"expected logits of {vocab} tokens, found {saved.vocab} in {saved.path.name}; compare "
            "models of the same vocabulary"
        )
    if saved.window != len(texts[0]) or saved.ids[: len(ids)] != ids:
        raise UsageError(
            f"expected logits of this text in windows of {len(texts[0])}, found others in "
            f"{saved.path.name} ({saved.windows} of {saved.window}); save them again, or use the "
            "same -f, -c and --chunks"
        )


def _score(
    session: AnySession,
    number: int,
    text: list[int],
    against: AnySession | LogitFile | None,
    rows: _Rows,
    saved: BinaryIO | None,
) -> None:
    """One window: its first half is read, its second half scored in parts."""
    positions = scored(len(text))
    both = [session, against] if isinstance(against, AnySession) else [session]
    for each in both:
        each.reset()
        each.prefill(text[: positions.start])
    for start in range(positions.start, positions.stop, _PART):
        part = text[start : min(start + _PART, positions.stop)]
        logits, *others = (each.prefill(part, all_logits=True) for each in both)
        for at in range(0, len(part), _ROWS):
            log_q = log_softmax(logits[at : at + _ROWS])
            log_p = log_softmax(others[0][at : at + _ROWS]) if others else None
            if isinstance(against, LogitFile):
                log_p = against.log_probs(number, start - positions.start + at, len(log_q))
            first = start + at + 1
            rows.add(log_q, text[first : first + len(log_q)], log_p)
            if saved is not None:
                write_rows(saved, log_q)


def log_softmax(logits: NDArray[np.float32]) -> Float64:
    """Logits (n, vocab) -> log probabilities (n, vocab)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if not np.isfinite(shifted).all():
        raise NumericalError("expected finite logits, found NaN or infinity; check the model")
    return shifted
