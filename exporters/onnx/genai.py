"""genai_config.json: what onnxruntime-genai must know to chat with model.onnx.

That package knows one head size for keys and values. A cached row is one head of them: half of the
row is its key, the other half its value (plm_edge/onnx_names.py). The graph knows better; the
package only hands past halves in and takes present ones out.
"""

from __future__ import annotations

import json

from plm_edge import onnx_names as names
from plm_edge.spec import ModelSpec
from plm_edge.tokenizer.vocabulary import Vocabulary

CONFIG = "genai_config.json"


def genai_config(spec: ModelSpec, vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name and content of the file; nothing where a row has no two equal halves."""
    first, second = names.halves(spec.rank + spec.rope)
    if first != second:
        return {}
    (key, value), (new_key, new_value) = (
        [half.replace(".0.", ".%d.") for half in ends(0)] for ends in (names.past, names.present)
    )
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": names.MODEL,
        "head_size": first,
        "hidden_size": spec.d_model,
        "inputs": {
            "input_ids": names.IDS,
            "attention_mask": names.MASK,
            "position_ids": names.POSITIONS,
            "past_key_names": key,
            "past_value_names": value,
        },
        "outputs": {
            "logits": names.LOGITS,
            "present_key_names": new_key,
            "present_value_names": new_value,
        },
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": 1,
    }
    stops = sorted(vocabulary.stop_ids)
    model = {
        "type": "llama",  # a decoder with these inputs and outputs
        "vocab_size": spec.vocab,
        "context_length": spec.n_ctx_train,
        "bos_token_id": stops[0] if vocabulary.bos_id is None else vocabulary.bos_id,
        "eos_token_id": stops,
        "pad_token_id": stops[0],
        "decoder": decoder,
    }
    # Its shared buffer holds the whole context at once, of which the graph would read all.
    search = {"max_length": spec.n_ctx_train, "past_present_share_buffer": False}
    return {CONFIG: (json.dumps({"model": model, "search": search}, indent=1) + "\n").encode()}
