"""ModelSpec to and from the keys of a GGUF file, for `plm`, `deepseek2` and our own architecture.

All use llama.cpp's suffixes (gguf-py, constants.py). Ours says besides what llama.cpp's graph of
`plm` takes for granted: the kinds of the layers, the eps of the latent's norm, whether the head is
tied, and the version of its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from plm_edge.deepseek2 import GATE_KEY
from plm_edge.errors import FileFormatError, SpecError, UnsupportedError, short
from plm_edge.gguf_file import GgufFile
from plm_edge.spec import ModelSpec, check_values

PLM_ARCH = "plm"
DEEPSEEK2_ARCH = "deepseek2"
LATENT_ARCH = "plm-edge-latent"
ARCHS = (PLM_ARCH, DEEPSEEK2_ARCH, LATENT_ARCH)
LAYOUT_VERSION = 1

_SIZES = {
    "layers": "block_count",
    "d_model": "embedding_length",
    "heads": "attention.head_count",
    "d_ffn": "feed_forward_length",
    "rope": "rope.dimension_count",
    "v_head": "attention.value_length",
    "rank": "attention.kv_lora_rank",
    "vocab": "vocab_size",
    "n_ctx_train": "context_length",
}
_FLOATS = {"rope_theta": "rope.freq_base", "eps": "attention.layer_norm_rms_epsilon"}
_KEY_LENGTH = "attention.key_length"  # nope + rope
# deepseek2 says the widths of a head with other suffixes; without them they are those of the cache.
_DEEPSEEK2 = {"v_head": "attention.value_length_mla", "nope": "attention.key_length_mla"}
_EXTRA = {
    "latent_eps": "attention.latent_layer_norm_epsilon",
    "attention": "attention.kind",
    "ffn": "ffn.kind",
    "tied": "tied",
}
_VERSION = "layout.version"
# Keys that llama.cpp's converter may write and that change nothing at these values.
_OFF: dict[str, tuple[Any, ...]] = {
    "attention.q_lora_rank": (0,),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
}


def spec_to_gguf(spec: ModelSpec, arch: str) -> dict[str, int | float | bool | str]:
    """Keys and values for the writer: int is u32, float is f32.

    What llama.cpp's `plm` cannot say is refused where its tensors are laid out (layouts.py).
    """
    if arch not in ARCHS:
        raise ValueError(f"no keys for the architecture {arch!r}")
    values = {**spec.to_dict(), "nope": spec.nope + spec.rope}
    names = _names(arch)
    keys: dict[str, int | float | bool | str] = {
        key: values[field] for field, key in names.items() if field not in _EXTRA
    }
    keys |= _derived(arch, values)
    if arch == LATENT_ARCH:
        keys |= {names[field]: values[field] for field in _EXTRA}
        keys[f"{arch}.{_VERSION}"] = LAYOUT_VERSION
    return keys


def _names(arch: str) -> dict[str, str]:
    """Field of the spec -> key. That of `nope` holds nope + rope."""
    suffixes = {**_SIZES, **_FLOATS, "nope": _KEY_LENGTH}
    suffixes |= _DEEPSEEK2 if arch == DEEPSEEK2_ARCH else {}
    suffixes |= _EXTRA if arch == LATENT_ARCH else {}
    return {field: f"{arch}.{suffix}" for field, suffix in suffixes.items()}


def _derived(arch: str, values: Mapping[str, Any]) -> dict[str, int]:
    """Keys that follow from the others, as llama.cpp's converter has them."""
    if arch != DEEPSEEK2_ARCH:
        return {f"{arch}.attention.head_count_kv": values["heads"]}
    row = values["rank"] + values["rope"]
    suffixes = {
        "attention.head_count_kv": 1,  # the cached row is one key for all heads
        "attention.key_length": row,
        "attention.value_length": values["rank"],
        "attention.q_lora_rank": 0,  # llama.cpp wants the key
        "leading_dense_block_count": values["layers"],  # no layer has experts
        "expert_count": 0,
        "expert_used_count": 0,
        "expert_shared_count": 0,
        "expert_feed_forward_length": 0,
    }
    return {f"{arch}.{suffix}": value for suffix, value in suffixes.items()}


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """The spec a GGUF file states. Raises SpecError naming the key that is missing or wrong."""
    metadata, where = file.metadata, file.path.name
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHS:
        raise UnsupportedError(
            f"{where} has the architecture {short(arch)}; {', '.join(ARCHS)} are supported"
        )
    if arch == DEEPSEEK2_ARCH and GATE_KEY not in metadata:
        raise UnsupportedError(
            f"{where}: expected a squared-ReLU model as plm-edge writes it, found another "
            f"{DEEPSEEK2_ARCH} (no key {GATE_KEY}); only PLM models are supported"
        )
    ours = arch == LATENT_ARCH
    names, version = _names(arch), f"{arch}.{_VERSION}"
    none = dict.fromkeys(("heads", "rank", "rope", "layers"), 0)
    required = {*names.values(), *_derived(arch, none), *([version] if ours else [])}
    _check_keys(metadata, arch, required, where)
    if ours and not _is(metadata[version], LAYOUT_VERSION):
        raise UnsupportedError(
            f"{where} has layout version {short(metadata[version])}, this program reads "
            f"{LAYOUT_VERSION}; export the model again"
        )
    values = {field: _plain(metadata[key]) for field, key in names.items()}
    if not ours:
        values |= {"latent_eps": values["eps"], "tied": "output.weight" not in file.tensors}
    if type(values["nope"]) is int and type(values["rope"]) is int:
        values["nope"] -= values["rope"]
    check_values(values, {**names, "tied": names.get("tied", "tied")}, where)
    for key, number in _derived(arch, values).items():
        if not _is(metadata[key], number):
            raise SpecError(f"{where}: {key} must be {number}, found {short(metadata[key])}")
    spec = ModelSpec(**values)
    _check_tokens(metadata, spec, where)
    return spec


def _check_keys(metadata: Mapping[str, Any], arch: str, required: set[str], where: str) -> None:
    missing = sorted(required - metadata.keys())
    if missing:
        raise SpecError(f"{where} lacks {', '.join(missing)}; export or convert the model again")
    for key, value in metadata.items():
        if not key.startswith(arch + ".") or key in required:
            continue
        off = _OFF.get(key.removeprefix(arch + "."), ())
        if isinstance(value, (np.ndarray, list)) or value not in off:
            raise SpecError(f"{where} sets {short(key)} = {short(value)}, which is not supported")


def _check_tokens(metadata: Mapping[str, Any], spec: ModelSpec, where: str) -> None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) > spec.vocab:
        raise FileFormatError(
            f"{where} lists {len(tokens)} tokens, its embedding has {spec.vocab} rows"
        )


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def _plain(value: Any) -> Any:
    """GGUF keeps floats as f32: back to the shortest decimal, so that 1e-6 is 1e-6 again."""
    if type(value) is not float:
        return value
    with np.errstate(over="ignore"):
        as_f32 = np.float32(value)
    return float(str(as_f32)) if as_f32 == value else value
