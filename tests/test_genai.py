"""The unmodified onnxruntime-genai package chats with an export, its cache still latent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
og = pytest.importorskip("onnxruntime_genai")

from docs_text import ROOT, blocks  # noqa: E402
from metrics import equal_greedy  # noqa: E402
from onnx_run import Growing  # noqa: E402

from plm_edge.bundle import verify_bundle  # noqa: E402
from plm_edge.exporters import Files, export  # noqa: E402
from plm_edge.runtime import load  # noqa: E402

TOKENS = 64
# Between the first two logits, of their range: below it a token is undecided. The two graphs sum in
# another order, and where activations are rounded to 8 bits that moves logits by up to 6e-3.
GAP = 6e-3
PROMPTS = (
    "Tell me a tale about a fox",
    "Once upon a time there was a king who had three daughters, and",
    "Naïve café: 12 x 34 = ?\n\nÜber den Fluß, 狐狸",
)


@pytest.fixture(scope="module", params=["F32", "Q8_0", "Q4_0"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genai") / "out"
    export("demo", out=out, quant=request.param, files=Files("onnx"))
    return out


def test_greedy_tokens_are_those_of_our_session(bundle: Path) -> None:
    verify_bundle(bundle)
    model = og.Model(str(bundle))
    tokenizer = og.Tokenizer(model)
    with load(bundle, "onnx") as session:
        for text in PROMPTS:
            asked = json.dumps([{"role": "user", "content": text}])
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)
            ids = [int(i) for i in tokenizer.encode(prompt)]
            assert ids == session.tokenizer.encode(prompt, specials=True)
            theirs = generated(model, ids)
            session.reset()
            rows = [session.prefill(ids), *(session.step(token) for token in theirs)][:-1]
            equal, undecided = equal_greedy(np.array(rows), theirs, GAP)
            assert equal >= min(undecided, len(theirs))
            if text == PROMPTS[0]:
                assert equal == TOKENS
            graph = Growing(bundle)
            logits = graph.feed(np.array([ids]))
            for token in theirs:  # the same graph without the package: never another token
                assert token == int(logits[0, -1].argmax())
                logits = graph.feed(np.array([[token]]))


def generated(model: og.Model, ids: list[int]) -> list[int]:
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(ids) + TOKENS)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(ids, np.int32))
    tokens: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    shape = generator.get_output("present.0.key").shape
    # The demo's rows are 288 values: two halves, whatever its number of heads.
    assert shape[:2] == (1, 1)
    assert shape[2] >= len(ids)
    assert shape[3] == 144
    return tokens


def test_the_example_of_the_docs_runs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks((ROOT / "docs" / "onnx.md").read_text(), "python")
    here = code.replace('"out"', repr(str(bundle)))
    assert here != code
    exec(compile(here, "docs/onnx.md", "exec"), {})
    assert capsys.readouterr().out.startswith("Once upon a time")
