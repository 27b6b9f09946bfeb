"""What screening the up projection would save: the study behind docs/decisions.md.

    python tools/up_screen.py

The demo model in float64 with ffn_up as Q4_0 holds it; axes and thresholds from calibration.txt,
every figure from held_out.txt (plm_edge/texts/). A screen reads a part of every row of ffn_up, and
the rest of a row only where the unit may fire:

    agreement    the sign of each weight, counted where it is that of the activation
    signs        the sign of each weight, times the activation
    2, 3 bits    the top bits of each nibble, and the scales
    axes         the leading columns, the residual stream rotated once to where it is largest

Exact: the rest is not read where coarse + bound <= 0. Statistical: not where the coarse sum, fitted
to the true one unit by unit, is below the layer's threshold; such a unit counts as idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import plm_edge
from plm_edge.arrangements import TILE
from plm_edge.checkpoint import open_checkpoint
from plm_edge.checkpoint.hub import resolve_model
from plm_edge.cli.texts import CALIBRATION as TEXT
from plm_edge.formats import quantize
from plm_edge.kinds import ATTENTION, FFN
from plm_edge.kinds.norm import rms_norm
from plm_edge.spec import ModelSpec
from plm_edge.tensors import tensor_table

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Texts = list[list[int]]  # windows of ids

POSITIONS = 4096, 2048  # to calibrate with, held out; in windows of the trained context
BLOCK, BITS = 32, 4.5  # Q4_0: values a block, bits a weight with its scale
LET_THROUGH = (0.3, 0.4, 0.5)  # of the units
PLM_TOKEN, PLM_UP, PLM_ROW = 814e6, 302e6, 1152  # bytes: a token at 80 % idle, ffn_up, a row of it
F16 = 2  # bytes of a norm or a coefficient


class Up(NamedTuple):
    """One layer's up projection: its sums before the ReLU are (x / rms(x) . basis) . rows^T."""

    basis: Float64  # (d_model, d_model): the norm's weights; a rotation when rows hold those
    rows: Float64  # (units, d_model)


class Seen(NamedTuple):
    """One feed-forward: inputs (T, d_model), sums (T, units), units let through (T, units)."""

    h: Float64
    sums: Float64
    read: Bool


class Screen(NamedTuple):
    """`share` of ffn_up is read for every unit: `coarse` of each layer, (units, d_model)."""

    name: str
    share: float
    coarse: list[Float64]

    def sums(self, i: int, h: Float64) -> Float64:
        """Inputs of layer i (T, d_model) -> (T, units)."""
        sums: Float64 = (np.sign(h) if self.name == "agreement" else h) @ self.coarse[i].T
        return sums


class Model(NamedTuple):
    """Tensors by canonical name."""

    spec: ModelSpec
    weights: dict[str, Float64]

    def layer(self, i: int) -> dict[str, Float64]:
        """Tensors of one layer by the middle of their names."""
        names = [name for name in self.weights if name.startswith(f"blk.{i}.")]
        return {name.split(".")[2]: self.weights[name] for name in names}

    def run(
        self, ups: list[Up], texts: Texts, let: Callable[[int, Float64], Bool]
    ) -> tuple[Float64, list[Seen]]:
        """Logits (T, vocab) of some windows, and what each layer's feed-forward saw."""
        spec, head = self.spec, self.weights["token_embd.weight"]
        attention, ffn = ATTENTION[spec.attention], FFN[spec.ffn]
        streams, seen = [head[ids] for ids in texts], []
        for i, up in enumerate(ups):
            w, parts = self.layer(i), []
            for n, x in enumerate(streams):
                x = x + attention.expanded(rms_norm(x, w["attn_norm"], spec.eps), w, spec)
                h = rms_norm(x, np.ones(spec.d_model), spec.eps) @ up.basis
                parts.append(Seen(h, h @ up.rows.T, let(i, h)))
                units = np.square(np.maximum(parts[n].sums, 0) * parts[n].read)
                streams[n] = x + ffn.output(units, w)
            seen.append(Seen(*map(np.concatenate, zip(*parts, strict=True))))
        last = rms_norm(np.concatenate(streams), self.weights["output_norm.weight"], spec.eps)
        return last @ head.T, seen


def every_unit(i: int, h: Float64) -> Bool:
    """Nothing is screened."""
    return np.ones((len(h), 1), bool)


def divergence(p: Float64, q: Float64) -> tuple[float, float]:
    """Of logits q from p: mean KL in nats, share of equal arg-max."""
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, q))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
    return float(kl), float(np.mean(p.argmax(axis=-1) == q.argmax(axis=-1)))


def speed_up(first: float, through: float, extra: float) -> float:
    """PLM-1.8B by bytes: `first` of each row, the rest of those let through, `extra` bytes each."""
    read = first + (1 - first) * through + extra / PLM_ROW
    return PLM_TOKEN / (PLM_TOKEN - PLM_UP * (1 - read))


def q4_0(rows: Float64) -> tuple[Float64, Float64]:
    """Scales (units, blocks, 1), nibbles (units, blocks, BLOCK) of -8 to 7."""
    data = quantize("Q4_0", rows.astype(np.float32)).reshape(len(rows), -1, F16 + BLOCK // 2)
    nibbles = np.concatenate([data[..., F16:] & 15, data[..., F16:] >> 4], axis=-1)
    return data[..., :F16].copy().view("<f2").astype(np.float64), nibbles - 8.0


def screens(packed: list[tuple[Float64, Float64]], rotated: bool) -> list[Screen]:
    """Every screen of these layers that is tried."""
    shape = len(packed[0][0]), -1
    if rotated:
        rows: list[Float64] = [(scale * nibbles).reshape(shape) for scale, nibbles in packed]
        at = np.arange(rows[0].shape[1])
        counts = [-(-len(at) // (BLOCK * part)) * BLOCK for part in (8, 4, 3, 2)]
        return [Screen(f"{k} axes", k / len(at), [r * (at < k) for r in rows]) for k in counts]
    signs = [(np.copysign(1, s) * np.where(n < 0, -1, 1)).reshape(shape) for s, n in packed]
    found = [Screen("agreement", 1 / BITS, signs), Screen("signs", 1 / BITS, signs)]
    for bits, step in ((2, 4), (3, 2)):
        middle = [(s * (n // step * step + (step - 1) / 2)).reshape(shape) for s, n in packed]
        found.append(Screen(f"{bits} bits", (bits + 0.5) / BITS, middle))
    return found


def bounds(rest: Float64, h: Float64) -> dict[str, tuple[Float64, float]]:
    """|rest . h| is at most so much (T, units); bytes a row of PLM that the bound has to read."""
    used = rest.any(axis=0)
    a, b = ((x * used).reshape(len(x), -1, BLOCK) for x in (h, rest))
    of_h, of_rest = (np.sqrt(np.square(x).sum(axis=2)) for x in (a, b))
    whole = [np.linalg.norm(x, axis=1) for x in (of_h, of_rest)]
    return {
        "interval": (np.abs(a).sum(axis=2) @ np.abs(b).max(axis=2).T, 0),
        "norms of blocks": (of_h @ of_rest.T, F16 * PLM_ROW / 18 * float(used.mean())),
        "one norm": (whole[0][:, None] * whole[1], F16),
    }


def exact(screen: Screen, ups: list[Up], seen: list[Seen]) -> None:
    """Print the share of units that each bound proves idle, its median in the last layer."""
    proved: dict[str, list[float]] = {}
    for i, (up, s) in enumerate(zip(ups, seen, strict=True)):
        coarse = screen.sums(i, s.h)
        found = bounds(up.rows - screen.coarse[i], s.h)
        for name, (most, _) in found.items():
            if not (np.abs(s.sums - coarse) <= most + 1e-9).all():
                raise AssertionError(f"{screen.name}, {name}: not a bound")
            proved.setdefault(name, []).append(float(np.mean(coarse + most <= 0)))
    for name, (most, extra) in found.items():
        shares = " ".join(f"{share:7.3%}" for share in proved[name])
        factor = speed_up(screen.share, 1 - float(np.mean(proved[name])), extra)
        wide = np.median(most) / s.sums.std()
        print(f"{screen.name:9} {name:15} proves {shares}, {wide:.1f} sd wide, x{factor:.3f}")


def statistical(
    model: Model, screen: Screen, ups: list[Up], known: list[Seen], held: Texts, want: Float64
) -> None:
    """Print what thresholds let through, what of the units that fire, and what the rest costs."""
    fits, guesses = [], []
    for i, s in enumerate(known):
        coarse = screen.sums(i, s.h)
        slope = ((coarse - coarse.mean(axis=0)) * s.sums).mean(axis=0) / coarse.var(axis=0)
        fits.append((slope, s.sums.mean(axis=0) - slope * coarse.mean(axis=0)))
        guesses.append(slope * coarse + fits[i][1])
    for share in LET_THROUGH:
        least = np.array([np.quantile(guess, 1 - share) for guess in guesses])

        def let(i: int, h: Float64, least: Float64 = least) -> Bool:
            above: Bool = fits[i][0] * screen.sums(i, h) + fits[i][1] > least[i]
            return above

        logits, seen = model.run(ups, held, let)
        kl, same = divergence(want, logits)
        recall = " ".join(f"{np.mean(s.read[s.sums > 0]):5.1%}" for s in seen)
        tiles = np.mean([s.read.reshape(-1, TILE).any(axis=1) for s in seen])
        print(f"{screen.name:9} {np.mean([s.read for s in seen]):5.1%} let through, in {tiles:.1%} "
              f"of tiles; recall {recall}, KL {kl:.1e}, arg-max {same:.2%}, "
              f"x{speed_up(screen.share, share, 2 * F16):.2f}", flush=True)  # fmt: skip


def of_demo() -> tuple[Model, Texts, Texts]:
    """The demo model, windows of ids to calibrate with and held out."""
    with open_checkpoint(resolve_model("demo")) as checkpoint:
        spec = checkpoint.spec
        weights = {n: checkpoint.read(n).astype(np.float64) for n in tensor_table(spec)}
    with plm_edge.load("demo") as session:
        files = TEXT, TEXT.with_name("held_out.txt")
        ids = [session.tokenizer.encode(file.read_text(encoding="utf-8")) for file in files]
    n = spec.n_ctx_train
    known, held = (
        [text[at : at + n] for at in range(0, count, n)]
        for text, count in zip(ids, POSITIONS, strict=True)
    )
    return Model(spec, weights), known, held


def main() -> None:
    """Print what is proved and what is guessed, of ffn_up as it is and of ffn_up rotated."""
    model, calibration, held = of_demo()
    gains = [np.diag(model.layer(i)["ffn_norm"]) for i in range(model.spec.layers)]
    weights = [model.layer(i)["ffn_up"] for i in range(model.spec.layers)]
    plain = list(map(Up, gains, weights))
    true, _ = model.run(plain, held, every_unit)
    _, known = model.run(plain, calibration, every_unit)
    unit = np.concatenate([s.h / gain.diagonal() for s, gain in zip(known, gains, strict=True)])
    rotation = np.linalg.eigh(unit.T @ unit)[1][:, ::-1]  # strongest first
    turned = [Up(rotation, up.rows @ up.basis @ rotation) for up in plain]
    for name, exactly in (("as it is", plain), ("rotated", turned)):
        packed = [q4_0(up.rows) for up in exactly]
        ups = [Up(up.basis, (scale * nibbles).reshape(up.rows.shape))
               for up, (scale, nibbles) in zip(exactly, packed, strict=True)]  # fmt: skip
        want, seen = model.run(ups, held, every_unit)
        _, known = model.run(ups, calibration, every_unit)
        idle = " ".join(f"{np.mean(s.sums <= 0):.1%}" for s in seen)
        print(f"\nffn_up {name}: idle {idle}; KL of its Q4_0 {divergence(true, want)[0]:.1e}")
        for screen in screens(packed, name == "rotated"):
            if screen.share > 1 / BITS or name == "rotated":
                exact(screen, ups, seen)
            statistical(model, screen, ups, known, held, want)
    print(f"\nonly what fires, the screen for nothing: x{speed_up(0, 0.2, 0):.2f}")


if __name__ == "__main__":
    main()
