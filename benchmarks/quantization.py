"""Bytes against KL: our quantization and llama.cpp's, of the demo model, all judged in one engine.

    python benchmarks/quantization.py [--windows 9] [--text FILE]

Every file is a GGUF file of layout plm. Judged: its numbers, widened to F32, in the native session
with float activations and an F32 cache, against the checkpoint in F32; KL is the mean of
KL(checkpoint || file) in nats over the second halves of windows of 512 held-out tokens. Beside it
what llama.cpp itself gets of the same file, its 8-bit activations included. The imatrix is made
from the same text as ours is fitted to. The last line is JSON. Needs llama-cpp-python (`make
test-peers` sets it up in .venv-peers).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "peers")]  # the tests' measures and peer

from llama_peer import llama_logits  # noqa: E402
from llama_quantizer import llama_quantize  # noqa: E402
from metrics import kl  # noqa: E402

import plm_edge  # noqa: E402
from plm_edge import devices  # noqa: E402
from plm_edge.bundle import MODEL_FILE  # noqa: E402
from plm_edge.checkpoint import open_checkpoint  # noqa: E402
from plm_edge.checkpoint.hub import resolve_model  # noqa: E402
from plm_edge.cli.texts import CALIBRATION  # noqa: E402
from plm_edge.exporters import write_bundle  # noqa: E402
from plm_edge.exporters.quantize.fitted import TOKENS, WINDOW  # noqa: E402
from plm_edge.exporters.quantize.moments import Moments  # noqa: E402
from plm_edge.exporters.source import Source, from_checkpoint, quantizing  # noqa: E402
from plm_edge.plan import make_plan  # noqa: E402
from plm_edge.reference import Reference  # noqa: E402
from plm_edge.runtime import Session, load  # noqa: E402
from plm_edge.runtime.evaluate import evaluate  # noqa: E402
from plm_edge.runtime.logit_file import scored  # noqa: E402
from plm_edge.spec import ModelSpec  # noqa: E402
from plm_edge.tensors import tensor_table  # noqa: E402
from plm_edge.tokenizer import Tokenizer  # noqa: E402

HELD_OUT = ROOT / "plm_edge" / "texts" / "held_out.txt"
MODEL = "demo"


class Numbers:
    """What the gguf package reads from a file, as weights in float32."""

    def __init__(self, file: Path, spec: ModelSpec) -> None:
        self.spec, table = spec, tensor_table(spec)
        self._values = {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(
                table[tensor.name].shape
            )
            for tensor in gguf.GGUFReader(file).tensors
        }

    def read(self, name: str) -> NDArray[np.float32]:
        return self._values[name]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self._values[name][start:stop]


def in_floats(file: Path, model: Source, out: Path) -> Path:
    """A bundle of the file's numbers in F32."""
    source = Source(
        spec=model.spec,
        description={"name": file.stem},
        vocabulary=model.vocabulary,
        packed_rows=quantizing(Numbers(file, model.spec)),
        assert_unchanged=lambda: None,
    )
    write_bundle(source, make_plan(model.spec, devices.detect(), "F32", "latent"), out)
    return out


def imatrix(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Mean squares of the inputs of each matrix on the calibration text."""
    with open_checkpoint(folder) as checkpoint:
        ids = Tokenizer.from_hf(folder).encode(CALIBRATION.read_text(encoding="utf-8"))[:TOKENS]
        windows = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]
        forward = Reference.from_checkpoint(checkpoint)
        moments = Moments(forward, checkpoint.spec, windows, lambda said: None)
        table = tensor_table(checkpoint.spec)
        found = {name: moments.of(name) for name, info in table.items() if info.quantize}
    return {name: np.diagonal(h).copy() for name, h in found.items() if h is not None}


def files(full: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and GGUF file of everything that is compared."""
    known = imatrix(resolve_model(MODEL))
    for file_type in ("Q4_0", "Q4_K_M", "Q8_0"):
        for name, given in (("", None), (" imatrix", known)):
            out = folder / f"llama-{file_type}{name.strip()}.gguf"
            llama_quantize(full, out, file_type, given)
            yield f"llama.cpp {file_type}{name}", out
    # As many bits as llama.cpp's Q4_K_M has, and what it has without the wide tensors.
    largest = matrix_bits(folder / "llama-Q4_K_M.gguf")
    for name, how in (
        ("ours Q4_0, rounded", {"quant": "Q4_0"}),
        ("ours Q4_0, fitted", {"quant": "Q4_0", "calibration": "tales"}),
        ("ours Q4_K, rounded", {"quant": "Q4_K"}),
        ("ours Q4_K, fitted", {"quant": "Q4_K", "calibration": "tales"}),
        ("ours --bits 5", {"bits": 5.0}),
        (f"ours --bits {largest:.3f}", {"bits": largest}),
        ("ours --bits 6", {"bits": 6.0}),
        ("ours Q8_0, rounded", {"quant": "Q8_0"}),
    ):
        out = folder / name.replace(" ", "_")
        plm_edge.export(MODEL, out=out, layout="plm", **how)  # type: ignore[arg-type]
        yield name, out / MODEL_FILE


def matrix_bits(file: Path) -> float:
    """Bits of a weight of a file's matrices, rounded down."""
    matrices = [t for t in gguf.GGUFReader(file).tensors if len(t.shape) == 2]
    bits = 8 * sum(int(t.n_bytes) for t in matrices) / sum(int(t.n_elements) for t in matrices)
    return int(bits * 1000) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| file | bytes | KL in our engine | top-1 | KL in llama.cpp |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plm_edge.export(MODEL, out=folder / "full", quant="F32")
        plm_edge.export(MODEL, out=folder / "full-plm", quant="F32", layout="plm")
        with open_checkpoint(resolve_model(MODEL)) as checkpoint, _opened(folder / "full") as full:
            model = from_checkpoint(checkpoint)
            ids = full.tokenizer.encode(args.text.read_text(encoding="utf-8"))
            ids = ids[: args.windows * WINDOW]
            want = _rows(full, ids)
            for name, file in files(folder / "full-plm" / MODEL_FILE, folder):
                with _opened(in_floats(file, model, folder / f"{file.stem}-{len(rows)}")) as ours:
                    found = evaluate(ours, ids, WINDOW, full).compared
                theirs = llama_logits(file, ids, "F32", WINDOW)[_scored(len(ids))]
                assert found is not None
                row = {"file": name, "bytes": file.stat().st_size, "kl": found.kl}
                rows.append(row | {"top_1": found.same_top, "llama_kl": kl(want, theirs)})
                print(
                    f"| {name} | {row['bytes']:,} | {found.kl:.2e} | {found.same_top:.1%} | "
                    f"{rows[-1]['llama_kl']:.2e} |",
                    flush=True,
                )
    print(json.dumps({"windows": args.windows, "rows": rows}))


def _opened(bundle: Path) -> Session:
    session = load(bundle, "native", n_ctx=WINDOW, cache_type="f32")
    assert isinstance(session, Session)
    return session


def _rows(session: Session, ids: list[int]) -> NDArray[np.float32]:
    """Logits of the scored positions."""
    rows = []
    for start in range(0, len(ids), WINDOW):
        session.reset()
        rows.append(session.prefill(ids[start : start + WINDOW], all_logits=True))
    found: NDArray[np.float32] = np.concatenate(rows)[_scored(len(ids))]
    return found


def _scored(count: int) -> list[int]:
    return [at + i for at in range(0, count, WINDOW) for i in scored(WINDOW)]


if __name__ == "__main__":
    main()
