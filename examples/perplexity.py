"""Perplexity of a text: exp of the mean surprise, in nats, at each token but the first of a window.

python examples/perplexity.py TEXT_FILE [MODEL]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

import plm_edge
from plm_edge.runtime import Session


def surprise(session: Session, ids: list[int]) -> float:
    """Sum of -log p(id | the ids before it) over ids[1:], in nats."""
    session.reset()
    logits = session.prefill(ids[:-1], all_logits=True).astype(np.float64)  # (len(ids) - 1, vocab)
    top = logits.max(axis=1)
    norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((norm - logits[np.arange(len(logits)), ids[1:]]).sum())


def main(text: str, model: str = "demo") -> None:
    with plm_edge.load(model) as session:
        ids = session.tokenizer.encode(Path(text).read_text(encoding="utf-8"))
        step = min(session.n_ctx, 256)
        windows = [
            w for start in range(0, len(ids), step) if len(w := ids[start : start + step]) > 1
        ]
        if not windows:
            raise plm_edge.UsageError(f"expected a text of 2 tokens or more, found {len(ids)}")
        tokens = sum(len(window) - 1 for window in windows)
        nats = sum(surprise(session, window) for window in windows)
        print(f"perplexity {math.exp(nats / tokens):.3f} over {tokens} tokens in windows of {step}")


if __name__ == "__main__":
    if len(sys.argv) - 1 not in (1, 2):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (plm_edge.PlmEdgeError, OSError, UnicodeDecodeError) as error:  # one line says why
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
