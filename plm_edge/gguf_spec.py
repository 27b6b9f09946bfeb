"""ModelSpec to and from the keys of a GGUF file, for the architectures `plm` and our own.

Both use llama.cpp's suffixes (gguf-py, constants.py). Ours says besides what llama.cpp's graph of
`plm` takes for granted: the kinds of the layers, the eps of the latent's norm, whether the head is
tied, and the version of its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from plm_edge.errors import FileFormatError, SpecError, UnsupportedError, short
from plm_edge.gguf_file import GgufFile
from plm_edge.spec import ModelSpec, check_values

PLM_ARCH = "plm"
LATENT_ARCH = "plm-edge-latent"
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
_KV_HEADS = "attention.head_count_kv"
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
    values = spec.to_dict()
    keys: dict[str, int | float | bool | str] = {
        f"{arch}.{suffix}": values[field] for field, suffix in (_SIZES | _FLOATS).items()
    }
    keys[f"{arch}.{_KEY_LENGTH}"] = spec.nope + spec.rope
    keys[f"{arch}.{_KV_HEADS}"] = spec.heads
    if arch == LATENT_ARCH:
        keys |= {f"{arch}.{suffix}": values[field] for field, suffix in _EXTRA.items()}
        keys[f"{arch}.{_VERSION}"] = LAYOUT_VERSION
    elif arch != PLM_ARCH:
        raise ValueError(f"no keys for the architecture {arch!r}")
    return keys


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """The spec a GGUF file states. Raises SpecError naming the key that is missing or wrong."""
    metadata, where = file.metadata, file.path.name
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in (PLM_ARCH, LATENT_ARCH):
        raise UnsupportedError(
            f"{where} has the architecture {short(arch)}; "
            f"{PLM_ARCH} and {LATENT_ARCH} are supported"
        )
    ours = arch == LATENT_ARCH
    names = {field: f"{arch}.{suffix}" for field, suffix in (_SIZES | _FLOATS).items()}
    names |= {field: f"{arch}.{suffix}" for field, suffix in _EXTRA.items()} if ours else {}
    names["nope"] = f"{arch}.{_KEY_LENGTH}"
    kv_heads, version = f"{arch}.{_KV_HEADS}", f"{arch}.{_VERSION}"
    required = {*names.values(), kv_heads, *([version] if ours else [])}
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
    if not _is(metadata[kv_heads], values["heads"]):
        found = short(metadata[kv_heads])
        raise SpecError(f"{where}: {kv_heads} must be {values['heads']}, found {found}")
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
