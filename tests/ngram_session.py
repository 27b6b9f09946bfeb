"""A session without a network: counts of what followed the last one to eight ids in a small text.

It keeps the promises of the session protocol, so that the sampler, the stream and the chat loop can
be tested in microseconds, and it notes what it was asked to compute.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from types import MappingProxyType

import numpy as np

from plm_edge.errors import ContextOverflow, Interrupted, UsageError

START, END, EOT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALE = "The fox ran through the forest and found a café. It met a bear 🐻 there."
TALES = (
    TALE,
    TALE,
    "A bear slept. The bear 🐻 dreamt of honey — and of the fox 🦊 who ran through the snow.",
)
CORPUS = "".join(f"{START}user\ntell{END}\n{START}assistant\n{tale}{END}\n" for tale in TALES)
ORDERS = (1, 2, 4, 8)  # lengths of the contexts that are counted


class ByteTokenizer:
    """Bytes, a few longer pieces, three special tokens."""

    pieces = (b" the", b"the", b" fo", b"x ", b"bear", b"\xf0\x9f", b" \xf0")
    special_ids = MappingProxyType({EOT: 263, START: 264, END: 265})
    stop_ids = frozenset({263, 265})
    n_tokens = 266
    eos_id, bos_id = 265, None
    chat_template = TEMPLATE

    def encode(self, text: str, specials: bool = False) -> list[int]:
        if specials:
            for name, token in self.special_ids.items():
                if name in text:
                    head, tail = text.split(name, 1)
                    return [*self.encode(head, True), token, *self.encode(tail, True)]
        data, ids = text.encode("utf-8", "replace"), []
        while data:
            piece = next((p for p in self.pieces if data.startswith(p)), None)
            ids.append(data[0] if piece is None else 256 + self.pieces.index(piece))
            data = data[len(piece or b"1") :]
        return ids

    def split_specials(self, text: str) -> Iterator[str | int]:
        for part in re.split(f"({'|'.join(map(re.escape, self.special_ids))})", text):
            yield self.special_ids.get(part, part)

    def token_bytes(self, token: int) -> bytes:
        names = {number: name for name, number in self.special_ids.items()}
        if token in names:
            return names[token].encode()
        return bytes([token]) if token < 256 else self.pieces[token - 256]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


class NgramSession:
    """Rows are ids; logits are log counts, the longest known context first."""

    head = "full"

    def __init__(self, n_ctx: int = 256, corpus: str = CORPUS) -> None:
        self.tokenizer = ByteTokenizer()
        self.n_ctx = n_ctx
        self.ids: list[int] = []
        self.computed: list[int] = []  # how many ids each call ran
        self.cancel_after: int | None = None  # ids until a cancel arrives, as from another thread
        self._cancelled = False
        self._follows: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        ids = self.tokenizer.encode(corpus, specials=True)
        for at in range(1, len(ids)):
            for order in ORDERS:
                self._follows[tuple(ids[max(0, at - order) : at])][ids[at]] += 1

    @property
    def n_past(self) -> int:
        return len(self.ids)

    def prefill(self, ids: Sequence[int], all_logits: bool = False) -> np.ndarray:
        if not len(ids):
            raise UsageError("prefill needs at least one id")
        if self.n_past + len(ids) > self.n_ctx:
            raise ContextOverflow("too many ids")
        before, self._cancelled = self.n_past, False
        rows = []
        for count, token in enumerate(ids):
            if self._cancelled or count == self.cancel_after:
                del self.ids[before:]
                raise Interrupted("cancelled")
            self.ids.append(int(token))
            if all_logits:
                rows.append(self._logits())
        self.computed.append(len(ids))
        return np.stack(rows) if all_logits else self._logits()

    def step(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def truncate(self, n: int) -> None:
        del self.ids[n:]

    def reset(self) -> None:
        self.truncate(0)

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self.reset()

    def _logits(self) -> np.ndarray:
        logits = np.full(self.tokenizer.n_tokens + 6, -12.0, dtype=np.float32)
        logits[self.tokenizer.n_tokens :] = 50.0  # rows past the tokenizer: must never be sampled
        for order in ORDERS:
            for token, count in self._follows[tuple(self.ids[-order:])].items():
                logits[token] = 4.0 * order + np.log(count)
        return logits
