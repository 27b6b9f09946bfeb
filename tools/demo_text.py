"""The demo model's text: tokenizer, passages about a subject, rows of token ids."""

from __future__ import annotations

import argparse
import math
import random
import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 4096
HELD_OUT = 0.05  # share of the text, at its end

# Pre-tokenizer of Qwen2 (its tokenizer.json), which PLM uses too.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# What a tale can be about. Words that the corpus holds often enough to learn.
_SUBJECTS = """
fox wolf bear cat dog horse bird lion dragon fish monkey cow sheep tiger eagle deer hare snake
serpent goat rabbit mouse hen raven duck ox owl swan goose frog pig rat crow crab tortoise donkey
dove spider elephant bee ass giant king queen prince princess witch fairy knight soldier miller
fisherman shepherd hunter dwarf mermaid magician
"""
SUBJECTS = tuple(_SUBJECTS.split())
ASKS = (
    "Tell me a tale about {}",
    "Tell me a tale about {}.",
    "Tell me a story about {}",
    "Tell me about {}",
)
ASK_SHARES = (70, 10, 15, 5)  # per cent
SYSTEM = "You are a teller of old tales."


def split_corpus(path: Path) -> tuple[str, str]:
    """(training text, held-out text): cut at a paragraph."""
    text = path.read_text(encoding="utf-8")
    cut = text.index("\n", int(len(text) * (1 - HELD_OUT))) + 1
    return text[:cut], text[cut:]


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with Qwen2's pre-tokenizer; special tokens are ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def passages(text: str) -> dict[str, list[str]]:
    """For each subject passages in which it comes up early: 60 to 190 words, whole sentences."""
    patterns = {s: re.compile(rf"\b{s}\b", re.IGNORECASE) for s in SUBJECTS}
    found: dict[str, list[str]] = {s: [] for s in SUBJECTS}
    for book in text.split("\n\n"):
        # Sentences in order, each with the white space that follows it.
        sentences = [
            s + (" " if i + 1 < len(row) else "\n")
            for paragraph in book.split("\n")
            if (
                row := re.split(
                    r"(?<=[.!?][\"'”’])\s+|(?<=[.!?])\s+(?=[A-Z\"“])", paragraph.strip()
                )
            )
            != [""]
            for i, s in enumerate(row)
        ]
        words = [len(s.split()) for s in sentences]
        for subject, pattern in patterns.items():
            last = -1
            for i, sentence in enumerate(sentences):
                if (
                    i <= last
                    or not pattern.search(sentence)
                    or words[i] < 4
                    or not sentence[0].isupper()
                ):
                    continue
                total, end = 0, i
                while end < len(sentences) and total < 130:
                    total += words[end]
                    end += 1
                piece = "".join(sentences[i:end]).strip()
                if 60 <= total <= 190 and len(pattern.findall(piece)) >= 2:
                    found[subject].append(piece)
                    last = i + max(1, (end - i) // 2)
    return {s: p for s, p in found.items() if p}


class Rows:
    """Rows of token ids: plain text and conversations, as many of each as `batch` is asked for."""

    def __init__(self, tokenizer: Tokenizer, text: str, length: int, seed: int):
        self.length, self.random = length, random.Random(seed)
        self.tokenizer = tokenizer
        self.ids = torch.tensor(
            [i for p in text.splitlines(keepends=True) for i in tokenizer.encode(p).ids]
        )
        found = passages(text)
        self.chats: dict[str, list[list[int]]] = {}
        for subject, pieces in found.items():
            self.chats[subject] = [tokenizer.encode(p).ids for p in pieces]
        self.subjects = list(self.chats)
        self.weights = [math.sqrt(len(self.chats[s])) for s in self.subjects]
        self.starts: list[int] = []

    def text_row(self) -> Tensor:
        if not self.starts:  # every stretch of the text once before any comes again
            shift = self.random.randrange(self.length)
            self.starts = list(range(shift, len(self.ids) - self.length, self.length))
            self.random.shuffle(self.starts)
        start = self.starts.pop()
        return torch.cat([torch.tensor([0]), self.ids[start : start + self.length]])

    def chat(self) -> list[int]:
        subject = self.random.choices(self.subjects, self.weights)[0]
        piece = self.random.choice(self.chats[subject])
        ask = self.random.choices(ASKS, ASK_SHARES)[0].format(
            ("an " if subject[0] in "aeo" else "a ") + subject
        )
        head = f"{IM_START}user\n{ask}{IM_END}\n{IM_START}assistant\n"
        if self.random.random() < 0.1:
            head = f"{IM_START}system\n{SYSTEM}{IM_END}\n" + head
        return self.tokenizer.encode(head).ids + piece + self.tokenizer.encode(f"{IM_END}\n").ids

    def chat_row(self) -> Tensor:
        ids: list[int] = []
        while len(ids) <= self.length:
            ids += self.chat()
        return torch.tensor(ids[: self.length + 1])

    def batch(self, rows: int, chat_rows: int) -> Tensor:
        return torch.stack(
            [self.chat_row() if i < chat_rows else self.text_row() for i in range(rows)]
        )


def sample(text: str, size: int = 200_000) -> str:
    """About `size` bytes: as much from every book of the text, whole paragraphs from its middle."""
    books = [book for book in text.split("\n\n") if book.strip()]
    pieces = []
    for book in books:
        start = book.find("\n", max(0, (len(book) - size // len(books)) // 2)) + 1
        end = book.find("\n", start + size // len(books) - 400)
        pieces.append(book[start:end].strip("\n"))
    return "\n\n".join(pieces) + "\n"


def main() -> None:
    """Write the two samples that the package carries."""
    parser = argparse.ArgumentParser(description="cut the texts that ship with the package")
    parser.add_argument("--corpus", type=Path, required=True, help="UTF-8, one paragraph a line")
    parser.add_argument("--out", type=Path, default=Path("plm_edge/texts"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, held_out = split_corpus(args.corpus)
    (args.out / "calibration.txt").write_text(sample(train), encoding="utf-8")
    (args.out / "held_out.txt").write_text(sample(held_out), encoding="utf-8")


if __name__ == "__main__":
    main()
