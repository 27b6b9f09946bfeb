"""config.json is read strictly: every key is used, changes nothing, or is refused by name."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from tiny import TINY_SHAPES, config_of

from plm_edge.errors import SpecError
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TENSORS_GLOBAL, tensor_table

PLM = {
    "architectures": ["PLMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_plm.PLMConfig",
        "AutoModelForCausalLM": "modeling_plm.PLMForCausalLM",
    },
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "relu2",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "kv_lora_rank": 512,
    "max_position_embeddings": 4096,
    "model_type": "plm",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 151936,
}

# Keys of DeepseekV2Config, DeepseekV3Config and PretrainedConfig: (key, off, on).
SWITCHES: list[tuple[str, Any, Any]] = [
    ("attention_bias", False, True),
    ("mlp_bias", False, True),
    ("q_lora_rank", None, 1536),
    ("rope_scaling", None, {"type": "yarn", "factor": 40}),
    ("rope_interleave", True, False),
    ("n_routed_experts", None, 64),
    ("n_routed_experts", 0, 256),
    ("num_experts", 0, 64),
    ("num_local_experts", 0, 64),
    ("n_shared_experts", None, 2),
    ("num_nextn_predict_layers", 0, 1),
    ("num_mtp_layers", 0, 1),
    ("pretraining_tp", 1, 2),
    ("ep_size", 1, 8),
    ("is_encoder_decoder", False, True),
    ("add_cross_attention", False, True),
    ("cross_attention_hidden_size", None, 64),
    ("tie_encoder_decoder", False, True),
    ("chunk_size_feed_forward", 0, 8),
    ("pruned_heads", {}, {"0": [1]}),
    ("per_layer_config", None, {"0": {"hidden_act": "silu"}}),
    ("quantization_config", None, {"quant_method": "fp8"}),
    ("problem_type", None, "regression"),
    ("prefix", None, "Answer: "),
    ("num_labels", 2, 3),
    ("id2label", {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "no"}),
    ("label2id", {"LABEL_0": 0, "LABEL_1": 1}, {"no": 0}),
    ("bad_words_ids", None, [[1]]),
    ("suppress_tokens", None, [1]),
    ("forced_bos_token_id", None, 1),
    ("no_repeat_ngram_size", 0, 3),
    ("sequence_bias", None, [[[1], 2.0]]),
    ("head_dim", 64, 100),
    ("head_dim", 192, 100),
    ("qk_head_dim", 192, 128),
    ("num_key_value_heads", 16, 4),
    ("hidden_act", "relu2", "silu"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 100000}, {"rope_type": "yarn"}),
    ("rope_parameters", None, {"rope_type": "default", "factor": 4.0}),
    ("rope_parameters", None, {"rope_type": "default", "rope_theta": 10000}),
]
EXPERT_DETAILS: dict[str, Any] = {
    "moe_intermediate_size": 1407,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "output_router_logits": True,
}
COSMETIC: dict[str, Any] = {
    "_name_or_path": "/somebody/else",
    "aux_loss_alpha": 0.001,
    "attn_implementation": "sdpa",
    "dtype": "bfloat16",
    "is_decoder": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "return_dict": True,
    "seq_aux": True,
    "tokenizer_class": "Qwen2Tokenizer",
    "temperature": 0.7,
    "torchscript": False,
}


def test_plm_itself() -> None:
    spec = ModelSpec.from_config(PLM)
    assert (spec.layers, spec.d_model, spec.heads, spec.d_ffn) == (32, 2048, 16, 8192)
    assert (spec.nope, spec.rope, spec.v_head, spec.rank) == (128, 64, 128, 512)
    assert (spec.vocab, spec.n_ctx_train, spec.tied) == (151936, 4096, True)
    assert (spec.rope_theta, spec.eps, spec.latent_eps) == (100000.0, 1e-6, 1e-6)
    assert isinstance(spec.rope_theta, float)
    table = tensor_table(spec)
    assert len(table) == 290
    assert sum(math.prod(info.shape) for info in table.values()) == 1_825_458_176
    assert table["blk.31.attn_kv_b.weight"].shape == (16 * (128 + 128), 512)
    assert table["blk.0.attn_q.weight"].shape == (16 * (128 + 64), 2048)


def test_latent_eps_is_the_class_default_of_hugging_face() -> None:
    spec = ModelSpec.from_config(PLM | {"rms_norm_eps": 1e-5})
    assert (spec.eps, spec.latent_eps) == (1e-5, 1e-6)


@pytest.mark.parametrize(("key", "off", "on"), SWITCHES)
def test_each_switch_is_neutral_off_and_refused_on(key: str, off: Any, on: Any) -> None:
    assert ModelSpec.from_config(PLM | {key: off}) == ModelSpec.from_config(PLM)
    with pytest.raises(SpecError, match=key) as error:
        ModelSpec.from_config(PLM | {key: on})
    assert "\n" not in str(error.value)
    with pytest.raises(SpecError, match=key):  # known to matter: --allow-key is no way out
        ModelSpec.from_config(PLM | {key: on}, allow_keys={key})


@pytest.mark.parametrize("key", EXPERT_DETAILS)
def test_details_of_experts_matter_only_with_experts(key: str) -> None:
    config = PLM | {key: EXPERT_DETAILS[key]}
    assert ModelSpec.from_config(config) == ModelSpec.from_config(PLM)
    with pytest.raises(SpecError, match=key):
        ModelSpec.from_config(config | {"n_routed_experts": 64})


def test_all_neutral_keys_at_once() -> None:
    off = {key: value for key, value, _ in SWITCHES}
    assert ModelSpec.from_config(PLM | off | EXPERT_DETAILS | COSMETIC) == ModelSpec.from_config(
        PLM
    )


def test_false_is_not_zero_and_true_is_not_one() -> None:
    with pytest.raises(SpecError, match="pretraining_tp = True"):
        ModelSpec.from_config(PLM | {"pretraining_tp": True})


def test_rope_parameters_alone_as_transformers_5_writes() -> None:
    config = PLM | {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
    del config["rope_theta"], config["rope_scaling"]
    assert ModelSpec.from_config(config) == ModelSpec.from_config(PLM)


def test_unknown_key_is_refused_unless_allowed() -> None:
    with pytest.raises(SpecError, match=r"final_logit_softcapping = 30\.0, which is unknown"):
        ModelSpec.from_config(PLM | {"final_logit_softcapping": 30.0})
    with pytest.raises(SpecError, match=re.escape(r"'two\nlines' = 1, which is unknown")):
        ModelSpec.from_config(PLM | {"two\nlines": 1})
    allowed = ModelSpec.from_config(PLM | {"my_note": "x"}, allow_keys={"my_note"})
    assert allowed == ModelSpec.from_config(PLM)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "kv_lora_rank", "rope_theta", "rms_norm_eps"]
)
def test_missing_key(key: str) -> None:
    with pytest.raises(SpecError, match=f"lacks {key}"):
        ModelSpec.from_config({k: v for k, v in PLM.items() if k != key})


def test_tying_is_never_assumed() -> None:
    config = {k: v for k, v in PLM.items() if k != "tie_word_embeddings"}
    with pytest.raises(SpecError, match=r'lacks tie_word_embeddings.*Write "tie_word_embeddings"'):
        ModelSpec.from_config(config)


@pytest.mark.parametrize("value", [0, -1, 2**63, 1.5, 64.0, "64", True, [64], None])
@pytest.mark.parametrize("key", ["hidden_size", "qk_nope_head_dim", "vocab_size"])
def test_impossible_sizes(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=key):
        ModelSpec.from_config(PLM | {key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("qk_rope_head_dim", 63, "must be even"),
        ("model_type", "deepseek_v2", "model_type must be 'plm'"),
        ("architectures", ["LlamaForCausalLM"], "architectures must be"),
        ("tie_word_embeddings", 1, "must be true or false"),
        ("rope_theta", "1e5", "must be a number"),
        ("rope_theta", math.inf, "must be a number"),
        ("rope_theta", math.nan, "must be a number"),
        ("rope_theta", 10**400, "must be a number"),
        ("rms_norm_eps", 0.0, "must be a number"),
        ("rms_norm_eps", True, "must be a number"),
        ("rope_parameters", [1], "must be an object"),
        ("num_key_value_heads", 16.0, "num_key_value_heads must be 16"),
        ("rope_interleave", None, "must be true or absent"),
    ],
)
def test_wrong_values(key: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        ModelSpec.from_config(PLM | {key: value})
    assert key in str(error.value)


def test_dict_round_trip_and_its_strictness() -> None:
    for spec in TINY_SHAPES.values():
        assert ModelSpec.from_dict(spec.to_dict()) == spec
        assert ModelSpec.from_config(config_of(spec)) == spec
    good = TINY_SHAPES["plain"].to_dict()
    for bad in (good | {"x": 1}, {"layers": 2}, good | {"rank": 0}, good | {"ffn": "swiglu"}):
        with pytest.raises(SpecError):
            ModelSpec.from_dict(bad)


def test_a_spec_cannot_be_made_wrong() -> None:
    with pytest.raises(SpecError, match="heads"):
        ModelSpec(**(TINY_SHAPES["plain"].to_dict() | {"heads": 0}))


def test_the_caps_keep_every_product_below_2_to_63() -> None:
    largest = ModelSpec(
        layers=1024, d_model=1 << 16, heads=1024, d_ffn=1 << 20, nope=4096, rope=4096, v_head=4096,
        rank=1 << 16, vocab=1 << 22, n_ctx_train=1 << 24, rope_theta=1e12, eps=0.1, latent_eps=0.1,
        tied=False,
    )  # fmt: skip
    values = sum(math.prod(info.shape) for info in tensor_table(largest).values())
    cache = largest.layers * largest.n_ctx_train * (largest.rank + largest.rope)
    assert 8 * max(values, cache) < 1 << 63


def test_the_table_names_each_tensor_once() -> None:
    for spec in TINY_SHAPES.values():
        table = tensor_table(spec)
        assert len({info.hf_name for info in table.values()}) == len(table)
        assert ("output.weight" in table) is not spec.tied
        assert next(iter(table)) == TENSORS_GLOBAL[0].name
        for name, info in table.items():
            assert info.quantize is (len(info.shape) == 2), name
