"""ModelSpec: the only reader of config.json. What it does not know, it refuses by name.

An ignored key is a wrong model that still talks, so each key is used, or known to change nothing
(plm_edge/config_keys.py), or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from plm_edge.config_keys import UNKNOWN, refused_keys
from plm_edge.errors import SpecError, short

# ModelSpec field -> (key of config.json, largest value). The caps keep every product of sizes that
# the table of tensors forms, in bytes and over all layers, below 2^63.
_SIZES = {
    "layers": ("num_hidden_layers", 1024),
    "d_model": ("hidden_size", 1 << 16),
    "heads": ("num_attention_heads", 1024),
    "d_ffn": ("intermediate_size", 1 << 20),
    "nope": ("qk_nope_head_dim", 4096),
    "rope": ("qk_rope_head_dim", 4096),
    "v_head": ("v_head_dim", 4096),
    "rank": ("kv_lora_rank", 1 << 16),
    "vocab": ("vocab_size", 1 << 22),
    "n_ctx_train": ("max_position_embeddings", 1 << 24),
}
# Hugging Face's MLA models build kv_a_layernorm with its class default, whatever rms_norm_eps is.
HF_LATENT_EPS = 1e-6
_CURE = "export a PLM-style checkpoint"
_OR_ALLOW = ", or pass --allow-key NAME for an unknown key that changes nothing"


@dataclass(frozen=True)
class ModelSpec:
    """The sizes and conventions of one model. Widths are counted in values."""

    layers: int
    d_model: int
    heads: int
    d_ffn: int  # units of the feed-forward
    nope: int  # per head: width of the query and key that is not rotated
    rope: int  # per head: rotated width, pairs (2i, 2i+1); the key's is shared by all heads
    v_head: int  # per head: width of the value
    rank: int  # width of the latent
    vocab: int  # rows of the embedding; the tokenizer may know fewer
    n_ctx_train: int  # tokens
    rope_theta: float
    eps: float  # of every RMSNorm but the latent's
    latent_eps: float  # of the latent's: 1e-6 in Hugging Face, eps in llama.cpp
    tied: bool  # the head is the embedding
    attention: str = "mla"
    ffn: str = "relu2"

    def __post_init__(self) -> None:
        check_values(asdict(self), {f.name: f.name for f in fields(self)}, "the model spec")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], allow_keys: Collection[str] = frozenset()
    ) -> ModelSpec:
        """Read config.json. Raises SpecError naming the key that is missing, wrong or unknown.

        `allow_keys` are unknown keys the user declares to change nothing.
        """
        _check_architecture(config)
        names = {field: key for field, (key, _) in _SIZES.items()}
        names |= {"eps": "rms_norm_eps", "rope_theta": "rope_theta", "tied": "tie_word_embeddings"}
        values = {field: config.get(key) for field, key in names.items()}
        values["rope_theta"] = _rope_theta(config)
        missing = [key for field, key in names.items() if values[field] is None]
        if missing:
            cure = ""
            if "tie_word_embeddings" in missing:
                cure = ' Write "tie_word_embeddings": true if there is no lm_head.weight'
            raise SpecError(
                f"config.json lacks {', '.join(missing)}; is this a PLM checkpoint?{cure}"
            )
        values["latent_eps"] = HF_LATENT_EPS
        check_values(values, names, "config.json")
        _check_heads(config, values)
        refused = refused_keys(config, allow_keys)
        if refused:
            cure = _CURE + (_OR_ALLOW if any(what.endswith(UNKNOWN) for what in refused) else "")
            raise SpecError(f"config.json sets {'; '.join(refused)}: {cure}")
        return cls(**_floats(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`, as strict as `from_config`."""
        names = {f.name: f.name for f in fields(cls)}
        if set(d) != set(names):
            raise SpecError(
                f"the model spec needs exactly the keys {sorted(names)}; "
                f"missing {sorted(set(names) - set(d))}, unknown {sorted(set(d) - set(names))}"
            )
        check_values(d, names, "the model spec")
        return cls(**_floats(d))


def check_values(values: Mapping[str, Any], names: Mapping[str, str], where: str) -> None:
    """Range-check the fields of a spec; `names` are the keys that `where` uses for them."""
    for field, (_, cap) in _SIZES.items():
        value = values[field]
        if type(value) is not int or not 1 <= value <= cap:
            raise SpecError(
                f"{where}: {names[field]} must be an integer 1..{cap}, found {short(value)}"
            )
    if values["rope"] % 2:
        raise SpecError(f"{where}: {names['rope']} must be even, found {values['rope']}")
    for field, low, high in (
        ("rope_theta", 1.0, 1e12),
        ("eps", 0.0, 0.1),
        ("latent_eps", 0.0, 0.1),
    ):
        value = values[field]
        if type(value) not in (int, float) or not low < value <= high:  # NaN is not
            name = names.get(field, field)
            raise SpecError(
                f"{where}: {name} must be a number in ({low:g}, {high:g}], found {short(value)}"
            )
    if type(values["tied"]) is not bool:
        raise SpecError(
            f"{where}: {names['tied']} must be true or false, found {short(values['tied'])}"
        )
    for field, known in (("attention", "mla"), ("ffn", "relu2")):
        if values.get(field, known) != known:
            raise SpecError(
                f"{where}: {names[field]} must be {known!r}, found {short(values[field])}"
            )


def _floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON writes 100000 as well as 100000.0."""
    return {
        k: float(v) if k in ("rope_theta", "eps", "latent_eps") else v for k, v in values.items()
    }


def _check_architecture(config: Mapping[str, Any]) -> None:
    if config.get("model_type") != "plm":
        raise SpecError(
            f"config.json: model_type must be 'plm', found {short(config.get('model_type'))}; "
            "only PLM-style checkpoints can be exported"
        )
    if config.get("architectures", ["PLMForCausalLM"]) != ["PLMForCausalLM"]:
        raise SpecError(
            "config.json: architectures must be ['PLMForCausalLM'], "
            f"found {short(config['architectures'])}"
        )
    if config.get("hidden_act") != "relu2":
        raise SpecError(
            f"config.json: hidden_act must be 'relu2', found {short(config.get('hidden_act'))}; "
            "other activations are not supported"
        )


def _rope_theta(config: Mapping[str, Any]) -> Any:
    """From `rope_theta`, or from `rope_parameters` as transformers 5 writes it; both must agree."""
    theta = config.get("rope_theta")
    parameters = config.get("rope_parameters")
    if parameters is None:
        return theta
    if not isinstance(parameters, dict):
        raise SpecError(
            f"config.json: rope_parameters must be an object, found {short(parameters)}"
        )
    if parameters.get("rope_type", "default") != "default":
        raise SpecError(
            "config.json: rope_parameters.rope_type must be 'default', "
            f"found {short(parameters['rope_type'])}; exporting without it would change the logits"
        )
    off = {"type": "default", "partial_rotary_factor": 1.0, "factor": 1.0}
    for key, value in parameters.items():
        if key not in ("rope_type", "rope_theta") and value is not None and value != off.get(key):
            raise SpecError(
                f"config.json: rope_parameters has {short(key, 40)} = {short(value)}, not supported"
            )
    inner = parameters.get("rope_theta")
    if theta is not None and inner is not None and theta != inner:
        raise SpecError(
            f"config.json: rope_theta is {short(theta)} but rope_parameters says {short(inner)}"
        )
    return theta if inner is None else inner


def _check_heads(config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Keys that repeat what other keys say: they may be absent or null, but not differ."""
    qk = values["nope"] + values["rope"]
    repeats = {
        "num_key_value_heads": (values["heads"],),
        "qk_head_dim": (qk,),
        # No Hugging Face MLA model reads head_dim; what its writers put there differs by version.
        "head_dim": (values["rope"], qk, values["d_model"] // values["heads"]),
    }
    for key, allowed in repeats.items():
        value = config.get(key)
        if value is not None and (type(value) is not int or value not in allowed):
            raise SpecError(f"config.json: {key} must be {allowed[0]}, found {short(value)}")
