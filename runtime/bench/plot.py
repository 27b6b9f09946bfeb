"""Decoding over context as a drawing: tokens per second and peak memory, in SVG written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.sax.saxutils import escape

from plm_edge.atomic import write_atomic
from plm_edge.runtime.bench.case import OURS, Result

WIDTH, HEIGHT = 960, 400  # of the drawing, pixels
_PANEL_WIDTH, _PANEL_HEIGHT, _TOP = 360, 250, 70
_LEFTS = (70, 560)  # of the two panels
_TICKS = 5  # about as many on an axis
_COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7c3aed", "#a16207", "#be185d")

Points = list[tuple[float, float]]  # (tokens of context, value)


@dataclass(frozen=True)
class Panel:
    """One diagram: a line for each name."""

    title: str
    left: float
    lines: Mapping[str, Points]

    @property
    def most(self) -> tuple[float, float]:
        """The ends of both axes, which begin at 0."""
        points = [(1e-9, 1e-9), *(point for line in self.lines.values() for point in line)]
        return max(x for x, _ in points), max(y for _, y in points)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """In pixels."""
        most_x, most_y = self.most
        return (
            self.left + _PANEL_WIDTH * x / most_x,
            _TOP + _PANEL_HEIGHT * (1 - y / (1.1 * most_y)),
        )


def write_plot(path: Path, title: str, results: Sequence[Result]) -> None:
    """Write the drawing of all tg results; what this machine does not tell is left out."""
    text = "\n".join(_drawing(title, results)) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomic(path, write)


def lines_of(results: Sequence[Result]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Name -> tokens per second, and peak MiB, over context."""
    decoded = [result for result in results if result.case.kind == "tg"]
    several = len({r.setting.threads for r in decoded if r.setting.engine == OURS}) > 1
    speed: dict[str, Points] = {}
    memory: dict[str, Points] = {}
    threads = 0  # of ours, which the results of others follow
    for result in decoded:
        threads = result.setting.threads if result.setting.engine == OURS else threads
        name = result.setting.engine + (f", -t {threads}" if several else "")
        context = result.case.depth + result.case.tokens / 2  # in the middle of the run
        speed.setdefault(name, []).append((context, result.rate))
        if result.peak_bytes is not None:
            memory.setdefault(name, []).append((context, result.peak_bytes / 2**20))
    return speed, memory


def _drawing(title: str, results: Sequence[Result]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">'
    )
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    yield _text(WIDTH / 2, 26, f"Decoding {title}", size=16)
    speed, memory = lines_of(results)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(speed)}
    titles = ("tokens per second over context", "peak memory over context, MiB")
    for panel_title, left, lines in zip(titles, _LEFTS, (speed, memory), strict=True):
        yield from _panel(Panel(panel_title, left, lines), colours)
    for i, (name, colour) in enumerate(colours.items()):
        x = _LEFTS[0] + i * (WIDTH - _LEFTS[0]) / len(colours)
        yield f'<rect x="{x:.1f}" y="{HEIGHT - 26}" width="14" height="14" fill="{colour}"/>'
        yield _text(x + 20, HEIGHT - 14, name, anchor="start")
    yield "</svg>"


def _panel(panel: Panel, colours: Mapping[str, str]) -> Iterator[str]:
    yield _text(panel.left + _PANEL_WIDTH / 2, _TOP - 14, panel.title)
    end_x, end_y = panel.most
    for value in ticks(1.1 * end_y):
        x, y = panel.place(0, value)
        yield f'<path d="M{x:.1f} {y:.1f}h{_PANEL_WIDTH}" stroke="#ddd"/>'
        yield _text(x - 8, y + 4, f"{value:,.10g}", anchor="end")
    for value in ticks(end_x):
        x, y = panel.place(value, 0)
        yield f'<path d="M{x:.1f} {y:.1f}v5" stroke="#555"/>'
        yield _text(x, y + 20, f"{value:,.10g}")
    yield _text(panel.left + _PANEL_WIDTH / 2, _TOP + _PANEL_HEIGHT + 38, "tokens of context")
    x, y = panel.place(0, 0)
    yield f'<path d="M{x:.1f} {_TOP}V{y:.1f}h{_PANEL_WIDTH}" fill="none" stroke="#555"/>'
    for name, points in panel.lines.items():
        places = [panel.place(*point) for point in sorted(points)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield (
            f'<polyline points="{joined}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'
        )
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colours[name]}"/>'


def ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end`: steps of 1, 2 or 5 times a power of ten."""
    rough = end / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [step * i for i in range(math.floor(end / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 13) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="#222">{escape(text)}</text>'
