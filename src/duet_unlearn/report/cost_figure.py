"""The picture of attacks: what comes back against what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from duet_unlearn.report.figures import line_at, shape, svg_of, text_at
from duet_unlearn.report.labels import Box, place_labels
from duet_unlearn.report.recovered import Way

LEFT, TOP, WIDE, HIGH, WIDTH, HEIGHT = 44, 26, 490, 250, 564, 350
NAMED = 0.05
"""A mark is named from this share on; what lies at the bottom brought nothing back."""
LEGEND = (
    ("chat", "asks"),
    ("opening", "opens answers"),
    ("decoding", "draws or reads tokens"),
    ("weights", "has weights"),
)


def cost_figure(ways: Sequence[Way]) -> str:
    """Tokens through the model for each fact (logarithmic) against facts that came back above the oracle; the shape is
    what an attack needs. Empty where no attack counted facts."""
    drawn = [way for way in ways if way.metric == "right" and not math.isnan(way.above.value) and _tokens(way) > 0]
    if not drawn:
        return ""
    costs = [math.log10(_tokens(way)) for way in drawn]
    low, high = math.floor(min(costs)), max(math.ceil(max(costs)), math.floor(min(costs)) + 1)
    places = [
        (LEFT + WIDE * (cost - low) / (high - low), TOP + HIGH * (1 - min(1.0, max(0.0, way.above.value))))
        for way, cost in zip(drawn, costs, strict=True)
    ]
    body = [*_axes(low, high), *_marks(drawn, places), *_labels(drawn, places), *_legend(drawn)]
    points = "; ".join(f"{way.title} {_tokens(way):.0f}, {100 * way.above.value:.0f}" for way in drawn)
    return svg_of(
        WIDTH, HEIGHT, f"Tokens a fact against per cent of facts that came back above the oracle: {points}", body
    )


def mark(access: str, x: float, y: float) -> str:
    """Circle, square, diamond or triangle, by what an attack needs, in the student's colour."""
    like = {"opening": "prefix", "decoding": "oracle", "weights": "student"}.get(access, "base")
    return shape(like, x, y, size=5.5).replace(f"s-{like}", "s-student")


def _tokens(way: Way) -> float:
    return way.tried["student"].tokens


def _axes(low: int, high: int) -> list[str]:
    body = []
    for tick in (0, 25, 50, 75, 100):
        y = TOP + HIGH * (1 - tick / 100)
        body += [
            line_at(LEFT, y, LEFT + WIDE, y, "grid"),
            text_at(LEFT - 8, y + 4, str(tick), anchor="end", css="tick"),
        ]
    for power in range(low, high + 1):
        x = LEFT + WIDE * (power - low) / (high - low)
        body += [line_at(x, TOP, x, TOP + HIGH, "grid")]
        body += [text_at(x, TOP + HIGH + 18, f"{10**power:,}", anchor="middle", css="tick")]
    body.append(
        text_at(LEFT + WIDE / 2, TOP + HIGH + 38, "tokens through the model for each fact", anchor="middle", css="axis")
    )
    body.append(text_at(0, 12, "facts that come back, above the oracle, %", css="axis"))
    return body


def _marks(drawn: Sequence[Way], places: Sequence[tuple[float, float]]) -> list[str]:
    found = []
    for way, (x, y) in zip(drawn, places, strict=True):
        ends = [TOP + HIGH * (1 - min(1.0, max(0.0, end))) for end in (way.above.low, way.above.high)]
        whisker = "" if math.isnan(sum(ends)) else line_at(x, ends[0], x, ends[1], "whisker faint s-student")
        title = escape(f"{way.title}: {100 * way.above.value:.0f} % above the oracle, {_tokens(way):.0f} tokens a fact")
        found.append(f"{whisker}<g><title>{title}</title>{mark(way.access, x, y)}</g>")
    return found


def _labels(drawn: Sequence[Way], places: Sequence[tuple[float, float]]) -> list[str]:
    """Names beside the marks that are high enough; those stand first, as ``place_labels`` wants them."""
    named = sorted(range(len(drawn)), key=lambda i: drawn[i].above.value < NAMED)
    texts = [drawn[i].title for i in named if drawn[i].above.value >= NAMED]
    marks, room = [places[i] for i in named], Box(LEFT, TOP - 6, LEFT + WIDE + 26, TOP + HIGH)
    found = []
    for (x, y), text, label in zip(marks, texts, place_labels(marks, texts, room), strict=False):
        if label.distance > 14:
            found.append(line_at(x, y, *label.joint, "leader"))
        found.append(text_at(label.x, label.y, text, anchor=label.anchor, css="label small"))
    return found


def _legend(drawn: Sequence[Way]) -> list[str]:
    shown = [(access, text) for access, text in LEGEND if any(way.access == access for way in drawn)]
    found, x = [], float(LEFT)
    for access, text in shown:
        found += [mark(access, x + 6, HEIGHT - 10), text_at(x + 17, HEIGHT - 6, text, css="tick")]
        x += 32 + 6.4 * len(text)
    return found
