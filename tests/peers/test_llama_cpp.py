"""The reference against llama.cpp, an implementation that is not ours.

The files are written here with the public gguf package and not with our own writer, so that a
mistake which our writer and our reader share could not hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from llama_peer import MISSING, llama_logits
from metrics import close, relative_error
from mistakes import MISTAKES
from numpy.typing import NDArray
from tiny import TINY_SHAPES, tiny_weights

from plm_edge.reference import Reference
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

pytest.importorskip("llama_cpp", reason=MISSING)

Llama = Callable[[str], NDArray[np.float32]]

# F32 weights and an F32 cache in llama.cpp against float64: 3e-7 to 7e-7 seen.
TOLERANCE = 5e-6


def peer_shape(name: str) -> ModelSpec:
    """A tiny shape with an eps that can be seen. llama.cpp knows one eps for every norm."""
    return replace(TINY_SHAPES[name], eps=1e-2, latent_eps=1e-2)


# Not "untied": llama.cpp's `plm` has no head of its own. Only the last is PLM's own shape.
SHAPES = {
    name: peer_shape(name) for name in ("plain", "odd", "wide_rope", "wide_value", "blocks", "plm")
}
# ggml rotates at an offset of `nope` values and aborts where that is odd (assert in its rope).
SHAPES["one_head"] = replace(peer_shape("one_head"), nope=6)


def weights_of(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Canonical name -> F32 values."""
    by_hf_name = tiny_weights(spec, seed=7)
    return {name: by_hf_name[info.hf_name] for name, info in tensor_table(spec).items()}


def ids_of(spec: ModelSpec) -> list[int]:
    ids: list[int] = np.random.default_rng(5).integers(0, spec.vocab, 40).tolist()
    return [*ids, spec.vocab - 1, 0]


def write_gguf(path: Path, spec: ModelSpec, weights: dict[str, NDArray[np.float32]]) -> Path:
    """A `plm` file with the keys that llama.cpp's converter writes, and a vocabulary of bytes."""
    writer = gguf.GGUFWriter(path, "plm")
    writer.add_context_length(spec.n_ctx_train)
    writer.add_embedding_length(spec.d_model)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.d_ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.heads)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.eps)
    writer.add_vocab_size(spec.vocab)
    writer.add_kv_lora_rank(spec.rank)
    writer.add_key_length(spec.nope + spec.rope)
    writer.add_value_length(spec.v_head)
    writer.add_rope_dimension_count(spec.rope)
    letters = [chr(256 + k) for k in range(256)]
    tokens = letters + [f"[PAD{k}]" for k in range(256, spec.vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.UNUSED] * (spec.vocab - 256)
    writer.add_token_types(types)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_eos_token_id(spec.vocab - 1)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """A function: name of a shape -> llama.cpp's logits for `ids_of` it, computed once."""
    folder = tmp_path_factory.mktemp("peer")

    @cache
    def logits(name: str) -> NDArray[np.float32]:
        spec = SHAPES[name]
        path = write_gguf(folder / f"{name}.gguf", spec, weights_of(spec))
        return llama_logits(path, ids_of(spec))

    return logits


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("absorbed", [False, True])
def test_reference_equals_llama_cpp(llama: Llama, name: str, absorbed: bool) -> None:
    spec = SHAPES[name]
    got = Reference(spec, weights_of(spec)).logits(ids_of(spec), absorbed)
    close(got, llama(name), TOLERANCE)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_show(llama: Llama, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    spec = SHAPES["wide_rope"]
    monkeypatch.setattr(*MISTAKES[mistake])
    got = Reference(spec, weights_of(spec)).logits(ids_of(spec))
    assert relative_error(got, llama("wide_rope")) > 1e-2


@pytest.mark.parametrize("field", ["eps", "latent_eps", "rope_theta"])
def test_another_value_in_the_spec_would_show(llama: Llama, field: str) -> None:
    spec = SHAPES["wide_rope"]
    bent = ModelSpec.from_dict(spec.to_dict() | {field: spec.to_dict()[field] / 2})
    got = Reference(bent, weights_of(spec)).logits(ids_of(spec))
    assert relative_error(got, llama("wide_rope")) > 1e-3
