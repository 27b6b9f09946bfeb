"""The native session against llama.cpp: the same `plm` export, the same logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from llama_peer import MISSING, llama_logits
from metrics import close, relative_error
from numpy.typing import NDArray
from tiny import TINY_SHAPES, write_tiny_checkpoint

import plm_edge

pytest.importorskip("llama_cpp", reason=MISSING)

IDS: list[int] = np.random.default_rng(5).integers(0, 300, 40).tolist()
# What llama.cpp rounds and the native session does not, both with a cache in F32. F32: nothing,
# 5e-7 to 1.1e-6 seen. F16: activations to 16 bits, 7e-4 to 1.0e-3 seen. Q8_0 and Q4_0: activations
# to 8 bits in blocks of 32, 2.1e-2 to 3.3e-2 seen (KL 2e-4).
TOLERANCE = {"F32": 5e-6, "F16": 3e-3, "Q8_0": 5e-2, "Q4_0": 5e-2}
# In the others Q8_0 and Q4_0 fall back to F16. "untied" cannot be a `plm` file, and llama.cpp
# aborts on the odd `nope` of "one_head".
WHOLE_BLOCKS = ("plain", "blocks", "plm")
CASES = [
    (shape, quant)
    for shape in (*WHOLE_BLOCKS, "odd", "wide_rope", "wide_value")
    for quant in TOLERANCE
    if shape in WHOLE_BLOCKS or quant in ("F32", "F16")
]

Bundle = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A function (shape, quant, layout) -> the folder it was exported into."""
    root = tmp_path_factory.mktemp("native")

    @cache
    def exported(shape: str, quant: str, layout: str) -> Path:
        checkpoint = root / shape
        if not checkpoint.exists():
            write_tiny_checkpoint(checkpoint, TINY_SHAPES[shape], seed=7)
        out = root / f"{shape}-{quant}-{layout}"
        plm_edge.export(str(checkpoint), out=out, quant=quant, layout=layout)
        return out

    return exported


def native_logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    with plm_edge.load(folder, cache_type="f32") as session:
        logits: NDArray[np.float32] = session.prefill(ids, all_logits=True)
    return logits


@pytest.mark.parametrize(("shape", "quant"), CASES)
def test_the_native_session_equals_llama_cpp(bundle: Bundle, shape: str, quant: str) -> None:
    want = llama_logits(bundle(shape, quant, "plm") / "model.gguf", IDS)
    for layout in ("plm", "latent"):  # a layout permutes blocks, it never requantizes
        got = native_logits(bundle(shape, quant, layout), IDS)
        close(got, want, TOLERANCE[quant])
    other = native_logits(bundle(shape, quant, "plm"), [IDS[1], *IDS[1:]])
    assert relative_error(other[-1], want[-1]) > 2 * TOLERANCE[quant]  # the first token matters
