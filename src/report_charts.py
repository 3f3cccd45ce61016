"""Small charts as inline SVG: learning curves and score bars. Text in, text out, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 26


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) in order of x."""

    name: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False
    """Few points (validations) are drawn with a dot each."""


def smoothed(points: Sequence[tuple[float, float]], span: int) -> tuple[tuple[float, float], ...]:
    """Running mean over `span` points, at most 300 points kept; what is not finite is left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    out, total = [], 0.0
    for index, (x, y) in enumerate(finite):
        total += y
        if index >= span:
            total -= finite[index - span][1]
        out.append((x, total / min(index + 1, span)))
    step = max(1, -(-len(out) // 300))
    kept = out[::step]
    return tuple(kept if not out or kept[-1] == out[-1] else [*kept, out[-1]])


def curve_chart(title: str, lines: Sequence[Line], x_label: str = "step") -> str:
    """Curves over one x axis, as a figure with its legend."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), 4)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 4)
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low = min(y_ticks[0], *(y for _, y in points))
    y_high = max(y_ticks[-1], *(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = []
    for value in y_ticks:
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{number(value)}</text>')
    for value in x_ticks:
        if not x_low <= value <= x_high:
            continue
        x, _ = place(value, y_low)
        parts.append(f'<text x="{x}" y="{HEIGHT - 9}" text-anchor="middle">{number(value)}</text>')
    for index, line in enumerate(lines):
        parts.append(_curve(line, index, place))
    legend = "".join(
        f'<span class="key c{index % 6}">{escape(line.name)}</span>'
        for index, line in enumerate(lines)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
        f'<div class="legend">{legend}<span class="axis">{escape(x_label)}</span></div></figure>'
    )


def _curve(line: Line, index: int, place: object) -> str:
    assert callable(place)
    places = [place(x, y) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    out = f'<polyline class="c{index % 6}" points="{path}"/>'
    if line.dots or len(places) == 1:
        out += "".join(
            f'<circle class="c{index % 6}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in places
        )
    return out


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values that cover [low, high], about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A figure as short as it can be read: 0.25, 1.5k, 3e-05."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def score_bar(
    value: float,
    marks: Sequence[tuple[str, float]] = (),
    interval: tuple[float, float] | None = None,
) -> str:
    """A bar from 0 to 1 with a whisker and named ticks (chance, majority)."""
    parts = [f'<i class="fill" style="width:{_percent(value)}"></i>']
    if interval is not None:
        low, high = interval
        width = _percent(max(0.0, high - low))
        parts.append(f'<i class="whisker" style="left:{_percent(low)};width:{width}"></i>')
    for name, at in marks:
        title = f"{escape(name)} {at:.3f}"
        parts.append(
            f'<i class="mark {escape(name)}" title="{title}" style="left:{_percent(at)}"></i>'
        )
    return f'<div class="bar">{"".join(parts)}</div>'


def _percent(value: float) -> str:
    return f"{100 * min(1.0, max(0.0, value)):.2f}%"
