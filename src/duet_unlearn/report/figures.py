"""Figures as strings of inline SVG; colours come by class, so that a dark page has dark figures.

Each function takes plain numbers (shares in 0..1) and escapes every text that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from duet_unlearn.report.read import Score

MAX_POINTS = 400
"""A curve is thinned to this many points: more than the pixels of a column are not seen."""


@dataclass(frozen=True)
class Mark:
    """A subject's place in the picture of forgetting against keeping."""

    subject: str
    x: Score
    y: Score


def svg_of(width: int, height: int, title: str, body: Sequence[str]) -> str:
    inside = f"<title>{escape(title)}</title>" + "".join(body)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def safe(svg: str) -> str:
    """Marks this package's own SVG, whose texts are escaped, as needing no further escaping."""
    from markupsafe import Markup

    return Markup(svg)


def text_at(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def line_at(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def shape(subject: str, x: float, y: float, *, size: float = 6) -> str:
    """Circle, square, diamond or triangle: a subject can be told without its colour."""
    corners = {
        "prefix": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "oracle": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "student": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    }
    if subject not in corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="mark s-{escape(subject)}"/>'
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners[subject])
    return f'<polygon points="{points}" class="mark s-{escape(subject)}"/>'


def interval(score: Score, subject: str) -> str:
    """A table cell's number on a line from 0 to 100 per cent, with its interval; empty without a number."""
    if math.isnan(score.value):
        return ""
    x = [4 + 56 * min(max(value, 0.0), 1.0) for value in (score.low, score.value, score.high)]
    whisker = "" if math.isnan(x[0] + x[2]) else line_at(x[0], 5, x[2], 5, f"whisker s-{escape(subject)}")
    dot = f'<circle cx="{x[1]:.1f}" cy="5" r="3" class="mark s-{escape(subject)}"/>'
    body = line_at(4, 5, 60, 5, "grid") + whisker + dot
    return f'<svg viewBox="0 0 64 10" class="mini" aria-hidden="true">{body}</svg>'


def scatter(marks: Sequence[Mark], *, x_label: str, y_label: str) -> str:
    """Right on forget questions (x), right on questions to keep (y); the ideal is the upper left corner."""
    marks = [mark for mark in marks if not math.isnan(mark.x.value + mark.y.value)]
    left, top, side, width, height = 44, 26, 300, 386, 376
    body = [_axes(left, top, side), _ideal(left, top)]
    places = [(left + side * mark.x.value, top + side * (1 - mark.y.value)) for mark in marks]
    rows = _spread([y for _, y in places], gap=20, low=top + 16, high=top + side - 6)
    for mark, (x, y), row in zip(marks, places, rows, strict=True):
        beside = (-1, "end") if x > left + 0.6 * side else (1, "start")
        body += _mark(mark, x, y, row, side=side, left=left, beside=beside)
    body.append(text_at(left + side / 2, top + side + 38, x_label, anchor="middle", css="axis"))
    body.append(text_at(0, 12, y_label, css="axis"))
    points = "; ".join(f"{m.subject} {100 * m.x.value:.0f}, {100 * m.y.value:.0f}" for m in marks)
    return svg_of(width, height, f"Forgetting against keeping, per cent right: {points}", body)


def _axes(left: float, top: float, side: float) -> str:
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x, y = left + side * tick / 100, top + side * (1 - tick / 100)
        parts += [line_at(x, top, x, top + side, "grid"), line_at(left, y, left + side, y, "grid")]
        parts.append(text_at(x, top + side + 18, str(tick), anchor="middle", css="tick"))
        parts.append(text_at(left - 8, y + 4, str(tick), anchor="end", css="tick"))
    return "".join(parts)


def _ideal(left: float, top: float) -> str:
    corner = f"M{left} {top + 45} A45 45 0 0 0 {left + 45} {top} L{left} {top} Z"
    return f'<path d="{corner}" class="ideal"/>' + text_at(left + 52, top + 13, "ideal", css="tick")


def _mark(
    mark: Mark, x: float, y: float, row: float, *, side: float, left: float, beside: tuple[int, str]
) -> list[str]:
    sign, anchor = beside
    css, parts = f"s-{escape(mark.subject)}", []
    if not math.isnan(mark.x.low + mark.x.high):
        parts.append(line_at(left + side * mark.x.low, y, left + side * mark.x.high, y, f"whisker {css}"))
    parts.append(line_at(x + sign * 9, y, x + sign * 40, row, "leader"))
    label = f"{mark.subject} ({100 * mark.x.value:.0f}, {100 * mark.y.value:.0f})"
    parts.append(text_at(x + sign * 44, row + 4, label, anchor=anchor, css="label"))
    return [*parts, shape(mark.subject, x, y)]


def _spread(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places for labels, in the order of the values, at least ``gap`` apart and inside ``low``..``high``."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed, last = [0.0] * len(values), low - gap
    for i in order:
        last = placed[i] = max(values[i], last + gap)
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def bars(title: str, scores: Mapping[str, Score]) -> str:
    """One evaluation set: a bar a subject from 0 to 100 per cent, with its interval and its number."""
    left, span, step, width = 62, 148, 22, 300
    body = [line_at(left + span * t / 4, 0, left + span * t / 4, step * len(scores), "grid") for t in range(5)]
    for row, (subject, score) in enumerate(scores.items()):
        y = row * step + step / 2
        body.append(text_at(left - 8, y + 4, subject, anchor="end", css="label"))
        if math.isnan(score.value):
            body.append(text_at(left + 6, y + 4, "n/a (n = 0)", css="tick"))
            continue
        css = f"s-{escape(subject)}"
        wide = max(1.5, span * score.value)
        body.append(f'<rect x="{left}" y="{y - 6:.1f}" width="{wide:.1f}" height="12" class="bar {css}"/>')
        if not math.isnan(score.low + score.high):
            body.append(line_at(left + span * score.low, y, left + span * score.high, y, "error"))
        text = f"{100 * score.value:.0f} % of {score.n}"
        body.append(text_at(width, y + 4, text, anchor="end", css="label"))
    return svg_of(width, step * len(scores), title, body)


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, css: Mapping[str, str]) -> str:
    """Lines over steps; ``series`` maps a name to its (step, value) points and ``css`` to its class."""
    clean = {name: _thin([p for p in points if math.isfinite(p[1])]) for name, points in series.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return ""
    left, top, wide, high = 48, 14, 320, 170
    last = max(points[-1][0] for points in clean.values())
    ceiling = _ceiling(max(value for points in clean.values() for _, value in points))
    body = [text_at(left + wide / 2, top + high + 38, "step", anchor="middle", css="axis")]
    for part in range(5):
        y = top + high * (1 - part / 4)
        body.append(line_at(left, y, left + wide, y, "grid"))
        body.append(text_at(left - 8, y + 4, f"{ceiling * part / 4:.3g}", anchor="end", css="tick"))
    for at in (0, last):
        body.append(text_at(left + wide * at / last, top + high + 18, f"{at:g}", anchor="middle", css="tick"))
    places = {
        name: [(left + wide * x / last, top + high * (1 - y / ceiling)) for x, y in points]
        for name, points in clean.items()
    }
    rows = _spread([found[-1][1] for found in places.values()], gap=16, low=top + 6, high=top + high - 4)
    for (name, found), row in zip(places.items(), rows, strict=True):
        body += _curve(found, css[name])
        body.append(text_at(left + wide + 6, row + 4, f"{name} {clean[name][-1][1]:.3g}", css="label"))
    return svg_of(470, 226, title, body)


def _curve(places: Sequence[tuple[float, float]], css: str) -> list[str]:
    """A line through the places, and a dot at the last one: a single place has no line."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="mark {css}"/>'
    return [f'<polyline points="{path}" class="curve {css}"/>', dot]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` points, the last one always among them."""
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    return list(reversed(list(reversed(points))[::stride]))


def _ceiling(value: float) -> float:
    """The next round number: a multiple of a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if value <= step * power * (1 + 1e-9))
