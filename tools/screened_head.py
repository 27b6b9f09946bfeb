"""What a screened head misses: the study behind docs/decisions.md, "The screened head".

    python tools/screened_head.py                    the demo model
    python tools/screened_head.py model.gguf         any model of llama-cpp-python

The axes come from plm_edge/texts/calibration.txt as an export makes them, every figure from the
first tokens of held_out.txt. "proved": no row outside could have won, by |w . h - coarse| <=
|w_rest| |h_rest| + |w_axes - coarse row| |h_axes| (Cauchy-Schwarz, row by row).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.arrangements import TILE
from plm_edge.cli.calibrate import hidden_states
from plm_edge.cli.texts import CALIBRATION as TEXT
from plm_edge.exporters import export
from plm_edge.exporters.screen import (
    MOST_TOKENS,
    WINDOW,
    HeadRows,
    coarse_rows,
    from_states,
    ranks,
)
from plm_edge.gguf_weights import GgufWeights

Float32 = NDArray[np.float32]

HELD_OUT = TEXT.with_name("held_out.txt")
POSITIONS = 4096
TILES = (32, 64, 128, 256, 384, 512, 1024)
AT_ONCE = 128  # positions


def main() -> None:
    """Print one table for each number of axes."""
    made = of_gguf(Path(sys.argv[1])) if len(sys.argv) > 1 else of_demo()
    rows, states, held = made
    held = held[:POSITIONS]
    head = HeadRows(len(rows), lambda start, stop: rows[start:stop])
    d_model = rows.shape[1]
    print(f"head {rows.shape}, {len(states)} tokens to calibrate, {len(held)} held out")
    for share in (4, 3, 2):
        width = -(-d_model // (32 * share)) * 32
        screen = from_states(head, width, states)
        missed = ranks(head, screen.rotation, held)
        shares = "  ".join(f"{n}: {np.mean(missed < n):.2%}" for n in TILES if n * TILE < len(rows))
        print(f"\n1/{share}, {width} axes; arg-max among so many tiles: {shares}")
        agree, kept, divergence, moved = estimated(rows, screen.rotation, screen.tiles, held)
        print(
            f"  as calibrated, {screen.tiles} tiles: arg-max {agree:.2%}, proved "
            f"{proved(rows, screen.rotation, screen.tiles, held):.2%}\n"
            f"  mass outside {1 - kept:.2e}, KL {divergence:.2e} nats, of it {moved:.2e} from "
            "the mass alone"
        )
        plain = np.eye(d_model, dtype=np.float32)[:width]
        short = ranks(head, plain, held)
        print(f"  not rotated: {np.mean(short < screen.tiles):.2%}")


def of_demo() -> tuple[Float32, Float32, Float32]:
    """Head (vocab, d_model), states to calibrate (T, d_model), states held out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        export("demo", out=out, quant="Q8_0")
        file = out / "model.gguf"
        texts = (path.read_text(encoding="utf-8") for path in (TEXT, HELD_OUT))
        states, held = (hidden_states(file, text) for text in texts)
        return GgufWeights(file).read("token_embd.weight"), states, held


def of_gguf(file: Path) -> tuple[Float32, Float32, Float32]:
    """The same of a model in llama.cpp."""
    import gguf
    import llama_cpp

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    rows = np.asarray(gguf.quants.dequantize(head.data, head.tensor_type), np.float32)
    model = llama_cpp.Llama(
        str(file), n_ctx=WINDOW, embedding=True, logits_all=True, verbose=False,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE,
    )  # fmt: skip

    def states(path: Path) -> Float32:
        ids = model.tokenize(path.read_bytes(), add_bos=False)[:MOST_TOKENS]
        whole = range(0, len(ids) // WINDOW * WINDOW, WINDOW)
        return np.concatenate(
            [_states(model, ids[at : at + WINDOW], rows.shape[1]) for at in whole]
        )

    return rows, states(TEXT), states(HELD_OUT)


def _states(model: Any, ids: list[int], d_model: int) -> Float32:
    import llama_cpp

    model.reset()
    model.eval(ids)
    at = (llama_cpp.llama_get_embeddings_ith(model.ctx, i) for i in range(len(ids)))
    return np.stack([np.ctypeslib.as_array(state, shape=(d_model,)).copy() for state in at])


def _chosen(coarse: Float32, tiles: int) -> tuple[NDArray[np.bool_], Float32]:
    """Which rows (T, vocab) are read, and the best coarse logit of the last tile (T, 1)."""
    padded = np.pad(coarse, ((0, 0), (0, -coarse.shape[1] % TILE)), constant_values=-np.inf)
    peaks = padded.reshape(len(coarse), -1, TILE).max(axis=2)
    order = np.argsort(-peaks, axis=1, kind="stable")[:, :tiles]
    chosen = np.zeros(peaks.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    rows = np.repeat(chosen, TILE, axis=1)[:, : coarse.shape[1]]
    return rows, np.take_along_axis(peaks, order[:, -1:], axis=1)


def estimated(
    rows: Float32, rotation: Float32, tiles: int, held: Float32
) -> tuple[float, float, float, float]:
    """Means over positions: arg-max equal, mass of the rows read, KL, KL of their masses alone."""
    coarse_head = coarse_rows(rows, rotation)
    sums = np.zeros(4)
    for start in range(0, len(held), AT_ONCE):
        h = held[start : start + AT_ONCE]
        exact, coarse = h @ rows.T, (h @ rotation.T) @ coarse_head.T  # (T, vocab)
        read, lowest = _chosen(coarse, tiles)
        alike = read & (coarse < lowest)  # rows like those outside
        shift = _log_sum(exact, alike) - _log_sum(coarse, alike)
        shift = np.where(np.isfinite(shift), shift, 0.0)
        guess = np.where(read, exact, coarse + shift)
        every = np.ones_like(read)
        log_p, log_q = exact - _log_sum(exact, every), guess - _log_sum(guess, every)
        p, q = (np.exp(x[:, 0]) for x in (_log_sum(log_p, read), _log_sum(log_q, read)))
        left_p, left_q = np.maximum(1 - p, 1e-12), np.maximum(1 - q, 1e-12)
        masses = p * np.log(p / q) + left_p * np.log(left_p / left_q)
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        same = exact.argmax(axis=1) == guess.argmax(axis=1)
        sums += [same.sum(), p.sum(), divergence.sum(), masses.sum()]
    agree, kept, divergence, moved = (sums / len(held)).tolist()
    return agree, kept, divergence, moved


def _log_sum(x: Float32, among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log of the sum of exp(x) over the rows `among`, -inf where there is none: (T, 1)."""
    some = np.where(among, x, -np.inf).astype(np.float64)
    top = np.maximum(some.max(axis=1, keepdims=True), -1e30)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = top + np.log(np.exp(some - top).sum(axis=1, keepdims=True))
    return result


def proved(rows: Float32, rotation: Float32, tiles: int, held: Float32) -> float:
    """Share of positions where no row outside could be the likeliest."""
    coarse_head = coarse_rows(rows, rotation)
    along = rows @ rotation.T
    rest = np.linalg.norm(rows - along @ rotation, axis=1)
    rounded = np.linalg.norm(along - coarse_head, axis=1)
    count = 0
    for start in range(0, len(held), AT_ONCE):
        h = held[start : start + AT_ONCE]
        z = h @ rotation.T
        exact, coarse = h @ rows.T, z @ coarse_head.T
        read, _ = _chosen(coarse, tiles)
        outside = np.linalg.norm(h - z @ rotation, axis=1, keepdims=True)
        most = coarse + outside * rest + np.linalg.norm(z, axis=1, keepdims=True) * rounded
        best = np.where(read, exact, -np.inf).max(axis=1)
        count += int((np.where(read, -np.inf, most).max(axis=1) < best).sum())
    return count / len(held)


if __name__ == "__main__":
    main()
