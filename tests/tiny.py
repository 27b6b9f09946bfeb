"""Tiny random checkpoints as Hugging Face writes them: the input of most tests.

    folder = write_tiny_checkpoint(tmp_path / "tiny", TINY_SHAPES["odd"], seed=1, dtype="BF16")

The same arguments give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from plm_edge.spec import HF_LATENT_EPS, ModelSpec
from plm_edge.tensors import tensor_table


def _spec(
    layers: int, d_model: int, heads: int, d_ffn: int, head: tuple[int, int, int], rank: int,
    vocab: int, tied: bool = True, eps: float = 1e-6,
) -> ModelSpec:  # fmt: skip
    """`head` is (nope, rope, v_head)."""
    nope, rope, v_head = head
    return ModelSpec(
        layers, d_model, heads, d_ffn, nope, rope, v_head, rank, vocab, n_ctx_train=128,
        rope_theta=10000.0, eps=eps, latent_eps=HF_LATENT_EPS, tied=tied,
    )  # fmt: skip


TINY_SHAPES = {
    "plain": _spec(2, 64, 4, 128, (16, 8, 16), 32, 333),
    "odd": _spec(3, 40, 3, 72, (10, 6, 14), 20, 325),
    "one_head": _spec(1, 33, 1, 45, (5, 2, 7), 9, 327),
    "untied": _spec(2, 48, 5, 96, (12, 4, 8), 28, 331, tied=False, eps=1e-5),
    "wide_rope": _spec(2, 56, 3, 100, (8, 24, 12), 36, 341),
    "wide_value": _spec(2, 52, 7, 64, (6, 10, 40), 44, 334),
    "blocks": _spec(2, 64, 2, 160, (32, 32, 64), 96, 352),  # widths are whole blocks of 32
    "plm": _spec(2, 256, 2, 512, (128, 64, 128), 512, 384),  # PLM's own head and latent widths
}

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = (
    "once upon a time there was a little house by the sea and in the house there lived a girl who "
    "liked to read the stories that the wind told her when night was long and stars were out"
)
_MERGES = 60
N_TOKENS = 256 + _MERGES + len(SPECIALS)  # ids from here to the vocabulary's end are padding


def write_tiny_checkpoint(
    folder: Path,
    spec: ModelSpec = TINY_SHAPES["plain"],
    seed: int = 0,
    *,
    dtype: str = "F32",
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole checkpoint into `folder` and return it. `config` overrides config.json only."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {**config_of(spec), **(config or {})})
    weights = tiny_weights(spec, seed, dtype)
    names = list(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype)
    else:
        weight_map: dict[str, str] = {}
        for k in range(shards):
            file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: weights[name] for name in names[k::shards]}
            write_safetensors(folder / file, part, dtype)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    write_tiny_tokenizer(folder)
    return folder


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of a spec, with the keys PLM's own has."""
    return {
        "architectures": ["PLMForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_plm.PLMForCausalLM"},
        "hidden_act": "relu2",
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_ffn,
        "kv_lora_rank": spec.rank,
        "max_position_embeddings": spec.n_ctx_train,
        "model_type": "plm",
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.heads,
        "q_lora_rank": None,
        "qk_nope_head_dim": spec.nope,
        "qk_rope_head_dim": spec.rope,
        "rms_norm_eps": spec.eps,
        "rope_scaling": None,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
        "v_head_dim": spec.v_head,
        "vocab_size": spec.vocab,
    }


def tiny_weights(spec: ModelSpec, seed: int = 0, dtype: str = "F32") -> dict[str, np.ndarray]:
    """Hugging Face name -> float32 values, already rounded to `dtype`.

    A matrix has deviation 1/sqrt(columns), so each product and the logits are about 1.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for info in tensor_table(spec).values():
        x = rng.standard_normal(info.shape, dtype=np.float32)
        x = 1 + 0.1 * x if len(info.shape) == 1 else x / np.sqrt(np.float32(info.shape[1]))
        weights[info.hf_name] = decode_values(encode_values(x, dtype), dtype).reshape(info.shape)
    return weights


def encode_values(x: np.ndarray, dtype: str) -> bytes:
    """float32 to the bytes of F32, F16 or BF16; BF16 rounds to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(x, "<f4").view("<u4")
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    return x.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def decode_values(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write the file by hand, so that the reader is not tested by its own mirror."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body, at = [], 0
    for name, x in tensors.items():
        data = encode_values(x, dtype)
        offsets = [at, at + len(data)]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": offsets}
        body.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(body))


def write_tiny_tokenizer(folder: Path) -> None:
    """A Qwen2-like byte-level BPE: 256 bytes, 60 merges of English, the three ChatML specials."""
    write_tokenizer(folder, _merges())


def write_tokenizer(folder: Path, merges: Sequence[tuple[str, str]]) -> None:
    """The files of a Qwen2-like tokenizer with these merges, the first merged first."""
    tokens = [*sorted(_byte_letters().values()), *(a + b for a, b in merges)]
    added = [
        {"id": len(tokens) + k, "content": text, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for k, text in enumerate(SPECIALS)
    ]  # fmt: skip
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_REGEX}, "behavior": "Isolated"}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    steps = [{**split, "invert": False}, {**by_bytes, "use_regex": False}]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {**by_bytes, "use_regex": False},
        "decoder": {**by_bytes, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: k for k, token in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }  # fmt: skip
    _write_json(folder / "tokenizer.json", tokenizer)
    end_of_text, _, im_end = SPECIALS
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(t["id"]): {k: t[k] for k in t if k != "id"} for t in added
            },
            "additional_special_tokens": list(SPECIALS[1:]),
            "bos_token": None,
            "chat_template": CHATML,
            "eos_token": im_end,
            "pad_token": end_of_text,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    stops = [added[2]["id"], added[0]["id"]]
    _write_json(
        folder / "generation_config.json", {"eos_token_id": stops, "pad_token_id": stops[1]}
    )


def _byte_letters() -> dict[int, str]:
    """GPT-2's table: each byte as one printable character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + k) for k, b in enumerate(rest)}


def _merges() -> list[tuple[str, str]]:
    """The pairs that byte-pair training finds in `_TEXT`, most frequent first, ties by alphabet."""
    letters = _byte_letters()
    text = (" " + _TEXT).replace(" ", "\0 ").split("\0")[1:]
    words = [[letters[b] for b in word.encode()] for word in text]
    merges: list[tuple[str, str]] = []
    while len(merges) < _MERGES:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_join(word, best) for word in words]
    return merges


def _join(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return out


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
