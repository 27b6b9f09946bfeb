"""How far logits are from float64 on the same weights: ours, and llama.cpp's.

    python benchmarks/fidelity.py [--positions 2048] [--models demo,heavy] [--quants Q8_0,Q4_0]

Models: the demo model on held-out text, and one with random weights whose activations have heavy
tails (tests/heavy_tails.py) on random ids, in windows of their context. KL is the mean over
positions of KL(float64 || engine) in nats, teacher-forced, and of KL(our default || this one);
`top-1` the share of positions with the same likeliest token. Then 256 greedy tokens after each of
four prompts: how many are the reference's from the first on, and where the gap between its first
two logits is below 1e-3 of their range. Then what skipping idle units changes, with weights and
cache in F32. The last line is JSON. Needs llama-cpp-python (`make test-peers` sets it up in
.venv-peers) unless --alone is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "peers")]  # the tests' measures and peer

from heavy_tails import write_heavy_tails  # noqa: E402
from llama_peer import llama_logits  # noqa: E402
from metrics import equal_greedy, kl, relative_error  # noqa: E402

import plm_edge  # noqa: E402
from plm_edge.bundle import MODEL_FILE  # noqa: E402
from plm_edge.exporters.relayout import relayout  # noqa: E402
from plm_edge.gguf_weights import GgufWeights  # noqa: E402
from plm_edge.reference import Reference  # noqa: E402
from plm_edge.runtime import Session, load  # noqa: E402

Logits = NDArray[Any]  # (positions, vocab)

HELD_OUT = ROOT / "plm_edge" / "texts" / "held_out.txt"
WINDOW = 512  # ids that are read from an empty cache on: the context of both models
PROMPT, GREEDY, PROMPTS = 64, 256, 4  # ids of a prompt, tokens after it, how many prompts
EXACT = 256  # positions for the runs in F32
# Cache and activations of our runs; the first is the default, against which the others are held.
OURS = (("f16", "int16"), ("f32", "int16"), ("q8_0", "int16"), ("f16", "int8"))
# How a session takes its ids: so many in a call. Prefill builds keys and values for a window; calls
# of 16 absorb (`expanding_pays` in plm_edge/kinds/mla.py).
CALLS = {"step": 1, "prefill": WINDOW, "prefill by 16": 16}
KL_COLUMNS = (
    "model", "engine", "cache", "activations", "path", "KL", "KL to default", "relative error",
    "top-1",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model in one format, twice: the same blocks as our session and as llama.cpp read them."""

    name: str
    latent: Path
    plm: Path
    ids: list[int]
    vocab: int  # ids below this are in the vocabulary

    def reference(self) -> Reference:
        """Float64 on the weights of the file."""
        return Reference.from_checkpoint(GgufWeights(self.latent / MODEL_FILE))


def make_case(model: str, quant: str, folder: Path, positions: int = 2048) -> Case:
    """Write `demo` or `heavy` into `folder`, and choose its ids."""
    latent, plm = folder / f"{model}-{quant}", folder / f"{model}-{quant}-plm"
    if model == "demo":
        plm_edge.export("demo", out=latent, quant=quant)
    else:
        write_heavy_tails(latent, quant)
    relayout(latent / MODEL_FILE, "plm", plm)
    with load(latent) as session:
        tokens = session.tokenizer.n_tokens
        if model == "demo":
            ids = session.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"))[:positions]
        else:
            ids = [int(i) for i in np.random.default_rng(1).integers(0, tokens, positions)]
    assert len(ids) == positions, f"{HELD_OUT.name} has {len(ids)} ids, asked for {positions}"
    return Case(f"{model} {quant}", latent, plm, ids, tokens)


# ---------------------------------------------------------------- logits, (len(ids), vocab)


def windows(ids: Sequence[int]) -> Iterator[list[int]]:
    """The ids in windows that are read from an empty cache on."""
    for start in range(0, len(ids), WINDOW):
        yield list(ids[start : start + WINDOW])


def true_logits(reference: Reference, ids: Sequence[int]) -> Logits:
    """Of the float64 model."""
    return np.concatenate([reference.logits(window) for window in windows(ids)])


def our_logits(
    model: Path,
    ids: Sequence[int],
    call: str,
    cache: str = "f16",
    activations: str = "int16",
    isa: str | None = None,
) -> Logits:
    """Of our session; `call` is one of CALLS."""
    with load(model, n_ctx=WINDOW, cache_type=cache, activations=activations, isa=isa) as session:
        return np.concatenate([_fed(session, window, CALLS[call]) for window in windows(ids)])


def _fed(session: Session, ids: list[int], each: int) -> Logits:
    session.reset()
    if each == 1:
        return np.array([session.step(token) for token in ids])
    parts = (ids[at : at + each] for at in range(0, len(ids), each))
    return np.concatenate([session.prefill(part, all_logits=True) for part in parts])


# ---------------------------------------------------------------- greedy


def prompts(case: Case) -> list[list[int]]:
    """The beginnings of as many windows, from the last on."""
    starts = [len(case.ids) - WINDOW * (k + 1) for k in range(PROMPTS)]
    return [case.ids[max(0, start) :][:PROMPT] for start in starts]


def greedy(case: Case, prompt: Sequence[int]) -> list[int]:
    """GREEDY tokens after the prompt, step by step, the likeliest each time."""
    with load(case.latent, n_ctx=WINDOW, cache_type="f16") as session:
        row, tokens = session.prefill(prompt), []
        for _ in range(GREEDY):
            tokens.append(int(row.argmax()))
            row = session.step(tokens[-1])
    return tokens


# ---------------------------------------------------------------- tables


def fidelity(case: Case, isa: str | None, alone: bool) -> list[dict[str, Any]]:
    """A row for each engine, cache and path."""
    want = true_logits(case.reference(), case.ids)
    rows: list[dict[str, Any]] = []
    default: dict[str, Logits] = {}  # by call

    def add(engine: str, cache: str, activations: str, call: str, got: Logits) -> None:
        row = {"model": case.name, "engine": engine, "cache": cache, "activations": activations}
        measured = {
            "path": call,
            "kl": kl(want, got),
            "kl_to_default": kl(default[call], got) if engine == "plm-edge" else None,
            "relative_error": relative_error(got, want),
            "top_1": float((got.argmax(axis=1) == want.argmax(axis=1)).mean()),
        }
        rows.append(row | measured)
        _line(rows[-1])

    for cache, activations in OURS:
        for call in CALLS:
            got = our_logits(case.latent, case.ids, call, cache, activations, isa)
            default.setdefault(call, got)
            add("plm-edge", cache, activations, call, got)
    for cache, steps in (("f16", True), ("f16", False), ("f32", False)):
        if not alone:
            got = llama_logits(case.plm / MODEL_FILE, case.ids, cache.upper(), WINDOW, steps)
            add("llama.cpp", cache, "int8", "step" if steps else "prefill", got)
    return rows


def greedy_rows(case: Case, alone: bool) -> list[dict[str, Any]]:
    """A row for each prompt: how many tokens are the reference's, and where it is undecided."""
    rows, reference = [], case.reference()
    for number, prompt in enumerate(prompts(case)):
        tokens = greedy(case, prompt)
        fed = [*prompt, *tokens[:-1]]
        want = reference.logits(fed)[PROMPT - 1 :]
        equal, close = equal_greedy(want, tokens)
        row = {"model": case.name, "prompt": number, "plm-edge": equal, "undecided": close}
        if not alone:
            got = llama_logits(case.plm / MODEL_FILE, fed, "F16")[PROMPT - 1 :]
            row["llama.cpp"] = equal_greedy(want, got.argmax(axis=1))[0]
        rows.append(row)
        _line(row)
    return rows


def exact_rows(case: Case, isa: str | None) -> list[dict[str, Any]]:
    """F32 weights and cache: skipping (latent) against float64 and against no skipping (plm)."""
    rows, ids = [], case.ids[:EXACT]
    want = true_logits(case.reference(), ids)
    for call in ("step", "prefill"):
        skipping, dense = (
            our_logits(model, ids, call, "f32", isa=isa) for model in (case.latent, case.plm)
        )
        rows.append(
            {
                "model": case.name,
                "path": call,
                "to_float64": relative_error(skipping, want),
                "to_dense": relative_error(skipping, dense),
                "dense_to_float64": relative_error(dense, want),
                "rows_skipped": rows_skipped(case, ids),
            }
        )
        _line(rows[-1])
    return rows


def rows_skipped(case: Case, ids: Sequence[int]) -> float:
    """Share of ffn_down that the step after `ids` did not read, of all of it."""
    read = []
    for model in (case.latent, case.plm):
        with load(model, n_ctx=WINDOW, cache_type="f32") as session:
            session.prefill(ids[:-1])
            session.step(ids[-1])
            read.append(session.bytes_read)
            spec = session.spec
    return (read[1] - read[0]) / (4 * spec.layers * spec.d_ffn * spec.d_model)


def _line(row: dict[str, Any]) -> None:
    shown = ("-" if value is None else value for value in row.values())
    cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in shown)
    print("| " + " | ".join(cells) + " |", flush=True)


def _head(*names: str) -> None:
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--models", default="demo,heavy")
    parser.add_argument("--quants", default="Q8_0,Q4_0")
    parser.add_argument("--isa", help="the kernel set; by default the best of this machine")
    parser.add_argument("--alone", action="store_true", help="without llama.cpp")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"kl": [], "greedy": [], "skipping": []}
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models.split(","):
            for quant in args.quants.split(","):
                case = make_case(model, quant, Path(folder), args.positions)
                _head(*KL_COLUMNS)
                results["kl"] += fidelity(case, args.isa, args.alone)
                _head("model", "prompt", "plm-edge", "undecided at", "llama.cpp")
                results["greedy"] += greedy_rows(case, args.alone)
            case = make_case(model, "F32", Path(folder), EXACT)
            _head("model", "path", "to float64", "to dense", "dense to float64", "rows skipped")
            results["skipping"] += exact_rows(case, args.isa)
    print(json.dumps({"positions": args.positions, **results}))


if __name__ == "__main__":
    main()
