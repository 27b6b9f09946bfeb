"""Compute a long prompt once: its cache goes to a file, and the next run reads it back.

python examples/saved_prompt.py TEXT_FILE QUESTION [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import plm_edge


def main(text: str, question: str, model: str = "demo") -> None:
    file = Path(text)
    saved = file.with_suffix(".session")
    system = {"role": "system", "content": file.read_text(encoding="utf-8")}
    with plm_edge.load(model) as session:
        if saved.exists():
            session.restore(saved)
        answer = plm_edge.chat(
            session, [system, {"role": "user", "content": question}], max_tokens=32
        )
        for piece in answer:
            print(piece, end="", flush=True)
        stats = answer.stats
        print(f"\n{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens were cached")
        session.save(saved)


if __name__ == "__main__":
    if len(sys.argv) - 1 not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (plm_edge.PlmEdgeError, OSError, UnicodeDecodeError) as error:  # one line says why
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
