"""The order of the runs: every engine, and a plain read of memory, in each round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from plm_edge.devices import detect
from plm_edge.errors import PlmEdgeError, UnsupportedError
from plm_edge.llama_cpp import CACHE_TYPES, FLASH_ATTENTION
from plm_edge.native.bandwidth import BUFFER_BYTES
from plm_edge.runtime.bench.case import OURS, THEIRS, Case, Result, Setting
from plm_edge.runtime.bench.process import EngineDied, Process

# Runs that find llama.cpp's fastest setting: tokens of each, and how often.
TRIAL_TOKENS = {"pp": 128, "tg": 8}
TRIALS = 3

Say = Callable[[str], None]  # progress


@dataclass(frozen=True)
class Task:
    """What to measure. Every case has its own processes, with a context of just its length."""

    model: Path  # what our session loads
    layout: str  # of that file
    ids: Sequence[int]  # the text that is fed; at least as long as the longest case
    prompt: int = 512  # tokens of pp, 0: none
    predict: int = 128  # tokens of tg, 0: none
    depths: tuple[int, ...] = (0,)
    threads: tuple[int | None, ...] = (None,)  # None: as planned for this machine
    repetitions: int = 5
    cache_type: str = "f16"  # of our session
    isa: str | None = None
    head: str = "full"  # or "screened"
    activations: str = "int16"  # or "int8"
    rivals: Mapping[str, Path] = field(default_factory=dict)  # layout -> file for llama.cpp

    def cases(self, depth: int) -> list[Case]:
        """Those behind `depth` tokens."""
        both = [Case("pp", self.prompt, depth), Case("tg", self.predict, depth)]
        return [case for case in both if case.tokens]


@dataclass(frozen=True)
class _Side:
    """An engine, its setting, and its process."""

    process: Process
    setting: Setting
    cache_bytes: int

    def seconds(self, case: Case) -> tuple[float, float | None]:
        """Of one run, and of the kernels in it."""
        answer = self.process.ask(case.kind, tokens=case.tokens, depth=case.depth)
        return answer["seconds"], answer["kernel_s"]


def measure(task: Task, say: Say) -> Iterator[Result]:
    """Results as they come: for each number of threads and depth ours, and llama.cpp's fastest."""
    try:
        with Process("the reader") as reader:
            nbytes = min(BUFFER_BYTES, detect().usable_bytes // 8)
            reader.ask("open_reader", nbytes=nbytes)
            for threads in task.threads:
                for depth in task.depths:
                    yield from _at_depth(task, reader, threads, depth, say)
    except EngineDied as why:
        raise UnsupportedError(f"expected every engine to answer, found that {why}") from None


def _at_depth(
    task: Task, reader: Process, threads: int | None, depth: int, say: Say
) -> Iterator[Result]:
    cases = task.cases(depth)
    n_ctx = depth + max(case.tokens for case in cases)
    ids = list(task.ids[:n_ctx])
    with ExitStack() as stack:
        say(f"d{depth}: fill the cache")
        ours = _open_ours(stack.enter_context(Process(OURS)), task, ids, threads)
        ours.process.ask("fill", n=depth)
        rivals = []
        for setting in _settings(task.rivals, ours.setting.threads):
            say(f"d{depth}: fill the cache of {setting.name}")
            process = stack.enter_context(Process(THEIRS))
            file = task.rivals[setting.layout]
            if (side := _open_rival(process, file, ids, setting, depth, say)) is not None:
                rivals.append(side)
        if task.rivals and not rivals:
            raise UnsupportedError("expected a setting that llama.cpp runs, found none")
        for case in cases:
            sides = [ours, *([_fastest(rivals, case, say)] if rivals else [])]
            yield from _rounds(case, sides, reader, task.repetitions, say)


def _open_ours(process: Process, task: Task, ids: list[int], threads: int | None) -> _Side:
    facts = process.ask(
        "open_native",
        ids=ids,
        path=str(task.model),
        n_ctx=len(ids),
        cache_type=task.cache_type,
        threads=threads,
        isa=task.isa,
        head=task.head,
        activations=task.activations,
    )
    ours = facts["threads"], facts["isa"], task.head, task.activations
    setting = Setting(OURS, task.layout, task.cache_type, *ours)
    return _Side(process, setting, facts["cache_bytes"])


def _settings(layouts: Iterable[str], threads: int) -> Iterator[Setting]:
    """Every way in which llama.cpp can run these layouts."""
    for layout in layouts:
        for flash in FLASH_ATTENTION[layout]:
            for cache_type in CACHE_TYPES:
                yield Setting(THEIRS, layout, cache_type, threads, flash=flash)


def _open_rival(
    process: Process, file: Path, ids: list[int], setting: Setting, depth: int, say: Say
) -> _Side | None:
    """None where llama.cpp cannot run this setting, which is said."""
    try:
        facts = process.ask(
            "open_llama",
            ids=ids,
            path=str(file),
            n_ctx=len(ids),
            layout=setting.layout,
            cache_type=setting.cache_type,
            threads=setting.threads,
            flash=setting.flash,
        )
        process.ask("fill", n=max(1, depth))  # at least one token: what aborts, aborts here
    except (EngineDied, PlmEdgeError) as why:
        say(f"left out {setting.name}: {why}")
        return None
    return _Side(process, setting, facts["cache_bytes"])


def _fastest(rivals: Sequence[_Side], case: Case, say: Say) -> _Side:
    """The one of llama.cpp's settings that is fastest in a short run of this case."""
    tokens = min(case.tokens, TRIAL_TOKENS[case.kind])
    short = replace(case, tokens=tokens)
    tried = [
        replace(side, setting=replace(side.setting, threads=threads))
        for side in rivals
        for threads in range(1, side.setting.threads + 1)
    ]
    best = dict.fromkeys(tried, math.inf)  # seconds
    for i in range(TRIALS):
        say(f"{case.name}: try {len(tried)} settings of {THEIRS}, {i + 1} of {TRIALS}")
        for side in tried:
            side.process.ask("threads", n=side.setting.threads)
            best[side] = min(best[side], side.seconds(short)[0])
    fastest = min(best, key=lambda side: best[side])
    say(f"{case.name}: the fastest is {fastest.setting.name}")
    fastest.process.ask("threads", n=fastest.setting.threads)
    return fastest


def _rounds(
    case: Case, sides: Sequence[_Side], reader: Process, repetitions: int, say: Say
) -> Iterator[Result]:
    """Each side once a round, who begins changes; the first side is ours."""
    ours = sides[0]
    read_bytes = _warmed_up(ours, case)
    seconds: list[list[float]] = [[] for _ in sides]
    inside, bandwidth = [], []  # share of our time in kernels; bytes per second of a plain read
    for i in range(repetitions):
        say(f"{case.name}: run {i + 1} of {repetitions}")
        order = range(len(sides)) if i % 2 == 0 else reversed(range(len(sides)))
        for k in order:
            taken, kernels = sides[k].seconds(case)
            seconds[k].append(taken)
            inside += [kernels / taken] if kernels is not None else []
        bandwidth.append(reader.ask("read", threads=ours.setting.threads)["bytes_per_s"])
    for side, times in zip(sides, seconds, strict=True):
        mine = side is ours
        ratios = (theirs / own for own, theirs in zip(seconds[0], times, strict=True))
        yield Result(
            case=case,
            setting=side.setting,
            seconds=tuple(times),
            read_bytes_per_s=statistics.median(bandwidth),
            bytes_per_token=read_bytes if mine else None,
            peak_bytes=side.process.ask("peak")["bytes"],
            cache_bytes=side.cache_bytes,
            outside_share=1 - statistics.median(inside) if mine else None,
            ratios=() if mine else tuple(ratios),
        )


def _warmed_up(ours: _Side, case: Case) -> float | None:
    """One run that is not timed; the bytes it reads per token, where it decodes."""
    if case.kind == "pp":
        ours.seconds(case)
        return None
    answer = ours.process.ask("count", tokens=case.tokens, depth=case.depth)
    nbytes: float | None = answer["bytes_per_token"]
    return nbytes
