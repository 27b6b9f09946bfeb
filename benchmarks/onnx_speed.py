"""Decode speed of an ONNX export beside (a) expanded keys and values, (b) its products alone.

    python benchmarks/onnx_speed.py [--shape plm-1.8b] [--depths 64,1024,4032] [--rounds 25]

Writes a model of that shape with random weights (Q4_0, 4-bit head), then takes turns, one token at
a time, each a row longer than the last: our session; (a) the same weights with a cache of keys and
values for each head, as ONNX exporters write it, its outputs handed back as inputs without a copy
in Python; (b) every product of a token with a weight, kv_b included, and nothing else. Cached rows
are random: only speed is measured. Before that, (a) is held to our graph on a small model in F32.

Each engine has a process of its own, and the order within a round is drawn. Whoever filled its
memory first was 4 to 9 % slower than the same graph started later: so (b) starts once more before
them, and that one is not reported.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx_expanded import write_expanded

from plm_edge import onnx_names as names
from plm_edge.exporters.onnx import store_of
from plm_edge.exporters.onnx.arrays import BITS
from plm_edge.exporters.onnx.graph import CONTRIB, Graph
from plm_edge.exporters.onnx.model import OPSET
from plm_edge.exporters.onnx.products import Products
from plm_edge.exporters.onnx.store import Store
from plm_edge.exporters.source import quantizing
from plm_edge.exporters.synth import SHAPES, synth
from plm_edge.exporters.synth_weights import SynthWeights
from plm_edge.quant_plan import choose_formats
from plm_edge.runtime.load_onnx import load_onnx

ZEROS, SEED = 0.8, 0
WARM = 3  # steps before the first that counts: onnxruntime asks the system for memory in them


def started(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    # As in our session: or the threads of the one that ran before spin on beside the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Latent:
    """Our session, behind random rows."""

    def __init__(self, bundle: Path, threads: int, n_ctx: int) -> None:
        self.session = load_onnx(bundle, threads=threads, n_ctx=n_ctx)
        rng = np.random.default_rng(0)
        self.session._rows[:] = rng.standard_normal(self.session._rows.shape[1:], np.float32)

    def at(self, depth: int) -> None:
        self.session._ids = [1] * depth

    def step(self) -> None:
        self.session.step(1)


class Expanded:
    """The expanded graph; present comes back as past, always onnxruntime's own values."""

    def __init__(self, path: Path, threads: int) -> None:
        self.inference = started(path, threads)
        past = [i for i in self.inference.get_inputs() if i.name.startswith("past")]
        self.shapes = {i.name: (i.shape[1], i.shape[3]) for i in past}

    def at(self, depth: int) -> None:
        self.depth, rng = depth, np.random.default_rng(0)
        self.past = {}
        for name, (heads, width) in self.shapes.items():
            rows = rng.standard_normal((1, heads, depth, width), np.float32)
            self.past[name] = ort.OrtValue.ortvalue_from_numpy(rows)

    def step(self) -> None:
        binding = self.inference.io_binding()
        binding.bind_cpu_input(names.IDS, np.ones((1, 1), np.int64))
        binding.bind_cpu_input(names.POSITIONS, np.full((1, 1), self.depth, np.int64))
        binding.bind_cpu_input(names.MASK, np.ones((1, self.depth + 1), np.int64))
        for name, value in self.past.items():
            binding.bind_ortvalue_input(name, value)
        for output in self.inference.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.inference.run_with_iobinding(binding)
        _, *present = binding.get_outputs()
        self.past, self.depth = dict(zip(self.past, present, strict=True)), self.depth + 1


def write_bare(store: Store, folder: Path) -> Path:
    """Every product with a weight, one token, in one graph without anything else."""
    g = Graph()
    p = Products(g, store)
    made, widths = [], set()
    for name, array in store.arrays.items():
        if not name.endswith(".q"):
            continue
        weight = name.removesuffix(".q")
        rows, blocks, block_bytes = array.shape
        cols = blocks * block_bytes * 8 // BITS["Q4_0"]
        widths.add(cols)
        made.append((p._n_bits(weight, "Q4_0", f"x.{cols}", (1,), weight), rows))
    initializers = [store.initializer(name) for name in g.used]
    inputs = [
        helper.make_tensor_value_info(f"x.{cols}", TensorProto.FLOAT, (1, cols))
        for cols in sorted(widths)
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, r)) for n, r in made]
    graph = helper.make_graph(g.nodes, "bare", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    path = folder / "bare.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    )
    return path


class Bare:
    """That graph."""

    def __init__(self, path: Path, threads: int) -> None:
        self.inference, rng = started(path, threads), np.random.default_rng(0)
        self.given = {
            i.name: rng.standard_normal(i.shape, np.float32) for i in self.inference.get_inputs()
        }

    def at(self, depth: int) -> None:
        pass

    def step(self) -> None:
        self.inference.run(None, self.given)


def same_model(folder: Path) -> float:
    """Relative difference of the two graphs' logits on a small model in F32, a step at a time."""
    spec = SHAPES["plm-tiny"].spec
    synth("plm-tiny", folder / "tiny", quant="F32", file_format="onnx", force=True)
    store = store_of(spec, choose_formats(spec, "F32"), False)
    (folder / "other").mkdir()
    rows = quantizing(SynthWeights(spec, ZEROS, SEED))
    path = write_expanded(store, "F32", folder / "tiny", folder / "other", rows)
    runs = [started(path, 1), started(folder / "tiny" / names.MODEL, 1)]
    logits = []
    for run in runs:
        shapes = {i.name: (1, i.shape[1], 0, i.shape[3]) for i in run.get_inputs()[3:]}
        past = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for at, token in enumerate((5, 7, 11, 13)):
            given = {
                names.IDS: np.array([[token]]), names.POSITIONS: np.array([[at]]),
                names.MASK: np.ones((1, at + 1), np.int64),
            }  # fmt: skip
            last, *present = run.run(None, given | past)
            past = dict(zip(shapes, present, strict=True))
        logits.append(last)
    return float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="plm-1.8b")
    parser.add_argument("--depths", default="64,1024,4032")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="an export of that shape, made before")
    asked = parser.parse_args()
    depths = [int(depth) for depth in asked.depths.split(",")]
    with tempfile.TemporaryDirectory(dir=asked.model and asked.model.parent) as made:
        folder = Path(made)
        print(f"(a) against our graph, small model in F32: {same_model(folder):.1e}")
        bundle, spec = asked.model or folder / "model", SHAPES[asked.shape].spec
        if asked.model is None:
            synth(asked.shape, bundle, zeros=ZEROS, seed=SEED, pure=True, file_format="onnx")
        store = store_of(spec, choose_formats(spec, "Q4_0", pure=True), False)
        rows = quantizing(SynthWeights(spec, ZEROS, SEED))
        (folder / "a").mkdir()
        expanded = write_expanded(store, "Q4_0", bundle, folder / "a", rows)
        bare, threads = write_bare(store, folder / "a"), asked.threads
        engines = {
            "first": Process(Bare, bare, threads),
            "latent": Process(Latent, bundle, threads, max(depths) + asked.rounds + WARM),
            "expanded": Process(Expanded, expanded, threads),
            "products": Process(Bare, bare, threads),
        }
        for depth in depths:
            report(depth, measured(engines, depth, asked.rounds))


class Process:
    """An engine in a process of its own."""

    def __init__(self, engine: type, *given: object) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.line, theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, engine, given), daemon=True).start()
        theirs.close()  # or nobody would notice that it died
        self.line.recv()

    def at(self, depth: int) -> None:
        self.line.send(depth)
        self.line.recv()

    def step(self) -> float:
        """Seconds."""
        self.line.send(None)
        return float(self.line.recv())


def serve(line: Connection, engine: Callable[..., object], given: tuple[object, ...]) -> None:
    """Make an engine, then obey: a depth to go to, or None for a step, answered with seconds."""
    made = engine(*given)
    line.send(0.0)
    with suppress(EOFError):  # nobody asks any more
        while True:
            depth = line.recv()
            began = time.perf_counter()
            made.step() if depth is None else made.at(depth)
            line.send(time.perf_counter() - began)


def measured(engines: dict[str, Process], depth: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, round by round, in a drawn order."""
    for engine in engines.values():
        engine.at(depth)
        for _ in range(WARM):
            engine.step()
    took: dict[str, list[float]] = {name: [] for name in engines}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(engines), len(engines)):
            took[name].append(engines[name].step())
    return took


def report(depth: int, took: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(took[name]) for name in ("latent", "expanded", "products")}
    ratios = {
        "(a) / ours": [a / b for a, b in zip(took["expanded"], took["latent"], strict=True)],
        "ours / (b)": [a / b for a, b in zip(took["latent"], took["products"], strict=True)],
    }
    said = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in middle.items())
    for name, values in ratios.items():
        said += f"; {name} {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    print(f"behind {depth} tokens: {said}", flush=True)


if __name__ == "__main__":
    main()
