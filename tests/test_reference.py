"""The reference is the model: expanded, absorbed and plain loops agree, and mistakes show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics import close, relative_error
from mistakes import MISTAKES
from numpy.typing import NDArray
from tiny import TINY_SHAPES, tiny_weights, write_tiny_checkpoint

from plm_edge.checkpoint import open_checkpoint
from plm_edge.errors import FileFormatError, UsageError
from plm_edge.reference import Reference
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

Weights = dict[str, NDArray[Any]]

# No two widths alike, so that a confused axis cannot fit; eps large enough to be seen when swapped.
SPEC = ModelSpec(
    layers=2,
    d_model=18,
    heads=3,
    d_ffn=23,
    nope=5,
    rope=4,
    v_head=7,
    rank=11,
    vocab=29,
    n_ctx_train=32,
    rope_theta=100.0,
    eps=1e-2,
    latent_eps=3e-2,
    tied=True,
)
UNTIED = ModelSpec.from_dict(SPEC.to_dict() | {"tied": False})
IDS = [3, 28, 0, 3, 17, 9, 9, 21]
EXACT = 1e-9  # float64 on both sides, sums in another order: 1e-15 seen


def random_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Every width keeps its scale: logits are of order 1, softmax is neither flat nor one-hot."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for name, info in tensor_table(spec).items():
        noise = rng.standard_normal(info.shape)
        if len(info.shape) == 1:
            weights[name] = 1 + 0.3 * noise
        else:
            gain = 1.0 if name == "token_embd.weight" else 2.0
            weights[name] = gain * noise / math.sqrt(info.shape[1])
    return weights


def loops(spec: ModelSpec, w: Weights, ids: list[int]) -> NDArray[np.float64]:
    """PLM token by token with Python numbers: no numpy algebra, nothing shared with the package."""

    def matvec(rows: NDArray[Any], x: list[float]) -> list[float]:
        return [sum(float(a) * b for a, b in zip(row, x, strict=True)) for row in rows]

    def norm(x: list[float], weight: NDArray[Any], eps: float) -> list[float]:
        size = math.sqrt(sum(v * v for v in x) / len(x) + eps)
        return [v / size * float(g) for v, g in zip(x, weight, strict=True)]

    def turn(x: list[float], position: int) -> list[float]:
        out = []
        for i in range(0, len(x), 2):
            angle = position / spec.rope_theta ** (i / len(x))
            turned = complex(x[i], x[i + 1]) * complex(math.cos(angle), math.sin(angle))
            out += [turned.real, turned.imag]
        return out

    keys: list[list[list[list[float]]]] = [[] for _ in range(spec.layers)]  # layer, token, head
    values: list[list[list[list[float]]]] = [[] for _ in range(spec.layers)]
    result = []
    for t, token in enumerate(ids):
        x = [float(v) for v in w["token_embd.weight"][token]]
        for i in range(spec.layers):
            p = {n[len(f"blk.{i}.") : -7]: a for n, a in w.items() if n.startswith(f"blk.{i}.")}
            h = norm(x, p["attn_norm"], spec.eps)
            q, c = matvec(p["attn_q"], h), matvec(p["attn_kv_a_mqa"], h)
            kv = matvec(p["attn_kv_b"], norm(c[: spec.rank], p["attn_kv_a_norm"], spec.latent_eps))
            shared = turn(c[spec.rank :], t)
            step = spec.nope + spec.v_head
            kv_heads = [kv[j * step : (j + 1) * step] for j in range(spec.heads)]
            keys[i].append([head[: spec.nope] + shared for head in kv_heads])
            values[i].append([head[spec.nope :] for head in kv_heads])
            joined: list[float] = []
            for j in range(spec.heads):
                width = spec.nope + spec.rope
                query = q[j * width : (j + 1) * width]
                query = query[: spec.nope] + turn(query[spec.nope :], t)
                dots = [sum(a * b for a, b in zip(query, k[j], strict=True)) for k in keys[i]]
                weights = [math.exp(d / math.sqrt(width)) for d in dots]
                for n in range(spec.v_head):
                    parts = (a * v[j][n] for a, v in zip(weights, values[i], strict=True))
                    joined.append(sum(parts) / sum(weights))
            x = [a + b for a, b in zip(x, matvec(p["attn_output"], joined), strict=True)]
            up = matvec(p["ffn_up"], norm(x, p["ffn_norm"], spec.eps))
            down = matvec(p["ffn_down"], [u * u if u > 0 else 0.0 for u in up])
            x = [a + b for a, b in zip(x, down, strict=True)]
        head = w["token_embd.weight" if spec.tied else "output.weight"]
        result.append(matvec(head, norm(x, w["output_norm.weight"], spec.eps)))
    return np.array(result)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(SPEC)


@pytest.fixture(scope="module")
def textbook(weights: Weights) -> NDArray[np.float64]:
    return loops(SPEC, weights, IDS)


@pytest.mark.parametrize("absorbed", [False, True])
def test_reference_equals_plain_loops(
    weights: Weights, textbook: NDArray[np.float64], absorbed: bool
) -> None:
    close(Reference(SPEC, weights).logits(IDS, absorbed), textbook, EXACT)


def test_untied_head_is_used() -> None:
    weights = random_weights(UNTIED)
    want = loops(UNTIED, weights, IDS)
    close(Reference(UNTIED, weights).logits(IDS), want, EXACT)
    tied = {name: w for name, w in weights.items() if name != "output.weight"}
    assert relative_error(Reference(SPEC, tied).logits(IDS), want) > 0.1


def bend_w_uk(weights: Weights) -> Weights:
    bent = dict(weights)
    kv_b = bent["blk.1.attn_kv_b.weight"].copy()
    kv_b.reshape(SPEC.heads, SPEC.nope + SPEC.v_head, SPEC.rank)[:, : SPEC.nope] *= 1.01
    bent["blk.1.attn_kv_b.weight"] = kv_b
    return bent


def test_absorbed_equals_expanded_and_would_notice(weights: Weights) -> None:
    want = Reference(SPEC, weights).logits(IDS)
    close(Reference(SPEC, weights).logits(IDS, absorbed=True), want, EXACT)
    with pytest.raises(AssertionError, match="relative error"):
        close(Reference(SPEC, bend_w_uk(weights)).logits(IDS, absorbed=True), want, EXACT)


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(
    weights: Weights,
    textbook: NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
    absorbed: bool,
) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    assert relative_error(Reference(SPEC, weights).logits(IDS, absorbed), textbook) > 1e-3


@pytest.mark.parametrize("field", ["eps", "latent_eps", "rope_theta"])
def test_each_convention_of_the_spec_is_read(
    weights: Weights, textbook: NDArray[np.float64], field: str
) -> None:
    spec = ModelSpec.from_dict(SPEC.to_dict() | {field: SPEC.to_dict()[field] * 1.5})
    got = Reference(spec, weights).logits(IDS)
    assert relative_error(got, textbook) > 1e-4
    close(got, loops(spec, weights, IDS), EXACT)


@pytest.mark.parametrize("absorbed", [False, True])
def test_no_token_sees_a_later_one(weights: Weights, absorbed: bool) -> None:
    model = Reference(SPEC, weights)
    whole = model.logits(IDS, absorbed)
    for length in (1, 2, 7):
        close(model.logits(IDS[:length], absorbed), whole[:length], EXACT)
    other = model.logits([*IDS[:-2], 0, IDS[-1]], absorbed)  # an earlier token does matter
    assert relative_error(other[-1], whole[-1]) > 1e-3


def test_ffn_zeros_counts_units_that_are_exactly_zero(weights: Weights) -> None:
    dead = dict(weights)
    dead["blk.0.ffn_up.weight"] = np.zeros((SPEC.d_ffn, SPEC.d_model))
    zeros = Reference(SPEC, dead).ffn_zeros(IDS)
    assert zeros.shape == (SPEC.layers,)
    assert zeros[0] == 1.0
    assert 0.2 < zeros[1] < 0.8  # random signs: near one half


def test_a_nan_shows(weights: Weights) -> None:
    bent = dict(weights)
    bent["blk.0.ffn_up.weight"] = bent["blk.0.ffn_up.weight"].copy()
    bent["blk.0.ffn_up.weight"][3, 3] = np.nan
    assert np.isnan(Reference(SPEC, bent).logits(IDS)).any()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_checkpoint_is_computed_with_in_float64(tmp_path: Path, dtype: str) -> None:
    spec = TINY_SHAPES["untied"]
    with open_checkpoint(write_tiny_checkpoint(tmp_path, spec, seed=3, dtype=dtype)) as checkpoint:
        got = Reference.from_checkpoint(checkpoint).logits(IDS)
    by_hf_name = tiny_weights(spec, seed=3, dtype=dtype)
    weights = {name: by_hf_name[info.hf_name] for name, info in tensor_table(spec).items()}
    assert got.dtype == np.float64
    close(got, loops(spec, weights, IDS), EXACT)  # 1e-7 if anything were float32


def test_bad_ids_and_shapes_are_named(weights: Weights) -> None:
    model = Reference(SPEC, weights)
    for ids in ([], [SPEC.vocab], [-1]):
        with pytest.raises(UsageError, match=r"^token ids must be one or more of 0\.\.28$"):
            model.logits(ids)
    bent = dict(weights) | {"blk.0.ffn_down.weight": np.ones((23, 18))}
    message = r"^blk\.0\.ffn_down\.weight must have shape \(18, 23\), found \(23, 18\)$"
    with pytest.raises(FileFormatError, match=message):
        Reference(SPEC, bent).logits(IDS)
