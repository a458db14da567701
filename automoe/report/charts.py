"""Charts as inline SVG text: lines, bars, means with their intervals, heat maps of shares and of a confusion matrix.

Colours are CSS variables of the page (`--ink`, `--grid`, `--c0` ... `--c9`), so that a chart follows its light or dark
theme; every mark carries its numbers as a tooltip. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

Curve = Sequence[tuple[float, float]]

COLORS = 10
"""How many line colours the page defines; further lines start again, dashed."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 12, 40


@dataclass(frozen=True)
class _Plot:
    """The area of a line chart and the way from values to its pixels."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return _TOP + (high - value) / (high - low) * (self.height - _TOP - _BOTTOM)


def line_chart(
    curves: Mapping[str, Curve],
    *,
    x_title: str,
    y_title: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (520, 300),
    dots: bool = True,
) -> str:
    """Named curves of (x, y) points over common axes, with a legend below; empty text where there is no point.

    x_range, y_range: (low, high); from the points if not given, and the y axis then starts at 0 or below.
    """
    curves = {name: points for name, points in curves.items() if len(points)}
    if not curves:
        return ""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x_low, x_high = x_range or (min(xs), max(xs))
    y_low, y_high = y_range or (min(0.0, min(ys)), max(ys))
    # A single value still needs an axis.
    ends = (x_low, max(x_high, x_low + 1e-9)), (y_low, y_high if y_high > y_low else y_low + 1)
    width, height = size
    plot = _Plot(width, height, *ends)
    parts = _axes(plot, x_title, y_title)
    for index, (name, points) in enumerate(curves.items()):
        parts += _curve(plot, name, points, index, dots=dots and len(points) <= 60)
    if len(curves) > 1:
        rows = _legend_rows(list(curves), width)
        parts += _legend(rows, height)
        height += 18 * len(rows) + 4
    return _svg(width, height, parts, f"{y_title} over {x_title}")


def _axes(plot: _Plot, x_title: str, y_title: str) -> list[str]:
    right, floor, parts = plot.width - _RIGHT, plot.height - _BOTTOM, []
    for value in ticks(*plot.y_range, 5):
        y = plot.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", _LEFT - 7, y + 4, _number(value), "end"))
    parts += [_text("tick", plot.x(value), floor + 16, _number(value), "middle") for value in ticks(*plot.x_range, 6)]
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(_text("title", (_LEFT + right) / 2, plot.height - 8, x_title, "middle"))
    turned = f'transform="translate(13 {(_TOP + floor) / 2:.0f}) rotate(-90)"'
    return [*parts, _text("title", 0, 0, y_title, "middle", turned)]


def _curve(plot: _Plot, name: str, points: Curve, index: int, dots: bool) -> list[str]:
    path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in points)
    parts = [f'<polyline class="line" {_line_style(index)} points="{path}"><title>{escape(name)}</title></polyline>']
    for x, y in points if dots else ():
        tip = escape(f"{name}: {_number(y)} at {_number(x)}")
        parts.append(
            f'<circle cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.6" fill="var(--c{index % COLORS})">'
            f"<title>{tip}</title></circle>"
        )
    return parts


def bar_chart(rows: Sequence[tuple[str, float | None, str]], *, width: int = 520, high: float = 100.0) -> str:
    """Horizontal bars: (name, value in 0..high or None, what stands behind the bar)."""
    if not rows:
        return ""
    left = min(170, 14 + 7 * max(len(name) for name, _, _ in rows))
    right = 14 + round(6.2 * max(len(text) for _, _, text in rows))
    room, step = width - left - right, 23
    parts = []
    for index, (name, value, text) in enumerate(rows):
        y = 4 + index * step
        length = max(0.0, min((value or 0.0) / high, 1.0)) * room
        parts.append(_text("label", left - 8, y + 13, name, "end"))
        parts.append(f'<rect class="track" x="{left}" y="{y + 2}" width="{room}" height="14" rx="3"/>')
        parts.append(f'<rect class="bar" x="{left}" y="{y + 2}" width="{length:.1f}" height="14" rx="3"/>')
        parts.append(_text("tick", left + room + 8, y + 13, text, "start"))
    return _svg(width, 8 + step * len(rows), parts, "bars")


@dataclass(frozen=True)
class Mean:
    """A mean and what it is of. half: half width of its interval, infinite where there is none. single: what it is the
    mean of, by name."""

    name: str
    value: float
    half: float
    single: Mapping[str, float]


def interval_chart(means: Sequence[Mean], *, x_title: str, width: int = 520, high: float = 100.0) -> str:
    """Horizontal bars of means in 0..high, a whisker over each interval (cut off at 0 and high) and a dot for every
    single value, over an axis."""
    if not means:
        return ""
    texts = [f"{mean.value:.1f}" + (f" ± {mean.half:.1f}" if math.isfinite(mean.half) else "") for mean in means]
    left = min(170, 14 + 7 * max(len(mean.name) for mean in means))
    right = 14 + round(6.6 * max(map(len, texts)))
    room, step, top = width - left - right, 30, 6
    floor = top + step * len(means)

    def x(value: float) -> float:
        return left + max(0.0, min(value / high, 1.0)) * room

    parts = []
    for value in ticks(0.0, high, 5):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{floor}"/>')
        parts.append(_text("tick", x(value), floor + 16, _number(value), "middle"))
    for index, (mean, text) in enumerate(zip(means, texts, strict=True)):
        y = top + (index + 0.5) * step
        length = x(mean.value) - left
        parts.append(_text("label", left - 8, y + 4, mean.name, "end"))
        parts.append(f'<rect class="bar" x="{left}" y="{y - 8:.1f}" width="{length:.1f}" height="16" rx="3"/>')
        if math.isfinite(mean.half):
            parts += _whisker(x, y, mean.value - mean.half, mean.value + mean.half, high)
        for name, value in mean.single.items():
            tip = escape(f"{mean.name}, {name}: {value:.1f}")
            dot = f'class="single" cx="{x(value):.1f}" cy="{y:.1f}" r="3.2"'
            parts.append(f"<circle {dot}><title>{tip}</title></circle>")
        parts.append(_text("tick", left + room + 8, y + 4, text, "start"))
    parts.append(f'<line class="axis" x1="{left}" x2="{left + room}" y1="{floor}" y2="{floor}"/>')
    parts.append(_text("title", left + room / 2, floor + 34, x_title, "middle"))
    return _svg(width, floor + 42, parts, f"{x_title} with intervals")


def _whisker(x: Callable[[float], float], y: float, low: float, high: float, most: float) -> list[str]:
    """A line from low to high with an upright at each end that isn't cut off."""
    ends = [(x(low), y, x(high), y)]
    ends += [(x(end), y - 5, x(end), y + 5) for end in (low, high) if 0.0 <= end <= most]
    return [f'<line class="whisker" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>' for a, b, c, d in ends]


ShareRow = tuple[str, Sequence[float], str]
"""A row's name, its shares (0 to 1) by column, and what stands behind them."""


def share_chart(rows: Sequence[ShareRow], columns: Sequence[str]) -> str:
    """A heat map of shares in percent."""
    if not rows or not columns:
        return ""
    width, height, top = max(56, 12 + 7 * max(map(len, columns))), 26, 26
    left = 14 + round(6.6 * max(len(name) for name, _, _ in rows))
    right = 14 + round(6.2 * max(len(text) for _, _, text in rows))
    parts = [_text("label", left + (i + 0.5) * width, top - 8, name, "middle") for i, name in enumerate(columns)]
    for line, (name, shares, text) in enumerate(rows):
        y = top + line * height
        parts.append(_text("label", left - 8, y + height / 2 + 4, name, "end"))
        for place, (column, share) in enumerate(zip(columns, shares, strict=True)):
            box = (left + place * width, y, width - 2, height - 2)
            parts.append(_cell(box, share, "var(--accent)", share, f"{name}: {column} {100 * share:.1f} %"))
        parts.append(_text("tick", left + width * len(columns) + 8, y + height / 2 + 4, text, "start"))
    return _svg(left + width * len(columns) + right, top + height * len(rows) + 4, parts, "shares")


def confusion_chart(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A heat map of pixel counts [C, C or more]: truth by row, prediction by column, each row shared out to 100 %.

    Classes without a true pixel are left out as rows, and as columns unless something was mistaken for them.
    """
    counts = np.asarray(counts, np.float64)[:, : len(classes)]
    rows: list[int] = np.flatnonzero(counts.sum(axis=1) > 0).tolist()
    columns: list[int] = np.flatnonzero((counts.sum(axis=0) > 0) | (counts.sum(axis=1) > 0)).tolist()
    if not rows:
        return ""
    many = len(columns) > 6
    width, height, left, top = (30, 30, 104, 92) if many else (92, 44, 104, 34)
    parts = [_text("title", left - 8, top - 8, "true \\ said", "end")]
    for place, column in enumerate(columns):
        x = left + (place + 0.5) * width
        turned = f'transform="rotate(-50 {x:.0f} {top - 8})"' if many else ""
        parts.append(_text("label", x, top - 8, classes[column], "start" if many else "middle", turned))
    for line, row in enumerate(rows):
        y = top + line * height
        parts.append(_text("label", left - 8, y + height / 2 + 4, classes[row], "end"))
        for place, column in enumerate(columns):
            share = float(counts[row, column] / counts[row].sum())
            tip = f"{classes[row]} called {classes[column]}: {100 * share:.1f} %"
            box = (left + place * width, y, width - 2, height - 2)
            color = "var(--good)" if row == column else "var(--bad)"
            # The square root lifts the small mistakes, which are what one looks for.
            parts.append(_cell(box, share, color, math.sqrt(share), tip))
    # The last turned name needs room to the right.
    return _svg(left + width * len(columns) + (50 if many else 10), top + height * len(rows) + 6, parts, "confusion")


def _cell(box: tuple[float, float, float, float], share: float, color: str, strength: float, tip: str) -> str:
    """One field (x, y, width, height) with its share in percent, in a colour of a strength from 0 to 1."""
    x, y, width, height = box
    place = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="2"'
    ink = 'style="fill:#fff"' if strength > 0.6 else ""
    number = _text("cell", x + width / 2, y + height / 2 + 4, f"{100 * share:.0f}", "middle", ink)
    return (
        f'<g><title>{escape(tip)}</title><rect class="track" {place}/>'
        f'<rect {place} fill="{color}" opacity="{strength:.2f}"/>{number if share >= 0.005 else ""}</g>'
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between low and high, about so many."""
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line_style(index: int) -> str:
    dash = ' stroke-dasharray="6 4"' if index >= COLORS else ""
    return f'stroke="var(--c{index % COLORS})"{dash}'


def _legend_rows(names: Sequence[str], width: int) -> list[list[tuple[int, int, str]]]:
    """(x, index, name) of each entry, in as many lines as needed."""
    rows: list[list[tuple[int, int, str]]] = [[]]
    x = _LEFT
    for index, name in enumerate(names):
        length = 34 + round(6.6 * len(name))
        if x + length > width and rows[-1]:
            rows.append([])
            x = _LEFT
        rows[-1].append((x, index, name))
        x += length
    return rows


def _legend(rows: Sequence[Sequence[tuple[int, int, str]]], top: float) -> list[str]:
    parts = []
    for line, row in enumerate(rows):
        y = top + 12 + 18 * line
        for x, index, name in row:
            parts.append(f'<line class="line" {_line_style(index)} x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}"/>')
            parts.append(_text("label", x + 24, y, name, "start"))
    return parts


def _text(kind: str, x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
