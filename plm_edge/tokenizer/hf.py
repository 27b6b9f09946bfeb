"""Read a Hugging Face tokenizer: tokenizer.json and the small files beside it, strictly.

What would change the ids and is not built here is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from plm_edge.checkpoint.files import locate, parse_json_object, read_small
from plm_edge.errors import FileFormatError
from plm_edge.tokenizer.pretokenize import PATTERNS
from plm_edge.tokenizer.strings import StringArray
from plm_edge.tokenizer.vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary, all_stops

TOKENIZER_BYTES = 100 << 20  # Qwen2's has 11 MB
TOKENIZER_VALUES = 4_000_000  # of its JSON; Qwen2's has 0.6 million
CONFIG_BYTES = 1 << 20

_KEYS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
    "post_processor", "decoder", "model",
}  # fmt: skip
_MODEL_KEYS = {
    "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
    "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges",
}  # fmt: skip
# Parts of the model that must be unset. The unknown token does not matter: every byte has a token.
_UNSET = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of the model in `folder`."""
    path = folder / "tokenizer.json"
    data = _read(folder, path.name, TOKENIZER_BYTES)
    if data is None:
        raise FileFormatError(
            f"expected {path}, found no such file; a checkpoint needs its tokenizer beside it"
        )
    tokenizer = parse_json_object(data, path.name, TOKENIZER_VALUES)
    _known_keys(path, "", tokenizer, _KEYS)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        _refuse(path, "model.type 'BPE'", model.get("type") if isinstance(model, dict) else model)
    _known_keys(path, "model.", model, _MODEL_KEYS)
    for key in _UNSET:
        if model.get(key):
            _refuse(path, f"model.{key} unset", model[key])
    nfc = _normalizer(path, tokenizer.get("normalizer"))
    pre = _pre_tokenizer(path, tokenizer.get("pre_tokenizer"))
    if _type(tokenizer.get("decoder")) != "ByteLevel":
        _refuse(path, "decoder 'ByteLevel'", tokenizer.get("decoder"))
    if _type(tokenizer.get("post_processor")) not in (None, "ByteLevel"):
        _refuse(path, "post_processor null or 'ByteLevel'", tokenizer["post_processor"])

    added = _added_tokens(path, tokenizer.get("added_tokens") or [])
    tokens = _tokens(path, model.get("vocab"), added)
    kinds = np.full(len(tokens), NORMAL, np.uint8)
    for text, (token_id, kind) in added.items():
        kinds[token_id] = kind
        if tokens[token_id] != text:
            _refuse(path, f"id {token_id} for one token only", [text, tokens[token_id]])
    ids = {text: token_id for text, (token_id, _) in added.items()}
    return _with_configs(folder, tokens, kinds, _merges(path, model.get("merges")), pre, nfc, ids)


def _with_configs(
    folder: Path,
    tokens: list[str],
    kinds: np.ndarray[Any, np.dtype[np.uint8]],
    merges: StringArray,
    pre: str,
    nfc: bool,
    added: dict[str, int],
) -> Vocabulary:
    """Add what the small files know: the ids that end a text, and the chat template."""
    path = folder / "tokenizer_config.json"
    config = _read_optional(folder, path.name)
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space"):
        if config.get(key):
            _refuse(path, f"{key} false", config[key])
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        _refuse(path, "added_tokens_decoder, an object", decoder)
    for token_id, token in decoder.items():
        text = token.get("content") if isinstance(token, dict) else token
        if str(added.get(str(text))) != token_id:
            _refuse(path, f"added token {token_id} in tokenizer.json too", text)

    special = {key: _named(path, config, key, added) for key in ("eos_token", "bos_token")}
    named = {i for i in [special["eos_token"]] if i is not None}
    others = {
        name: _read_optional(folder, name) for name in ("generation_config.json", "config.json")
    }
    for name, other in others.items():
        named.update(_ids(folder / name, other.get("eos_token_id")))
    stops = all_stops(added, named, len(tokens))
    bos = _ids(folder / "config.json", others["config.json"].get("bos_token_id"))
    if not all(0 <= i < len(tokens) for i in bos):
        _refuse(folder / "config.json", f"bos_token_id an id below {len(tokens)}", bos)
    return Vocabulary(
        tokens=_strings(folder / "tokenizer.json", tokens),
        kinds=kinds,
        merges=merges,
        pre=pre,
        nfc=nfc,
        eos_id=special["eos_token"] if special["eos_token"] is not None else min(stops),
        bos_id=special["bos_token"] if special["bos_token"] is not None else next(iter(bos), None),
        stop_ids=stops,
        chat_template=_template(folder, path, config),
    )


# ---------------------------------------------------------------- tokenizer.json


def _type(found: Any) -> Any:
    """The type of a part of tokenizer.json; what stands there where it is no part."""
    return found.get("type", found) if isinstance(found, dict) else found


def _normalizer(path: Path, found: Any) -> bool:
    if found is None:
        return False
    if found == {"type": "NFC"}:
        return True
    _refuse(path, "normalizer null or 'NFC'", found)


def _pre_tokenizer(path: Path, found: Any) -> str:
    """The name of a pattern we have, for Sequence[Split(pattern), ByteLevel]."""
    steps = found.get("pretokenizers") if isinstance(found, dict) else None
    if isinstance(steps, list) and len(steps) == 2 and found.get("type") == "Sequence":
        split, byte_level = steps
        for name, pattern in PATTERNS.items():
            wanted = {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
            if (
                split == wanted
                and isinstance(byte_level, dict)
                and byte_level.get("type") == "ByteLevel"
                and byte_level.get("add_prefix_space") is False
                and byte_level.get("use_regex") is False
            ):
                return name
    _refuse(path, f"the pre_tokenizer of {sorted(PATTERNS)}", found)


def _added_tokens(path: Path, found: Any) -> dict[str, tuple[int, int]]:
    """Text -> (id, kind) of the tokens that are cut out of a text before anything else."""
    added: dict[str, tuple[int, int]] = {}
    for token in found if isinstance(found, list) else _refuse(path, "added_tokens, a list", found):
        text, token_id = (
            (token.get("content"), token.get("id")) if isinstance(token, dict) else (0, 0)
        )
        if not isinstance(text, str) or not text or type(token_id) is not int:
            _refuse(path, "added tokens with content and id", token)
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            if token.get(flag):
                _refuse(path, f"{flag} false for added token {text!r}", token[flag])
        if text in added:
            _refuse(path, "each added token once", text)
        added[text] = (token_id, CONTROL if token.get("special") else USER_DEFINED)
    return added


def _tokens(path: Path, vocab: Any, added: dict[str, tuple[int, int]]) -> list[str]:
    """All tokens, by id."""
    if not isinstance(vocab, dict) or not vocab:
        _refuse(path, "model.vocab, text to id", vocab)
    ids = dict(vocab)
    for text, (token_id, _) in added.items():
        if ids.setdefault(text, token_id) != token_id:
            _refuse(path, f"added token {text!r} with id {ids[text]}, as in model.vocab", token_id)
    if not all(type(token_id) is int for token_id in ids.values()):
        _refuse(
            path, "whole numbers as token ids", next(i for i in ids.values() if type(i) is not int)
        )
    tokens = sorted(ids, key=ids.__getitem__)
    for place, text in enumerate(tokens):
        if ids[text] != place:
            _refuse(
                path, f"token ids without gaps or twins, id {place} next", f"{text!r}: {ids[text]}"
            )
    return tokens


def _merges(path: Path, found: Any) -> StringArray:
    """Merges are "left right", or pairs since tokenizers 0.20."""
    if not isinstance(found, list):
        _refuse(path, "model.merges, a list", found)
    merges = []
    for merge in found:
        if isinstance(merge, str):
            merges.append(merge)
        elif isinstance(merge, list) and len(merge) == 2 and all(isinstance(m, str) for m in merge):
            merges.append(f"{merge[0]} {merge[1]}")
        else:
            _refuse(path, "merges of two texts", merge)
    return _strings(path, merges)


def _strings(path: Path, strings: list[str]) -> StringArray:
    try:
        return StringArray.of(strings)
    except UnicodeEncodeError as why:
        _refuse(path, "tokens that are Unicode text", why.object)


# ---------------------------------------------------------------- the small files


def _named(path: Path, config: dict[str, Any], key: str, added: dict[str, int]) -> int | None:
    """The id of the token that e.g. eos_token names, as text or as {"content": text}."""
    found = config.get(key)
    text = found.get("content") if isinstance(found, dict) else found
    if text is None:
        return None
    if not isinstance(text, str) or text not in added:
        _refuse(path, f"{key} to be an added token", found)
    return added[text]


def _ids(path: Path, found: Any) -> list[int]:
    """eos_token_id is null, an id or a list of ids."""
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int for i in ids):
        _refuse(path, "an id or a list of ids", found)
    return ids


def _template(folder: Path, path: Path, config: dict[str, Any]) -> str | None:
    """A file of its own since transformers 4.51; before, a text or a list with a "default"."""
    own_file = _read(folder, "chat_template.jinja", CONFIG_BYTES)
    if own_file is not None:
        return own_file.decode("utf-8", "replace")
    found = config.get("chat_template")
    if isinstance(found, list):
        if not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in found):
            _refuse(path, "chat_template to be text or a list of named templates", found)
        found = {t["name"]: t.get("template") for t in found}.get("default")
    if found is not None and not isinstance(found, str):
        _refuse(path, "chat_template to be text", found)
    return found


# ---------------------------------------------------------------- reading


def _refuse(path: Path, expected: str, found: Any) -> NoReturn:
    raise FileFormatError(
        f"{path}: expected {expected}, found {str(found)[:80]!r}; "
        "only Qwen2-style byte-level BPE is supported"
    )


def _known_keys(path: Path, prefix: str, found: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(found.keys() - known)
    if unknown:
        _refuse(path, "keys of a BPE tokenizer", [prefix + key for key in unknown])


def _read(folder: Path, name: str, most: int) -> bytes | None:
    path = locate(folder, name)
    return None if path is None else read_small(path, most)[0]


def _read_optional(folder: Path, name: str) -> dict[str, Any]:
    data = _read(folder, name, CONFIG_BYTES)
    return {} if data is None else parse_json_object(data, name)
