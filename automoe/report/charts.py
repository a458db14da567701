"""Charts as inline SVG text: lines, bars and a heat map of a confusion matrix.

Colours are CSS variables of the page (`--ink`, `--grid`, `--c0` ... `--c9`), so that a chart follows its light or dark
theme; every mark carries its numbers as a tooltip. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

Curve = Sequence[tuple[float, float]]

COLORS = 10
"""How many line colours the page defines; further lines start again, dashed."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40


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
    """Named curves of (x, y) points over common axes, with a legend below. Empty curves are left out.

    x_range, y_range: (low, high); from the points if not given, the y axis then starts at 0 or below.
    """
    curves = {name: points for name, points in curves.items() if len(points)}
    if not curves:
        return ""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x_low, x_high = x_range or (min(xs), max(xs))
    y_low, y_high = y_range or (min(0.0, min(ys)), max(ys))
    x_high, y_high = (high if high > low else low + 1 for low, high in ((x_low, x_high), (y_low, y_high)))
    width, height = size
    legend = _legend_rows(list(curves), width)
    plot_width, plot_height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * plot_width
        return right, _TOP + (1 - (y - y_low) / (y_high - y_low)) * plot_height

    parts = []
    for y in ticks(y_low, y_high, 5):
        _, at = place(x_low, y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in ticks(x_low, x_high, 6):
        at, _ = place(x, y_low)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{height - _BOTTOM + 16}" text-anchor="middle">{_number(x)}</text>'
        )
    floor = height - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = _LEFT + plot_width / 2
    parts.append(f'<text class="title" x="{middle:.0f}" y="{height - 8}" text-anchor="middle">{escape(x_title)}</text>')
    centre = _TOP + plot_height / 2
    parts.append(
        f'<text class="title" transform="translate(13 {centre:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    for index, (name, points) in enumerate(curves.items()):
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        style = _line_style(index)
        parts.append(f'<polyline class="line" {style} points="{path}"><title>{escape(name)}</title></polyline>')
        if dots and len(points) <= 60:
            for (px, py), (x, y) in zip(placed, points):
                parts.append(
                    f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="var(--c{index % COLORS})">'
                    f"<title>{escape(name)}: {_number(y)} at {_number(x)}</title></circle>"
                )
    if len(curves) > 1:
        parts += _legend(legend, height)
        height += 18 * len(legend) + 4
    return _svg(width, height, parts, f"{y_title} over {x_title}")


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
        length = 0.0 if value is None else max(0.0, min(value / high, 1.0)) * room
        parts.append(f'<text class="label" x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="track" x="{left}" y="{y + 2}" width="{room}" height="14" rx="3"/>')
        parts.append(
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{length:.1f}" height="14" rx="3">'
            f"<title>{escape(f'{name}: {text}')}</title></rect>"
        )
        parts.append(f'<text class="tick" x="{left + room + 8}" y="{y + 13}">{escape(text)}</text>')
    return _svg(width, 8 + step * len(rows), parts, "bars")


def confusion_chart(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A heat map of pixel counts [C, C or more]: truth by row, prediction by column, each row shared out to 100 %.

    Classes without a true pixel are left out as rows, and as columns unless something was mistaken for them.
    """
    counts = np.asarray(counts, np.float64)[:, : len(classes)]
    rows: list[int] = np.flatnonzero(counts.sum(axis=1) > 0).tolist()
    columns: list[int] = np.flatnonzero((counts.sum(axis=0) > 0) | (counts.sum(axis=1) > 0)).tolist()
    if not rows:
        return ""
    share = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
    cell = 30 if len(columns) > 6 else 56
    left, top = 104, 92 if len(columns) > 6 else 34
    parts = [f'<text class="title" x="{left - 8}" y="{top - 8}" text-anchor="end">true \\ said</text>']
    for place, column in enumerate(columns):
        x, name = left + (place + 0.5) * cell, escape(classes[column])
        turned = f"rotate(-50 {x:.0f} {top - 8})" if len(columns) > 6 else ""
        anchor = "start" if turned else "middle"
        parts.append(
            f'<text class="label" x="{x:.0f}" y="{top - 8}" text-anchor="{anchor}" transform="{turned}">{name}</text>'
        )
    for line, row in enumerate(rows):
        y = top + line * cell
        name = escape(classes[row])
        parts.append(f'<text class="label" x="{left - 8}" y="{y + cell / 2 + 4}" text-anchor="end">{name}</text>')
        for place, column in enumerate(columns):
            parts.append(_cell(left + place * cell, y, cell, float(share[line, column]), row == column, name,
                               escape(classes[column])))  # fmt: skip
    width = left + cell * len(columns) + (50 if len(columns) > 6 else 10)
    return _svg(width, top + cell * len(rows) + 6, parts, "confusion matrix")


def _cell(x: float, y: float, cell: int, share: float, right: bool, true: str, said: str) -> str:
    color = "var(--good)" if right else "var(--bad)"
    # The square root lifts the small mistakes, which are what one looks for.
    strength = math.sqrt(share)
    text = ""
    if share >= 0.005:
        ink = "#fff" if strength > 0.6 else "var(--ink)"
        text = (
            f'<text class="cell" x="{x + cell / 2:.0f}" y="{y + cell / 2 + 4:.0f}" text-anchor="middle" '
            f'style="fill:{ink}">{100 * share:.0f}</text>'
        )
    side = cell - 2
    return (
        f"<g><title>{true} called {said}: {100 * share:.1f} %</title>"
        f'<rect class="track" x="{x}" y="{y}" width="{side}" height="{side}" rx="2"/>'
        f'<rect x="{x}" y="{y}" width="{side}" height="{side}" rx="2" fill="{color}" opacity="{strength:.2f}"/>'
        f"{text}</g>"
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
            parts.append(f'<text class="label" x="{x + 24}" y="{y}">{escape(name)}</text>')
    return parts


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
