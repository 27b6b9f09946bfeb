"""The keys of config.json that change nothing, and the values at which others change nothing.

Taken from PretrainedConfig (transformers 4.46 and 5.23), GenerationConfig, DeepseekV2Config and
DeepseekV3Config, from which PLM's configuration descends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from plm_edge.errors import short


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Read by ModelSpec.from_config itself.
USED = _names("""
    architectures model_type hidden_size num_hidden_layers num_attention_heads
    num_key_value_heads intermediate_size qk_nope_head_dim qk_rope_head_dim v_head_dim
    kv_lora_rank vocab_size max_position_embeddings rope_theta rope_parameters rms_norm_eps
    tie_word_embeddings hidden_act head_dim qk_head_dim
""")

# Whatever their value, the logits stay: names, training, defaults of sampling, token ids (the
# tokenizer's own files decide those). auto_map names code that is never imported.
COSMETIC = _names("""
    transformers_version torch_dtype dtype use_cache initializer_range _name_or_path
    name_or_path auto_map bos_token_id eos_token_id pad_token_id sep_token_id
    decoder_start_token_id tokenizer_class task_specific_params finetuning_task _commit_hash
    xla_device torchscript use_bfloat16 tf_legacy_loss return_dict output_hidden_states
    output_attentions attention_dropout attn_implementation _attn_implementation
    _attn_implementation_autoset _attn_implementation_internal _experts_implementation
    experts_implementation _output_attentions keys_to_ignore_at_inference tie_last_hidden_states
    is_decoder aux_loss_alpha seq_aux router_aux_loss_coef max_length max_new_tokens min_length
    min_new_tokens do_sample early_stopping max_time num_beams num_beam_groups temperature top_k
    top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty diversity_penalty
    length_penalty num_return_sequences output_scores output_logits return_dict_in_generate
    remove_invalid_values renormalize_logits cache_implementation low_memory
    generation_kwargs gradient_checkpointing
""")

# key -> values at which its feature is off; anything else is refused. null is always off.
OFF: dict[str, tuple[Any, ...]] = {
    "q_lora_rank": (),
    "rope_scaling": ({}, {"type": "default"}, {"rope_type": "default"}),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "n_routed_experts": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_shared_experts": (0,),
    "num_nextn_predict_layers": (0,),
    "num_mtp_layers": (0,),
    "pretraining_tp": (0, 1),
    "ep_size": (0, 1),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
    "quantization_config": (),
    "problem_type": (),
    "prefix": ("",),
    "num_labels": (2,),
    "id2label": ({"0": "LABEL_0", "1": "LABEL_1"},),
    "label2id": ({"LABEL_0": 0, "LABEL_1": 1},),
    # parts of generation that would forbid or force tokens
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "bad_words_ids": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "constraints": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0,),
    "watermarking_config": (),
    "token_healing": (False,),
    "stop_strings": (),
}

# Details of the mixture of experts: they describe nothing while there are no experts.
EXPERT_SWITCHES = ("n_routed_experts", "num_experts", "num_local_experts", "n_shared_experts")
EXPERT_DETAILS = _names("""
    moe_intermediate_size num_experts_per_tok first_k_dense_replace moe_layer_freq n_group
    topk_group topk_method norm_topk_prob routed_scaling_factor scoring_func
    output_router_logits
""")

UNKNOWN = "which is unknown"


def refused_keys(config: Mapping[str, Any], allow_keys: Collection[str]) -> list[str]:
    """One phrase for each key that is unknown or switched on, in the order of the file.

    The phrase of an unknown one ends in UNKNOWN.

    `allow_keys` can excuse an unknown key, never one that is known to change the logits.
    """
    experts = any(not _is_off(key, config[key]) for key in EXPERT_SWITCHES if key in config)
    refused = []
    for key, value in config.items():
        if key in USED or key in COSMETIC:
            continue
        if key == "rope_interleave":
            if value is not True:
                refused.append(
                    f"rope_interleave = {short(value, 40)}, which must be true or absent"
                )
        elif key in EXPERT_DETAILS:
            if experts:
                refused.append(f"{key} = {short(value, 40)}, a part of mixture of experts")
        elif key in OFF:
            if not _is_off(key, value):
                refused.append(f"{key} = {short(value, 40)}, which is not supported")
        elif key not in allow_keys:
            name = key if key.isidentifier() else short(key, 40)
            refused.append(f"{name} = {short(value, 40)}, {UNKNOWN}")
    return refused


def _is_off(key: str, value: Any) -> bool:
    """True for null and the values of the table; false is not 0 here, 1 is 1.0."""
    if value is None:
        return True
    same = (off for off in OFF[key] if isinstance(value, bool) == isinstance(off, bool))
    return any(value == off for off in same)
