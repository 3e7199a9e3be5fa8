"""The pictures of a sweep: forgetting against keeping, and what an attacker gets against what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from duet_unlearn.report.figures import line_at, shape, text_at
from duet_unlearn.report.labels import Box, place_labels
from duet_unlearn.report.points import Mean
from duet_unlearn.report.sweep_rank import KEEPS, finished, keeps, worst_attack
from duet_unlearn.report.sweep_read import MethodRow, Subject, Sweep

LEGEND = {
    "free": "trained, reads no forgotten answer",
    "seen": "trained, reads forgotten answers or text",
    "inference": "changes no weights",
}
ZOOMS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Sides of the corner that may be enlarged, smallest first: the first that holds half of the methods."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
FORGET_KEEP = (
    "To the left is forgotten: mean share right in held-out wordings, of facts that were trained on and of facts that "
    "no training touched. Upwards is kept: the lowest share right over everything to be kept. A frame is what the "
    "second picture enlarges."
)
ROBUST_COST = (
    "To the left is cheap: seconds to make the model, its measuring left out. Downwards is robust: the "
    f"highest of attacks and relearning, less the oracle's. Faint are methods that lose more than {100 * KEEPS:.0f} "
    "points of something to be kept: what answers nothing cannot be attacked. Methods that change no weights cannot be "
    "relearned, and are judged by prompts alone."
)
PARETO = (
    "The broken line is the front of the methods that change weights: none of them beats one on it in both. Means of "
    "all runs; where two lie closer than their spread, their order may be chance."
)


@dataclass(frozen=True)
class Dot:
    """A subject in a picture; `x` and `y` in the picture's units."""

    name: str
    css: str
    x: float
    y: float
    note: str
    faint: bool = False

    @property
    def method(self) -> bool:
        return self.css in LEGEND


@dataclass(frozen=True)
class Field:
    """Where numbers lie in a picture of `width` x `height` pixels: x in low..high from the left, y upwards."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 760
    height: float = 560
    log: bool = False
    """x is logarithmic, with a strip for 0 at the left."""
    left: float = 52
    top: float = 30
    right: float = 68
    bottom: float = 90
    strip: float = 70

    @property
    def wide(self) -> float:
        return self.width - self.left - self.right

    @property
    def high(self) -> float:
        return self.height - self.top - self.bottom

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.across(x), self.top + self.high * (1 - share)

    def across(self, x: float) -> float:
        """Pixels of an x."""
        low, high = self.x
        if not self.log:
            return self.left + self.wide * (x - low) / (high - low)
        if x <= 0:
            return self.left + self.strip / 2
        return self.left + self.strip + (self.wide - self.strip) * math.log(x / low) / math.log(high / low)

    def holds(self, dot: Dot) -> bool:
        return self.x[0] <= dot.x <= self.x[1] and self.y[0] <= dot.y <= self.y[1]


OVERVIEW = Field((0, 1), (0, 1), width=400, height=400, right=22, bottom=46)


def kind_of(row: MethodRow) -> Literal["free", "seen", "inference"]:
    """What a method's mark says of it."""
    if row.subject.kind == "inference":
        return "inference"
    return "seen" if row.sees_answers else "free"


def front(dots: Iterable[Dot], *, better: Literal["low", "high"]) -> list[Dot]:
    """The dots that none other beats: none has as little x and a better y, or as good a y and less x. By x."""
    sign = 1 if better == "high" else -1
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, -sign * dot.y)):
        if not found or sign * dot.y > sign * found[-1].y:
            found.append(dot)
    return found


def forget_keep(sweep: Sweep) -> list[str]:
    """Right of what is to be forgotten (x, low is better) and the worst of what is to be kept (y, high is better): an
    overview, and the corner where half of the methods lie, enlarged; or the first alone, if there is none."""
    dots = [_kept_dot(subject, subject.name) for subject in sweep.baselines]
    dots += [_kept_dot(row.subject, kind_of(row)) for row in finished(sweep)]
    dots = [dot for dot in dots if not math.isnan(dot.x + dot.y)]
    if not any(dot.method for dot in dots):
        return []
    corner = _corner([dot for dot in dots if dot.method])
    if corner is None:
        return [_keep_picture(Field((0, 1), (0, 1)), dots, dots)]
    outside = [dot for dot in dots if not corner.holds(dot)]
    inside = [dot for dot in dots if corner.holds(dot)]
    return [_keep_picture(OVERVIEW, dots, outside, corner), _keep_picture(corner, inside, inside)]


def _kept_dot(subject: Subject, css: str) -> Dot:
    x, y = subject.mean("forgotten"), subject.mean("kept")
    return Dot(subject.label, css, x.value, y.value, f"forget {_spread(x)}, keep {_spread(y)}")


def _corner(methods: Sequence[Dot]) -> Field | None:
    fields = [Field((0, side), (1 - side, 1)) for side in ZOOMS]
    return next((field for field in fields if 2 * sum(map(field.holds, methods)) >= len(methods)), None)


def _keep_picture(field: Field, dots: Sequence[Dot], named: Sequence[Dot], corner: Field | None = None) -> str:
    body = [_ticks(field, "x", 100), _ticks(field, "y", 100), _ideal(field)]
    if corner:
        (x1, y1), (x2, y2) = field.at(corner.x[0], corner.y[1]), field.at(corner.x[1], corner.y[0])
        body.append(f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" class="lens"/>')
    body.append(_steps(field, front([dot for dot in dots if dot.css in ("free", "seen")], better="high"), "high"))
    body += _marks(field, dots, named)
    x_title = "right of what is to be forgotten, % (left is better)"
    body += _titles(field, x_title, "worst of what is to be kept, % right (up is better)")
    return _svg(field, "Forgetting against keeping", [*body, *([] if corner else _legend(field, dots))])


def robust_cost(sweep: Sweep) -> list[str]:
    """Seconds that make the model (x, logarithmic) and what the worst attack gets above the oracle (y, low is better).

    Methods that lose more than ``KEEPS`` of something to be kept are faint and not on the front: what answers nothing
    cannot be attacked.
    """
    dots = [
        Dot(
            name=row.name,
            css=kind_of(row),
            x=row.subject.mean("making").value,
            y=row.subject.mean("worst").value,
            note=f"{_spread(row.subject.mean('worst'))}, most by {worst_attack(sweep, row.subject)}",
            faint=not keeps(sweep, row),
        )
        for row in finished(sweep)
    ]
    dots = [dot for dot in dots if not math.isnan(dot.x + dot.y)]
    if not dots:
        return []
    field = Field(_decade([dot.x for dot in dots if dot.x > 0]), _tenths([dot.y for dot in dots]), log=True)
    strong = [dot for dot in dots if not dot.faint and dot.css != "inference"]
    body = [_log_ticks(field), _ticks(field, "y", 100), _steps(field, front(strong, better="low"), "low")]
    body += _marks(field, dots, dots)
    guess = ", points above the oracle" if sweep.baseline("oracle") else ", %"
    x_title = "seconds to make the model, logarithmic (left is better)"
    body += _titles(field, x_title, f"worst attack or relearning{guess} (down is better)")
    return [_svg(field, "What the worst attack gets against what the method cost", [*body, *_legend(field, dots)])]


def _spread(mean: Mean) -> str:
    spread = "" if math.isnan(mean.over_targets) else f" ± {100 * mean.over_targets:.1f}"
    return f"{100 * mean.value:.1f}{spread} %"


def _svg(field: Field, title: str, body: Sequence[str]) -> str:
    inside = f"<title>{escape(title)}</title>" + "".join(body)
    size = f"{field.width:g} {field.height:g}"
    return f'<svg viewBox="0 0 {size}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _titles(field: Field, x: str, y: str) -> list[str]:
    middle = field.left + field.wide / 2
    return [text_at(middle, field.top + field.high + 36, x, anchor="middle", css="axis"), text_at(3, 14, y, css="axis")]


def _ticks(field: Field, axis: Literal["x", "y"], scale: float) -> str:
    """Lines at round numbers, four to eight of them."""
    low, high = field.x if axis == "x" else field.y
    step = next(step for step in STEPS if (high - low) / step <= 8.01 or step == STEPS[-1])
    right, bottom, parts = field.left + field.wide, field.top + field.high, []
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        text = f"{scale * number * step:.0f}"
        x, y = field.at(number * step if axis == "x" else 1.0, number * step if axis == "y" else low)
        if axis == "x":
            parts.append(line_at(x, field.top, x, bottom, "grid"))
            parts.append(text_at(x, bottom + 17, text, anchor="middle", css="tick"))
        else:
            parts.append(line_at(field.left, y, right, y, "grid"))
            parts.append(text_at(field.left - 8, y + 4, text, anchor="end", css="tick"))
    return "".join(parts)


def _ideal(field: Field) -> str:
    left, top = field.left, field.top
    return f'<path d="M{left} {top + 30} A30 30 0 0 0 {left + 30} {top} L{left} {top} Z" class="ideal"/>'


def _round_numbers() -> list[float]:
    return [step * 10.0**power for power in range(-3, 7) for step in (1, 2, 5)]


def _decade(values: Sequence[float]) -> tuple[float, float]:
    """A range between round numbers that holds the values, at least a decade wide."""
    if not values:
        return 1.0, 10.0
    below = max((tick for tick in _round_numbers() if tick <= min(values)), default=1e-3)
    top = max(*values, 10 * below)
    return below, min((tick for tick in _round_numbers() if tick >= top), default=top)


def _tenths(values: Sequence[float]) -> tuple[float, float]:
    """A range between tenths that holds the values, two wide at least."""
    low, high = math.floor(10 * min(values) + 1e-9), math.ceil(10 * max(values) - 1e-9)
    return min(low, high - 2) / 10, high / 10


def _log_ticks(field: Field) -> str:
    bottom = field.top + field.high
    box = f'x="{field.left}" y="{field.top}" width="{field.strip}" height="{field.high}"'
    parts = [f'<rect {box} class="strip"/>', text_at(field.across(0), bottom + 17, "none", anchor="middle", css="tick")]
    for tick in _round_numbers():
        if field.x[0] * 0.999 <= tick <= field.x[1] * 1.001:
            x = field.across(tick)
            parts.append(line_at(x, field.top, x, bottom, "grid"))
            parts.append(text_at(x, bottom + 17, f"{tick:g}", anchor="middle", css="tick"))
    return "".join(parts)


def _steps(field: Field, dots: Sequence[Dot], better: Literal["low", "high"]) -> str:
    """The front: what lies between two of its dots is beaten by one of them."""
    if not dots:
        return ""
    places = [field.at(dot.x, dot.y) for dot in dots]
    worst = field.top if better == "low" else field.top + field.high
    points = [(places[0][0], worst), places[0]]
    for x, y in places[1:]:
        points += [(x, points[-1][1]), (x, y)]
    points.append((field.left + field.wide, points[-1][1]))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" class="front"/>'


def _marks(field: Field, dots: Sequence[Dot], named: Sequence[Dot]) -> list[str]:
    """Lines first, then marks, then words: nothing is hidden behind a line."""
    room = Box(field.left + 1, field.top - 12, field.width - 2, field.top + field.high)
    ordered = [*named, *(dot for dot in dots if dot not in named)]
    places = [field.at(dot.x, dot.y) for dot in ordered]
    labels = place_labels(places, [dot.name for dot in named], room)
    lines, words = [], []
    for dot, (x, y), label in zip(named, places, labels, strict=False):
        faint = " faint" if dot.faint else ""
        if label.distance > 10:
            lines.append(line_at(x, y, *label.joint, f"leader{faint}"))
        words.append(text_at(label.x, label.y, dot.name, anchor=label.anchor, css=f"label small{faint}"))
    marks = [_titled(dot, *place) for dot, place in zip(ordered, places, strict=True)]
    return [*lines, *marks, *words]


def _titled(dot: Dot, x: float, y: float) -> str:
    drawn = mark(dot.css, x, y, faint=" faint" if dot.faint else "")
    return f"<g><title>{escape(f'{dot.name}: {dot.note}')}</title>{drawn}</g>"


def mark(css: str, x: float, y: float, *, faint: str = "") -> str:
    """Triangle: reads no answers; circle: reads them; ring: changes no weights; baselines as in the report of a run."""
    if css == "free":
        return shape("student", x, y, size=5).replace("s-student", f"s-free{faint}")
    if css == "inference":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="ring s-inference{faint}"/>'
    if css == "base":
        return f'<path d="M{x - 5:.1f} {y - 5:.1f} l10 10 m0 -10 l-10 10" class="cross s-base"/>'
    return shape(css, x, y, size=4.5).replace(f"s-{css}", f"s-{css}{faint}")


def _legend(field: Field, dots: Sequence[Dot]) -> list[str]:
    parts, x, y = [], field.left, field.height - 12
    present = {dot.css for dot in dots}
    for css, words in LEGEND.items():
        if css in present:
            parts += [mark(css, x + 5, y), text_at(x + 15, y + 4, words, css="tick")]
            x += 30 + 6.1 * len(words)
    return parts
