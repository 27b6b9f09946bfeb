"""llama.cpp runs a synth model in layout plm, with its made-up vocabulary."""

from __future__ import annotations

import pytest
from llama_peer import MISSING, llama_logits
from metrics import close, relative_error

from plm_edge.exporters.synth import synth
from plm_edge.exporters.synth_vocabulary import made_up_vocabulary
from plm_edge.gguf_weights import GgufWeights
from plm_edge.reference import Reference
from plm_edge.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason=MISSING)

TEXT = "there was a model with idle units, 3 of 4 in each layer!\n\tAnd then some é 日本 more."


def test_llama_cpp_agrees_with_the_reference_and_the_tokenizer(tmp_path):
    synth("plm-tiny", tmp_path / "out", quant="F32", layout="plm")
    path = tmp_path / "out" / "model.gguf"
    tokenizer = Tokenizer(made_up_vocabulary(200))
    ids = tokenizer.encode(TEXT)
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert vocabulary.tokenize(TEXT.encode(), add_bos=False, special=False) == ids
    assert vocabulary.token_eos() == tokenizer.eos_id
    reference = Reference.from_checkpoint(GgufWeights(path))
    got = llama_logits(path, ids)
    close(got, reference.logits(ids), 5e-6)  # float32 sums of some hundred values
    assert relative_error(got, reference.logits(ids[::-1])) > 1e-2
