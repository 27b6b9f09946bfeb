"""What the demo model is worth: bits per held-out byte, idle units, and what it tells.

    python tools/demo_quality.py [--model demo] [--corpus TALES.txt]

Bits: plm_edge/texts/held_out.txt, never trained on, in windows of the trained context, by the
native session. Idle units: the float64 reference over the first 512 ids of that text. Tales: seeds
1 to 10 at temperature 0.7; with --corpus also the share of their words that the corpus knows and
the longest run of words copied from it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from pathlib import Path

import numpy as np

import plm_edge
from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.hub import resolve_model
from plm_edge.reference import Reference
from plm_edge.runtime import Session
from plm_edge.runtime.chat import chat
from plm_edge.runtime.sampler import Sampler

HELD_OUT = Path(plm_edge.__file__).parent / "texts" / "held_out.txt"
ANIMALS = ("fox", "wolf", "bear", "cat", "bird")


def bits_per_byte(session: Session, text: str) -> float:
    """Windows of n_ctx - 1 ids, each after <|endoftext|>; over the text's UTF-8 bytes."""
    ids, nats = session.tokenizer.encode(text), 0.0
    start = session.tokenizer.special_ids["<|endoftext|>"]
    for at in range(0, len(ids), session.n_ctx - 1):
        window = ids[at : at + session.n_ctx - 1]
        session.reset()
        logits = session.prefill([start, *window[:-1]], all_logits=True).astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
        nats += float((log_sum - logits[np.arange(len(window)), window]).sum())
    return nats / math.log(2) / len(text.encode())


def tale(session: Session, subject: str, seed: int) -> str:
    """The reply to the question that the README asks."""
    ask = [{"role": "user", "content": f"Tell me a tale about a {subject}"}]
    session.reset()
    return "".join(chat(session, ask, sampler=Sampler(temperature=0.7, seed=seed)))


def words(text: str) -> list[str]:
    """Lower-case words, an apostrophe inside a word included."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def runs(text: list[str], n: int) -> set[int]:
    """Every run of n words, hashed."""
    return {hash(tuple(text[i : i + n])) for i in range(len(text) - n + 1)}


def longest_copies(replies: dict[str, list[list[str]]], corpus: list[str]) -> dict[str, int]:
    """For each subject the words of the longest run of any reply that stands in the corpus too."""
    longest = dict.fromkeys(replies, 0)
    for n in itertools.count(1):
        known = runs(corpus, n)
        copying = [
            subject
            for subject, spoken in replies.items()
            if any(not runs(reply, n).isdisjoint(known) for reply in spoken)
        ]
        if not copying:
            return longest
        longest |= dict.fromkeys(copying, n)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--corpus", type=Path)
    args = parser.parse_args()
    text = HELD_OUT.read_text(encoding="utf-8")
    with plm_edge.load(args.model) as session:
        bits = bits_per_byte(session, text)
        print(f"bits per held-out byte: {bits:.3f} ({len(text.encode()):,} bytes)")
        ids = session.tokenizer.encode(text)[:512]
        with open_checkpoint(resolve_model(args.model)) as checkpoint:
            zeros = Reference.from_checkpoint(checkpoint).ffn_zeros(ids)
        print("idle units per layer: " + ", ".join(f"{share:.3f}" for share in zeros))
        replies = {a: [tale(session, a, seed) for seed in range(1, 11)] for a in ANIMALS}
    spoken = {animal: [words(reply) for reply in tales] for animal, tales in replies.items()}
    copies: dict[str, int] = {}
    if args.corpus:
        known = words(args.corpus.read_text(encoding="utf-8"))
        vocabulary, every = set(known), [w for tales in spoken.values() for r in tales for w in r]
        share = float(np.mean([word in vocabulary for word in every]))
        print(f"words of the corpus: {100 * share:.2f} % of {len(every)}")
        copies = longest_copies(spoken, known)
    for animal, tales in spoken.items():
        told = sum(animal in reply for reply in tales)
        copy = f"; longest run copied: {copies[animal]} words" if copies else ""
        print(f"{animal}: named in {told} of {len(tales)} replies{copy}")
    print(f"\n{replies['fox'][0]}")


if __name__ == "__main__":
    main()
