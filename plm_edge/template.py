"""Messages of a chat -> ids, by the model's own template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from plm_edge.errors import FileFormatError, UsageError
from plm_edge.template_sandbox import render
from plm_edge.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")

# PLM's own (chat_template of PLM-Team/PLM-1.8B-Instruct, which is ChatML of the Qwen2 base models:
# no full stop after "assistant"). Taken where a model brings none and has ChatML's tokens.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a conversation; with `add_generation_prompt` it ends where the reply begins.

    A special token in the result comes from the template, never from a message: in the messages
    such texts are broken up by a character of the private-use area that occurs nowhere, which is
    taken out again once the template's special tokens are cut out.
    """
    check_messages(messages)
    source = _template(tokenizer)
    mark = _unused_character([source, *(m["content"] for m in messages)])
    breaks = _Breaks(tokenizer.special_ids, mark)
    text = render(
        source,
        {
            "messages": [{"role": m["role"], "content": breaks(m["content"])} for m in messages],
            "add_generation_prompt": add_generation_prompt,
            "eos_token": _text_of(tokenizer, tokenizer.eos_id),
            "bos_token": _text_of(tokenizer, tokenizer.bos_id),
            "tools": None,
            "documents": None,
        },
    )
    ids: list[int] = []
    for part in tokenizer.split_specials(text):
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += tokenizer.encode(part.replace(mark, ""))
    return ids


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """UsageError unless these are messages that can be rendered."""
    if isinstance(messages, str | Mapping) or not messages:
        raise UsageError("messages: expected a list of messages, found none; pass at least one")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            found = sorted(message) if isinstance(message, Mapping) else type(message).__name__
            raise UsageError(
                f"messages[{i}]: expected the keys 'role' and 'content', found {found}"
            )
        if message["role"] not in ROLES:
            raise UsageError(
                f"messages[{i}].role: expected one of {list(ROLES)}, found {message['role']!r}"
            )
        if not isinstance(message["content"], str):
            found = type(message["content"]).__name__
            raise UsageError(f"messages[{i}].content: expected text, found {found}")


def _template(tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids.keys():
        return CHATML
    raise FileFormatError(
        "expected a chat template, found none in the model; continue a text instead of chatting, "
        "or use a model that was trained for chat"
    )


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.decode([token_id])


def _unused_character(texts: Sequence[str]) -> str:
    used = set().union(*texts)
    for code in range(0xE000, 0xF900):
        if chr(code) not in used:
            return chr(code)
    raise UsageError("messages: expected a private-use character to be free, found all 6,400 used")


class _Breaks:
    """Breaks up what could be read as a special token, alone or with the template's text around."""

    def __init__(self, specials: Mapping[str, int], mark: str) -> None:
        self._mark = mark
        self._whole = [re.compile(f"{re.escape(s[0])}(?={re.escape(s[1:])})") for s in specials]
        self._specials = list(specials)

    def __call__(self, content: str) -> str:
        stripped = content.strip()  # as many templates do
        start = content.find(stripped)
        cuts = {match.end() for whole in self._whole for match in whole.finditer(content)}
        for begin, text in ((0, content), (start, stripped)):
            cuts.update(begin + cut for cut in self._at_the_edges(text))
        pieces = [
            content[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)
        ]
        return self._mark.join(pieces)

    def _at_the_edges(self, text: str) -> set[int]:
        """Where to cut what a text ends or begins with, or is, of a special token."""
        cuts: set[int] = set()
        for special in self._specials:
            for n in range(1, min(len(special), len(text) + 1)):
                if text.endswith(special[:n]):
                    cuts.add(len(text) - n + 1)
                if text.startswith(special[-n:]):
                    cuts.add(n - 1)
            if text and text in special:
                cuts |= {0, len(text)}
        return cuts
