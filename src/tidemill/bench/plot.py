"""How the limit of calls follows a backend: its samples as a picture, in SVG. No I/O."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

WIDTH: Final = 900
HEIGHT: Final = 360
LEFT: Final = 50
BOTTOM: Final = 40
TOP: Final = 44
NAMESPACE: Final = "http://www.w3.org/2000/svg"
FONT: Final = "sans-serif"
TICKS: Final = 5
BARS_MAX: Final = 120
"""Refused calls are counted in stretches of time, so many at most."""
COLOURS: Final = {
    "capacity": "#bbbbbb",
    "in flight": "#2b6cb0",
    "limit": "#dd6b20",
    "refused, part of calls": "#c53030",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was seen at one time; `seconds` since the first line, `refused` and `calls` since then."""

    seconds: float
    limit: float
    in_flight: float
    calls: int
    refused: int
    capacity: int
    """What the backend took at that time."""


def svg(title: str, samples: Sequence[Sample]) -> str:
    """The picture: capacity, limit and calls in flight over time, and what part of the calls was refused."""
    seconds_max = max((sample.seconds for sample in samples), default=0.0) or 1.0
    calls_max = max((max(s.limit, s.in_flight, s.capacity) for s in samples), default=0.0) * 1.1 or 1.0

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * seconds / seconds_max

    def y(calls: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * calls / calls_max

    parts = [
        f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        *_legend(),
        *_axes(x, y, seconds_max, calls_max),
        *_bars(x, y, samples, seconds_max, calls_max),
        _line(x, y, "capacity", [(s.seconds, s.capacity) for s in samples], width=6),
        _line(x, y, "in flight", [(s.seconds, s.in_flight) for s in samples]),
        _line(x, y, "limit", [(s.seconds, s.limit) for s in samples]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


Scale = Callable[[float], float]


def _line(x: Scale, y: Scale, name: str, points: Sequence[tuple[float, float]], width: float = 1.5) -> str:
    path = " ".join(f"{x(seconds):.1f},{y(calls):.1f}" for seconds, calls in points)
    return f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="{width}"/>'


def _legend() -> Iterator[str]:
    for number, (name, colour) in enumerate(COLOURS.items()):
        at = LEFT + 110 * number
        yield f'<rect x="{at}" y="26" width="10" height="10" fill="{colour}"/>'
        yield f'<text x="{at + 14}" y="35">{name}</text>'


def _axes(x: Scale, y: Scale, seconds_max: float, calls_max: float) -> Iterator[str]:
    for number in range(TICKS + 1):
        calls, seconds = calls_max * number / TICKS, seconds_max * number / TICKS
        yield f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(calls):.1f}" y2="{y(calls):.1f}" stroke="#eeeeee"/>'
        yield f'<text x="{LEFT - 6}" y="{y(calls) + 4:.1f}" text-anchor="end">{calls:.0f}</text>'
        yield f'<text x="{x(seconds):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{seconds:.0f} s</text>'


def _bars(x: Scale, y: Scale, samples: Sequence[Sample], seconds_max: float, calls_max: float) -> Iterator[str]:
    """The part of the calls that was refused, from one chosen sample to the next; all of them are full height."""
    chosen = [*samples[:: max(1, -(-len(samples) // BARS_MAX))], *samples[-1:]]
    for before, after in pairwise(chosen):
        if (refused := after.refused - before.refused) <= 0:
            continue
        height = calls_max * min(1.0, refused / max(1, after.calls - before.calls))
        width = max(1.0, (WIDTH - LEFT) * (after.seconds - before.seconds) / seconds_max - 0.5)
        top = y(height)
        yield (
            f'<rect x="{x(before.seconds):.1f}" y="{top:.1f}" width="{width:.1f}" height="{y(0) - top:.1f}" '
            f'fill="{COLOURS["refused, part of calls"]}" fill-opacity="0.6"/>'
        )
