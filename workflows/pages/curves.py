"""Curves over steps as an SVG picture that takes its colours from the page that it stands in."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Points = Sequence[tuple[float, float]]

MAX_POINTS = 400
"""of a curve that are drawn: what is more is averaged, a run of neighbours a point"""
LOG_FROM = 5.0
"""times the lowest: where the highest is further above it, equal steps up the axis are equal factors"""
TOP, BOTTOM, LINE_HEIGHT, LETTER = 10, 46, 14, 7
"""px; LETTER is the width of a digit, at least"""
MANTISSAS = (1, 2, 5)


@dataclass(frozen=True)
class Curve:
    """Values over steps."""

    name: str
    """in full, for the legend"""
    label: str
    """a word or two, at its end"""
    points: Points
    """x and y; a y that is not finite leaves a gap"""


@dataclass(frozen=True)
class Axis:
    """Values of low … high to pixels of start … stop."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.stop - self.start)


def line_chart(curves: Sequence[Curve], x_name: str, y_name: str, width: int, height: int) -> str:
    """An SVG of so many pixels, with ticks on both axes and a label at each curve's end; "" if there is no point.

    The y axis is logarithmic if all values are positive and LOG_FROM apart. Curve i has the class `curve-i`.
    """
    curves = [Curve(curve.name, curve.label, thinned(curve.points)) for curve in curves]
    drawn = [(x, y) for curve in curves for x, y in curve.points if math.isfinite(y)]
    if not drawn:
        return ""
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    log = min(ys) > 0 and max(ys) / min(ys) > LOG_FROM
    low, high = widened(min(ys), max(ys), log)
    y_ticks = log_ticks(low, high) if log else ticks(low, high, (height - TOP - BOTTOM) // 50)
    left = 26 + LETTER * max(map(len, map(in_digits, y_ticks)), default=1)
    right = width - 12 - LETTER * max(len(curve.label) for curve in curves)
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    x_axis, y_axis = Axis(x_low, x_high, left, right), Axis(low, high, height - BOTTOM, TOP, log)
    parts = [
        *(_y_tick(y_axis.at(value), value, left, right) for value in y_ticks),
        *(_x_tick(x_axis.at(value), value, height - BOTTOM) for value in ticks(x_low, x_high, (right - left) // 80)),
        _text((left + right) / 2, height - 6, x_name, "middle"),
        f'<text class="name" text-anchor="middle" transform="translate(12 {(height - BOTTOM + TOP) / 2:.0f}) '
        f'rotate(-90)">{escape(y_name)}{", log scale" if log else ""}</text>',
        *(_curve(i, curve, x_axis, y_axis) for i, curve in reversed([*enumerate(curves)])),  # the first on top
        *_end_labels(curves, y_axis, right + 8),
    ]
    names = ", ".join(curve.name for curve in curves)
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(f"{y_name} over {x_name}: {names}")}">{"".join(parts)}</svg>'
    )


def thinned(points: Points, most: int = MAX_POINTS) -> Points:
    """At most so many points, each the mean of a run of neighbours, without those that are not finite."""
    if len(points) <= most:
        return points
    run, means = math.ceil(len(points) / most), []
    for start in range(0, len(points), run):
        some = points[start : start + run]
        finite = [y for _, y in some if math.isfinite(y)]
        means.append((some[-1][0], sum(finite) / len(finite) if finite else math.nan))
    return means


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in low … high, as many as fit `about`: 1, 2 or 5 times a power of ten apart."""
    least = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(m * power for m in (*MANTISSAS, 10) if m * power >= least * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in low … high (both positive), and 2 and 5 times these where there are fewer than three."""
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    sparse = [power for power in powers if low <= power <= high]
    dense = [m * power for power in powers for m in MANTISSAS if low <= m * power <= high]
    return sparse if len(sparse) > 2 else dense


def widened(low: float, high: float, log: bool) -> tuple[float, float]:
    """Some room below and above, also of a single value."""
    if log:
        room = math.exp(0.05 * (math.log(high) - math.log(low)))  # their ratio may be none
        return max(low / room, min(low, sys.float_info.min)), high * room  # never 0, which has no logarithm
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def in_digits(value: float) -> str:
    """A tick's value, without the noise of its last binary digits."""
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value / 1e6:,.6g}M"


def _curve(number: int, curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    """A path, broken where a value is not finite, and a dot at its end: of a single point there is no line."""
    places = [(x_axis.at(x), y_axis.at(y)) if math.isfinite(y) else None for x, y in curve.points]
    steps = [
        f"{'L' if before else 'M'}{here[0]:.1f} {here[1]:.1f}{'' if before else 'h0'}"
        for before, here in pairwise([None, *places])
        if here
    ]
    end = next((place for place in reversed(places) if place), None)
    dot = f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3"/>' if end else ""
    return f'<g class="curve curve-{number}"><title>{escape(curve.name)}</title><path d="{"".join(steps)}"/>{dot}</g>'


def _end_labels(curves: Sequence[Curve], y_axis: Axis, x: float) -> list[str]:
    """The curves' labels at the height of their last values, moved down where they would cover each other."""
    ends = []
    for i, curve in enumerate(curves):
        finite = [y for _, y in curve.points if math.isfinite(y)]
        if finite:
            ends.append((y_axis.at(finite[-1]), i, curve.label))
    texts, free = [], 0.0
    for place, i, label in sorted(ends):
        free = max(place, free)
        texts.append(f'<text class="end curve-{i}" x="{x:.0f}" y="{free + 4:.1f}">{escape(label)}</text>')
        free += LINE_HEIGHT
    return texts


def _y_tick(y: float, value: float, left: float, right: float) -> str:
    line = f'<line class="rule" x1="{left:.0f}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(left - 6, y + 4, in_digits(value), "end")


def _x_tick(x: float, value: float, bottom: float) -> str:
    line = f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.0f}" y2="{bottom + 5:.0f}"/>'
    return line + _text(x, bottom + 19, in_digits(value), "middle")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
