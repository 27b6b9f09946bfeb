"""Is the planner right about memory and speed? On models of PLM-1.8B's shape, on this machine.

    python benchmarks/honesty.py [memory] [limit] [speed] [--quants Q4_0,Q8_0] [--contexts 512,4096]
                                [--repeat 5]

memory  planned total beside the peak (VmHWM) of a process that touched every weight and filled the
        whole context.
limit   decode speed under a memory limit of the control group equal to the planned total, beside
        no limit, run by run in turn; then `plm-edge chat` at 90 % of it, which must refuse. Needs
        root and a memory controller (v1 or v2) below /sys/fs/cgroup.
speed   what `plm-edge plan --target host` predicts behind a full context, and what is measured
        within the same minute.

The models (Q4_0 and Q8_0, random weights, 80 % idle units) are made once, in the cache folder. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import plm_edge
from plm_edge.bundle import MANIFEST, MODEL_FILE, read_bundle
from plm_edge.cli.prepare import cache_folder
from plm_edge.devices import detect
from plm_edge.errors import DoesNotFit
from plm_edge.plan import Overrides, Plan, replan_for_load

STEPS = 16  # tokens decoded in a run
GROUPS = (  # folder of a memory controller, its limit, its swap limit
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
)
PROGRAM = str(Path(sys.executable).with_name("plm-edge"))
MIB = 1 << 20


def model(quant: str) -> Path:
    """The bundle to measure, made now if it is not there yet."""
    made = cache_folder() / f"honesty-plm-1.8b-{quant}-{plm_edge.__version__}"
    if not (made / MANIFEST).exists():
        print(f"making a model of PLM-1.8B's shape in {quant}, once", file=sys.stderr)
        from plm_edge.exporters.synth import synth  # a child shall be no larger than a chat

        made.parent.mkdir(parents=True, exist_ok=True)
        synth("plm-1.8b", made, quant=quant, force=True)
    return made


def planned(bundle: Path, n_ctx: int) -> Plan:
    """As `load` plans it on this machine."""
    manifest = read_bundle(bundle)
    exported = Plan.from_dict(manifest.plan)
    return replan_for_load(manifest.spec, exported, detect(), Overrides(n_ctx=n_ctx))[0]


def ids_of(n: int) -> list[int]:
    """Any tokens."""
    return [int(i) for i in np.random.default_rng(0).integers(0, 150_000, n)]


# ---------------------------------------------------------------- the process that is looked at


def child(bundle: Path, n_ctx: int) -> None:
    """Load, touch every weight, fill the context, the last tokens singly; print what it took."""
    with plm_edge.load(bundle, n_ctx=n_ctx, cache_type="f16") as session:
        for weight in session.model.weights.values():
            np.add.reduce(weight.data.reshape(-1)[::512], dtype=np.int64)  # every page
        ids = ids_of(n_ctx)
        session.prefill(ids[:-STEPS])
        started = time.perf_counter()
        for token in ids[-STEPS:]:
            session.step(token)
        seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"peak": peak, "tokens_per_s": STEPS / seconds}))


def run_child(bundle: Path, n_ctx: int, group: Path | None = None) -> dict[str, Any]:
    """Its numbers; in a control group if one is given."""
    command = [sys.executable, __file__, "--child", str(bundle), str(n_ctx)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=_enter(group)
    )
    if ran.returncode:
        raise SystemExit(f"a run ended with {ran.returncode}: {ran.stderr.strip()}")
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def _enter(group: Path | None) -> Any:
    if group is None:
        return None
    return lambda: (group / "cgroup.procs").write_text(str(os.getpid()))


# ---------------------------------------------------------------- memory


def memory(quants: list[str], contexts: list[int]) -> Iterator[dict[str, Any]]:
    """Planned total beside the peak."""
    for quant in quants:
        for n_ctx in contexts:
            plan = planned(model(quant), n_ctx)
            peak = run_child(model(quant), n_ctx)["peak"]
            row = {"quant": quant, "context": n_ctx, "planned": plan.budget.total, "peak": peak}
            row["off"] = plan.budget.total / peak - 1
            print(
                f"memory {quant} {n_ctx:5}: planned {plan.budget.total / MIB:,.0f} MiB, peak "
                f"{peak / MIB:,.0f}, {row['off']:+.1%}",
                flush=True,
            )
            yield row


# ---------------------------------------------------------------- limit


@contextmanager
def limited(nbytes: int) -> Iterator[Path]:
    """A control group with that memory limit and no swap."""
    v1 = (GROUPS[0][0] / GROUPS[0][1]).exists()
    base, limit, swap = GROUPS[0] if v1 else GROUPS[1]
    group = base / f"plm-edge-honesty-{os.getpid()}"
    group.mkdir()
    try:
        if not (group / limit).exists():
            raise SystemExit(f"no memory controller in {base}")
        page = os.sysconf("SC_PAGE_SIZE")
        nbytes = -(-nbytes // page) * page  # the kernel rounds down
        (group / limit).write_text(str(nbytes))
        if (group / swap).exists():
            (group / swap).write_text(str(nbytes if "memsw" in swap else 0))
        yield group
    finally:
        group.rmdir()


def forget(bundle: Path) -> None:
    """Drop the file from the page cache, so that the next to read it is charged for it."""
    fd = os.open(bundle / MODEL_FILE, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def limit(quants: list[str], contexts: list[int], repeat: int) -> Iterator[dict[str, Any]]:
    """Decode under a limit of the planned total, and chat's answer below it."""
    for quant in quants:
        bundle = model(quant)
        for n_ctx in contexts:
            total = planned(bundle, n_ctx).budget.total
            free, bound = [], []
            for _ in range(repeat):
                forget(bundle)
                free.append(run_child(bundle, n_ctx)["tokens_per_s"])
                forget(bundle)
                with limited(total) as group:
                    bound.append(run_child(bundle, n_ctx, group)["tokens_per_s"])
            share = statistics.median(b / f for b, f in zip(bound, free, strict=True))
            row = {"quant": quant, "context": n_ctx, "limit": total, "share": share}
            print(
                f"limit  {quant} {n_ctx:5}: {total / MIB:,.0f} MiB: {statistics.median(bound):.1f} "
                f"of {statistics.median(free):.1f} tokens/s, {share:.0%}",
                flush=True,
            )
            for percent in (100, 90):
                code, said = chat(bundle, n_ctx, total * percent // 100)
                row[f"chat at {percent} %"] = code
                print(f"       chat at {percent} %: exit code {code}: {said}", flush=True)
            yield row


def chat(bundle: Path, n_ctx: int, nbytes: int) -> tuple[int, str]:
    """Exit code of `plm-edge chat` under that limit, and its last line."""
    command = [PROGRAM, "chat", str(bundle), "-c", str(n_ctx), "-p", "hi", "-n", "1"]
    with limited(nbytes) as group:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=_enter(group)
        )
    return ran.returncode, ran.stderr.strip().splitlines()[-1]


# ---------------------------------------------------------------- speed


def speed(quants: list[str], contexts: list[int], repeat: int) -> Iterator[dict[str, Any]]:
    """Predicted and measured decode speed behind a full context, in turn."""
    from plm_edge.runtime.bench.process import Process

    for quant in quants:
        for n_ctx in contexts:
            with Process("plm-edge") as engine:
                setting = dict.fromkeys(("threads", "isa"))
                setting |= {"cache_type": "f16", "head": "full", "activations": "int16"}
                ids, depth = ids_of(n_ctx), n_ctx - STEPS
                engine.ask("open_native", ids=ids, path=str(model(quant)), n_ctx=n_ctx, **setting)
                engine.ask("fill", n=depth)
                errors = []
                for _ in range(repeat):
                    guess = predicted(quant, n_ctx)
                    found = STEPS / engine.ask("tg", tokens=STEPS, depth=depth)["seconds"]
                    errors.append(abs(guess / found - 1))
                    print(f"       {quant} {n_ctx:5}: predicted {guess:.1f}, measured {found:.1f}")
            error = statistics.median(errors)
            print(
                f"speed  {quant} {n_ctx:5}: median error {error:.1%} of {repeat} pairs", flush=True
            )
            yield {"quant": quant, "context": n_ctx, "errors": errors, "median": error}


def predicted(quant: str, n_ctx: int) -> float:
    """The middle of the range that `plan` names for this machine behind a full context."""
    options = ["--target", "host", "--quant", quant, "-c", str(n_ctx), "-ctk", "f16", "--json"]
    ran = subprocess.run(
        [PROGRAM, "plan", "plm-1.8b", *options], capture_output=True, text=True, check=True
    )
    full = json.loads(ran.stdout)["speed"]["full"]
    return float(full["low"] + full["high"]) / 2


def main() -> None:
    """See the top of this file."""
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
        return
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["memory", "limit", "speed"])
    parser.add_argument("--quants", default="Q4_0,Q8_0")
    parser.add_argument("--contexts", default="512,4096")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    quants = given.quants.split(",")
    contexts = [int(n) for n in given.contexts.split(",")]
    parts = {
        "memory": lambda: memory(quants, contexts),
        "limit": lambda: limit(quants, contexts, given.repeat),
        "speed": lambda: speed(quants, contexts, given.repeat),
    }
    try:
        print(json.dumps({part: list(parts[part]()) for part in given.parts}))
    except DoesNotFit as why:
        raise SystemExit(f"this machine is too small for the models: {why}") from None


if __name__ == "__main__":
    main()
