"""Two sequences on one copy of the weights, each with a cache of its own.

python examples/two_sessions.py [MODEL]
"""

from __future__ import annotations

import sys

import plm_edge


def main(model: str = "demo") -> None:
    with plm_edge.load(model, n_ctx=128) as fox, fox.model.session(n_ctx=128) as king:
        ask = {
            session: session.prefill(session.tokenizer.encode(text))
            for session, text in ((fox, "The fox said"), (king, "The king said"))
        }
        for _ in range(8):
            for session, logits in ask.items():
                token = int(logits[: session.tokenizer.n_tokens].argmax())
                ask[session] = session.step(token)
        for session in (fox, king):
            print(session.tokenizer.decode(session.ids), f"[cache {session.cache_bytes:,} bytes]")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except plm_edge.PlmEdgeError as error:  # one line says why
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
