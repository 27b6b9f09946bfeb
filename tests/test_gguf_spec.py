"""The spec survives its way through GGUF keys, and no key is guessed or ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny import TINY_SHAPES

from plm_edge.errors import FileFormatError, PlmEdgeError, SpecError, UnsupportedError
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import LATENT_ARCH, PLM_ARCH, spec_from_gguf, spec_to_gguf
from plm_edge.spec import ModelSpec

PLAIN = TINY_SHAPES["plain"]
# What llama.cpp's converter writes for PLM-1.8B.
CONVERTED = {
    "plm.block_count": 32,
    "plm.context_length": 4096,
    "plm.embedding_length": 2048,
    "plm.feed_forward_length": 8192,
    "plm.attention.head_count": 16,
    "plm.attention.head_count_kv": 16,
    "plm.rope.freq_base": 100000.0,
    "plm.attention.layer_norm_rms_epsilon": 1e-6,
    "plm.vocab_size": 151936,
    "plm.attention.kv_lora_rank": 512,
    "plm.attention.key_length": 192,
    "plm.attention.value_length": 128,
    "plm.rope.dimension_count": 64,
}


def write(path: Path, arch: str, keys: dict[str, Any], *tensors: str) -> GgufFile:
    writer = gguf.GGUFWriter(path, arch)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in keys.items():
        add[type(value)](name, value)
    for name in ("token_embd.weight", *tensors):
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile.open(path)


@pytest.mark.parametrize("shape", TINY_SHAPES)
def test_latent_round_trip(tmp_path: Path, shape: str) -> None:
    spec = TINY_SHAPES[shape]
    keys = spec_to_gguf(spec, LATENT_ARCH)
    assert spec_from_gguf(write(tmp_path / "m.gguf", LATENT_ARCH, keys)) == spec


def test_plm_round_trip(tmp_path: Path) -> None:
    keys = spec_to_gguf(PLAIN, PLM_ARCH)
    assert spec_from_gguf(write(tmp_path / "m.gguf", PLM_ARCH, keys)) == PLAIN


def test_plm_as_llama_cpp_converts_it(tmp_path: Path) -> None:
    spec = spec_from_gguf(write(tmp_path / "m.gguf", PLM_ARCH, CONVERTED))
    assert spec == ModelSpec(
        layers=32, d_model=2048, heads=16, d_ffn=8192, nope=128, rope=64, v_head=128, rank=512,
        vocab=151936, n_ctx_train=4096, rope_theta=100000.0, eps=1e-6, latent_eps=1e-6, tied=True,
    )  # fmt: skip
    assert spec_to_gguf(spec, PLM_ARCH) == CONVERTED
    wide = write(tmp_path / "m.gguf", PLM_ARCH, CONVERTED, "output.weight")
    assert not spec_from_gguf(wide).tied


LATENT = spec_to_gguf(PLAIN, LATENT_ARCH)
FAULTS: dict[str, tuple[str, dict[str, Any], type[PlmEdgeError], str]] = {
    "llama": ("llama", {}, UnsupportedError, "architecture 'llama'"),
    "width 0": (PLM_ARCH, {"plm.embedding_length": 0}, SpecError, "plm.embedding_length"),
    "width is text": (PLM_ARCH, {"plm.embedding_length": "2048"}, SpecError, "embedding_length"),
    "heads per layer": (PLM_ARCH, {"plm.attention.head_count": [16, 8]}, SpecError, "head_count"),
    "kv heads per layer": (
        PLM_ARCH, {"plm.attention.head_count_kv": [16, 8]}, SpecError, "head_count_kv",
    ),
    "odd rope": (PLM_ARCH, {"plm.rope.dimension_count": 63}, SpecError, "must be even"),
    "rope takes all": (PLM_ARCH, {"plm.rope.dimension_count": 192}, SpecError, "key_length"),
    "fewer kv heads": (PLM_ARCH, {"plm.attention.head_count_kv": 1}, SpecError, "must be 16"),
    "low-rank query": (PLM_ARCH, {"plm.attention.q_lora_rank": 512}, SpecError, "q_lora_rank"),
    "scaled rope": (PLM_ARCH, {"plm.rope.scaling.type": "yarn"}, SpecError, "rope.scaling.type"),
    "experts": (PLM_ARCH, {"plm.expert_count": 8}, SpecError, "expert_count"),
    "unknown key": (PLM_ARCH, {"plm.new_thing": [*range(99)]}, SpecError, "new_thing"),
    "eps 0": (PLM_ARCH, {"plm.attention.layer_norm_rms_epsilon": 0.0}, SpecError, "epsilon"),
    "theta infinite": (PLM_ARCH, {"plm.rope.freq_base": float("inf")}, SpecError, "freq_base"),
    "too many tokens": (
        PLM_ARCH, {"plm.vocab_size": 2, "tokenizer.ggml.tokens": ["a", "b", "c"]},
        FileFormatError, "lists 3 tokens",
    ),
    "layout of the future": (
        LATENT_ARCH, {f"{LATENT_ARCH}.layout.version": 2}, UnsupportedError, "layout version 2",
    ),
    "other attention": (
        LATENT_ARCH, {f"{LATENT_ARCH}.attention.kind": "gqa"}, SpecError, "must be 'mla'",
    ),
    "tied is a number": (LATENT_ARCH, {f"{LATENT_ARCH}.tied": 1}, SpecError, "true or false"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path: Path, name: str) -> None:
    arch, change, kind, part = FAULTS[name]
    base = LATENT if arch == LATENT_ARCH else CONVERTED
    file = write(tmp_path / "m.gguf", arch, {**base, **change})
    with pytest.raises(kind, match=part) as error:
        spec_from_gguf(file)
    assert "\n" not in str(error.value)


def test_architecture_as_an_array(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", PLM_ARCH, CONVERTED)
    file.metadata["general.architecture"] = np.array([1, 2])
    with pytest.raises(UnsupportedError, match="architecture array"):
        spec_from_gguf(file)


@pytest.mark.parametrize(("arch", "keys"), [(PLM_ARCH, CONVERTED), (LATENT_ARCH, LATENT)])
def test_each_key_is_needed(tmp_path: Path, arch: str, keys: dict[str, Any]) -> None:
    for name in keys:
        rest = {k: v for k, v in keys.items() if k != name}
        with pytest.raises(SpecError, match=f"lacks {name}"):
            spec_from_gguf(write(tmp_path / "m.gguf", arch, rest))
