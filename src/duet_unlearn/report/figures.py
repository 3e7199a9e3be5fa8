"""The charts of a run's and of a sweep's page, drawn by matplotlib and given back as inline SVG.

Matplotlib is imported when a chart is drawn. Its colours become the page's CSS variables, so that a dark page has dark
charts and a printed one light ones; text stays text, in the reader's own font. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from duet_unlearn.report.sweep_data import KEEPS, MeanOverRuns, MethodRow, SweepData, keeps, worst_attack
from duet_unlearn.report.verdict import AttackSummary
from duet_unlearn.stats import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE_SHEET = Path(__file__).with_name("style.css.j2")
FONT_SIZE = 12


class MarkStyle(NamedTuple):
    marker: str
    """Of matplotlib. Marks are told by their shape too, for those who see no colours."""
    colour: str
    """A variable of the style sheet."""
    legend: str = ""
    """What stands for it in a legend; baselines have their names beside them."""
    hollow: bool = False


SUBJECT_STYLES = {
    "base": MarkStyle("o", "base"),
    "prefix": MarkStyle("s", "prefix"),
    "oracle": MarkStyle("D", "oracle"),
    "student": MarkStyle("^", "student"),
}
ACCESS_STYLES = {
    "chat": MarkStyle("o", "student", "asks"),
    "opening": MarkStyle("s", "student", "opens the answer"),
    "decoding": MarkStyle("D", "student", "draws or reads tokens"),
    "weights": MarkStyle("^", "student", "has the weights"),
}
METHOD_STYLES = {
    "free": MarkStyle("^", "student", "trained, reads no forgotten answer"),
    "seen": MarkStyle("o", "seen", "trained, reads forgotten answers or text"),
    "inference": MarkStyle("o", "prefix", "changes no weights", hollow=True),
    "base": MarkStyle("x", "base"),
    "prefix": MarkStyle("s", "prefix"),
    "oracle": MarkStyle("D", "oracle"),
}
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
ZOOMS = (10, 20, 30, 40, 50)
"""Sides of the corner that may be enlarged, in per cent: the first that holds half of the methods."""
LABELLED = 5
"""An attack is labelled from this per cent on; what lies at the bottom brought nothing back."""
DISTANCES = (10, 14, 20, 28, 38, 50, 64, 80, 98, 118, 140, 165, 195, 230, 270)
"""Pixels from a mark at which its label is tried, at each of ``ANGLES`` angles."""
ANGLES = 16
LEADER = 14
"""Pixels from which on a line joins a label to its mark."""


@dataclass(frozen=True)
class Dot:
    """A mark in a picture of two numbers."""

    style: str
    """A key of the picture's styles."""
    x: float
    y: float
    note: str
    """What is shown when somebody points at it."""
    label: str = ""
    """What stands beside it; nothing where it is not named."""
    faint: bool = False
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def palette_css() -> str:
    """The beginning of the style sheet: every colour as a variable, on light ground and on dark."""
    return STYLE_SHEET.read_text(encoding="utf-8").partition("\n* {")[0]


@cache
def _palette() -> dict[str, str]:
    """Variable -> its colour on light ground, which matplotlib draws with. No two are equal, so that each can be
    replaced by its variable when the picture is done."""
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", palette_css().partition("@media")[0]))


def subjects_chart(scores: Mapping[str, tuple[Score, Score]], *, x_label: str, y_label: str) -> str:
    """Right on forget questions (x), right on questions to keep (y), each subject's; the ideal is the upper left."""
    dots = [
        Dot(
            style=name,
            x=100 * x.value,
            y=100 * y.value,
            note=f"{name}: {100 * x.value:.0f}, {100 * y.value:.0f}",
            label=f"{name} ({100 * x.value:.0f}, {100 * y.value:.0f})",
            x_interval=_per_cent_interval(x),
        )
        for name, (x, y) in scores.items()
        if not math.isnan(x.value + y.value)
    ]
    with _drawing():
        axes = _new_axes(400, 376, left=36, top=26, right=52, bottom=50)
        axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 25), yticks=range(0, 101, 25), xlabel=x_label)
        _y_label(axes, y_label)
        _mark_ideal(axes, radius=14)
        titles = _draw_dots(axes, dots, SUBJECT_STYLES)
        notes = "; ".join(dot.note for dot in dots)
        return _svg(axes, "subjects", f"Forgetting against keeping, per cent right: {notes}", titles)


def bars_chart(name: str, title: str, scores: Mapping[str, Score]) -> str:
    """One evaluation set: a bar a subject from 0 to 100 per cent, with its interval and its number.

    Args:
        name: what tells this chart from the others of the page.
        title: of the set.
        scores: subject -> its share.
    """
    with _drawing():
        axes = _new_axes(300, 24 * len(scores), left=54, top=2, right=96, bottom=2)
        axes.set(xlim=(0, 100), ylim=(len(scores) - 0.5, -0.5), xticks=range(0, 101, 25))
        axes.set_yticks(range(len(scores)), list(scores))
        axes.tick_params(axis="x", labelbottom=False)
        axes.tick_params(axis="y", labelcolor=_palette()["ink"])
        axes.grid(False, axis="y")
        for row, (subject, score) in enumerate(scores.items()):
            if math.isnan(score.value):
                axes.text(3, row, "n/a (n = 0)", color=_palette()["soft"], va="center")
                continue
            # A bar of no length would look as if it was not measured.
            axes.barh(row, max(1.0, 100 * score.value), 0.55, color=_palette()[SUBJECT_STYLES[subject].colour])
            if interval := _per_cent_interval(score):
                axes.hlines(row, *interval, color=_palette()["ink"], linewidth=1)
            text = f"{100 * score.value:.0f} % of {score.n}"
            axes.annotate(text, (1, row), (92, 0), ("axes fraction", "data"), "offset points", ha="right", va="center")
        return _svg(axes, f"bars-{name}", title)


def curve_chart(name: str, title: str, points: Sequence[tuple[float, float]], *, colour: str) -> str:
    """A number over steps, with its last value beside the line; empty where there is none.

    Args:
        name: what the number is called, and what tells this chart from the others of the page.
        title: of the chart.
        points: (step, value); what is not finite is left out.
        colour: a variable of the style sheet.
    """
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    with _drawing():
        axes = _new_axes(470, 226, left=48, top=14, right=112, bottom=44)
        drawn = _palette()[colour]
        axes.plot(steps, values, color=drawn, linewidth=1.75)
        axes.plot(steps[-1], values[-1], "o", color=drawn, markersize=6)
        axes.set(xlim=(0, max(1, steps[-1])), xlabel="step")
        axes.set_ylim(bottom=min(0.0, *values), top=None if max(values) > 0 else 1.0)
        axes.locator_params(nbins=4)
        text = f"{name} {values[-1]:.3g}"
        axes.annotate(text, (steps[-1], values[-1]), (8, 0), textcoords="offset points", va="center")
        return _svg(axes, f"curve-{name}", title)


def attack_chart(attacks: Sequence[AttackSummary]) -> str:
    """Tokens through the model for each fact (logarithmic) against facts that came back above the oracle; the shape is
    what an attack needs. Empty where no attack counted facts."""
    dots = []
    for one in attacks:
        if one.metric != "right" or math.isnan(one.above.value) or one.tokens_per_fact("student") <= 0:
            continue
        above, tokens = 100 * one.above.value, one.tokens_per_fact("student")
        ends = _per_cent_interval(one.above)
        dots.append(
            Dot(
                style=one.access if one.access in ACCESS_STYLES else "chat",
                x=tokens,
                y=min(100.0, max(0.0, above)),
                note=f"{one.title}: {above:.0f} % above the oracle, {tokens:.0f} tokens a fact",
                label=one.title if above >= LABELLED else "",
                y_interval=ends and (max(0.0, ends[0]), max(0.0, ends[1])),
            )
        )
    if not dots:
        return ""
    low = math.floor(math.log10(min(dot.x for dot in dots)))
    high = max(low + 1, math.ceil(math.log10(max(dot.x for dot in dots))))
    with _drawing():
        axes = _new_axes(640, 390, left=44, top=28, right=30, bottom=76)
        axes.set_xscale("log")
        axes.set(xlim=(10.0**low, 10.0**high), ylim=(0, 100), yticks=range(0, 101, 25))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.set_xlabel("tokens through the model for each fact")
        _y_label(axes, "facts that come back, above the oracle, %")
        titles = _draw_dots(axes, dots, ACCESS_STYLES)
        _legend(axes, dots, ACCESS_STYLES)
        notes = "; ".join(dot.note for dot in dots)
        about = f"Tokens a fact against per cent of facts that came back above the oracle: {notes}"
        return _svg(axes, "attacks", about, titles)


def forget_keep_charts(sweep: SweepData) -> list[str]:
    """Right of what is to be forgotten (x, low is better) and the worst of what is to be kept (y, high is better): an
    overview, and the corner where half of the methods lie, enlarged; or the first alone, if there is none."""
    dots = []
    for row in [*sweep.baselines, *sweep.finished()]:
        x, y = row.mean("forgotten"), row.mean("kept")
        style = _method_style(row) if isinstance(row, MethodRow) else row.name
        note = f"{row.label}: forget {_spread_text(x)}, keep {_spread_text(y)}"
        dots.append(Dot(style, 100 * x.value, 100 * y.value, note, label=row.label))
    dots = [dot for dot in dots if not math.isnan(dot.x + dot.y)]
    methods = [dot for dot in dots if METHOD_STYLES[dot.style].legend]
    if not methods:
        return []

    def inside(dot: Dot, side: int) -> bool:
        return dot.x <= side and dot.y >= 100 - side

    side = next((side for side in ZOOMS if 2 * sum(inside(dot, side) for dot in methods) >= len(methods)), None)
    if side is None:
        return [_forget_keep(dots, "forget-keep", side=100, frame=None)]
    # A method is named in one of the two pictures: in the overview where it lies outside of the corner.
    overview = [dot if not inside(dot, side) else replace(dot, label="") for dot in dots]
    return [
        _forget_keep(overview, "forget-keep", side=100, frame=side),
        _forget_keep([dot for dot in dots if inside(dot, side)], "forget-keep-corner", side=side, frame=None),
    ]


def robust_cost_chart(sweep: SweepData) -> str:
    """Seconds that make the model (x, logarithmic) and what the worst attack gets above the oracle (y, low is better);
    empty without a method that has both.

    Methods that lose more than ``KEEPS`` of something to be kept are faint and not on the front: what answers nothing
    cannot be attacked.
    """
    dots = []
    for row in sweep.finished():
        seconds, worst = row.mean("making").value, row.mean("worst")
        if not math.isnan(seconds + worst.value):
            note = f"{row.name}: {_spread_text(worst)}, most by {worst_attack(sweep, row)}"
            faint = not keeps(sweep, row)
            dots.append(Dot(_method_style(row), seconds, 100 * worst.value, note, row.name, faint))
    if not dots:
        return ""
    least = min((dot.x for dot in dots if dot.x > 0), default=1.0)
    bottom, top = 10 * math.floor(min(dot.y for dot in dots) / 10), 10 * math.ceil(max(dot.y for dot in dots) / 10)
    with _drawing():
        from matplotlib.ticker import LogLocator

        axes = _new_axes(760, 560, left=44, top=30, right=68, bottom=78)
        # What takes no seconds has no place on a logarithmic axis: it stands in a strip of its own, left of the axis.
        start, end = 0.8 * least, 1.25 * max(*(dot.x for dot in dots), 8 * least)
        axes.set_xscale("symlog", linthresh=start, linscale=0.15)
        axes.set(xlim=(-0.6 * start, end), ylim=(min(bottom, top - 20), top))
        axes.axvspan(-0.6 * start, 0.6 * start, color=_palette()["panel"], linewidth=0)
        ticks = [tick for tick in LogLocator(subs=(1, 2, 5)).tick_values(start, end) if start <= tick <= end]
        axes.set_xticks([0, *ticks], ["none", *(f"{tick:g}" for tick in ticks)])
        guess = ", points above the oracle" if sweep.baseline("oracle") else ", %"
        axes.set_xlabel("seconds to make the model, logarithmic (left is better)")
        _y_label(axes, f"worst attack or relearning{guess} (down is better)")
        strong = [dot for dot in dots if not dot.faint and dot.style != "inference"]
        _draw_front(axes, front(strong, better="low"), worst=top)
        titles = _draw_dots(axes, dots, METHOD_STYLES)
        _legend(axes, dots, METHOD_STYLES)
        return _svg(axes, "robust-cost", "What the worst attack gets against what the method cost", titles)


def front(dots: Iterable[Dot], *, better: Literal["low", "high"]) -> list[Dot]:
    """The dots that none other beats: none has as little x and a better y, or as good a y and less x. By x."""
    sign = 1 if better == "high" else -1
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, -sign * dot.y)):
        if not found or sign * dot.y > sign * found[-1].y:
            found.append(dot)
    return found


def place_labels(
    marks: Sequence[tuple[float, float]],
    sizes: Mapping[int, tuple[float, float]],
    room: tuple[float, float, float, float],
) -> dict[int, tuple[float, float, float, float]]:
    """Where the labels of a crowded picture go: not over others, nor over marks, nor outside, as far as there is room.

    The cheapest of ``DISTANCES`` x ``ANGLES`` places around each mark, the most crowded marks first. Words over words
    weigh most, then words over marks, then lines that cross; all in pixels.

    Args:
        marks: where all marks lie.
        sizes: mark -> width and height of its label; a mark that is not named is missing.
        room: left, bottom, right and top.

    Returns:
        Mark -> left, bottom, right and top of its label.
    """
    from matplotlib.path import Path as Line
    from matplotlib.transforms import Bbox

    mark_boxes = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    crowd = {i: sum(math.dist(marks[i], other) < 60 for other in marks) for i in sizes}
    found: dict[int, tuple[Bbox, Line]] = {}
    for i in sorted(sizes, key=lambda i: (-crowd[i], marks[i], i)):
        (x, y), (width, height), least = marks[i], sizes[i], math.inf
        boxes = [box for box, _ in found.values()]
        for distance in DISTANCES:
            if distance >= least:
                break  # places further away cost more
            for step in range(ANGLES):
                angle = 2 * math.pi * step / ANGLES
                end = x + distance * math.cos(angle), y + distance * math.sin(angle)
                left = end[0] if math.cos(angle) >= -1e-9 else end[0] - width
                box = Bbox.from_extents(left, end[1] - height / 2, left + width, end[1] + height / 2)
                outside = box.x0 < room[0] or box.y0 < room[1] or box.x1 > room[2] or box.y1 > room[3]
                cost = distance + 4000 * outside + 2000 * box.count_overlaps(boxes)
                cost += 1000 * box.count_overlaps(mark_boxes)
                if cost >= least:
                    continue
                line = Line([(x, y), end])
                passed = (j for j, mark in enumerate(marks) if j != i and math.dist(mark, (x, y)) < distance + 9)
                cost += sum(60 * line.intersects_bbox(mark_boxes[j], False) for j in passed)
                for other, drawn in found.values():
                    cost += 120 * line.intersects_path(drawn) + 200 * drawn.intersects_bbox(box, False)
                    cost += 200 * line.intersects_bbox(other, False)
                if cost < least:
                    least, found[i] = cost, (box, line)
        # `found[i]` is the best so far while places are tried, and never in its own way: `boxes` was made before.
    return {i: (box.x0, box.y0, box.x1, box.y1) for i, (box, _) in found.items()}


def _forget_keep(dots: Sequence[Dot], name: str, *, side: int, frame: int | None) -> str:
    """The upper left `side` per cent of forgetting against keeping, with a frame around the corner that is enlarged."""
    with _drawing():
        if frame:
            axes = _new_axes(400, 400, left=40, top=30, right=22, bottom=46)
        else:
            axes = _new_axes(760, 560, left=44, top=30, right=68, bottom=78)
        axes.set(xlim=(0, side), ylim=(100 - side, 100))
        axes.locator_params(nbins=6)
        axes.set_xlabel("right of what is to be forgotten, % (left is better)")
        _y_label(axes, "worst of what is to be kept, % right (up is better)")
        _mark_ideal(axes, radius=side / 14)
        if frame:
            from matplotlib.patches import Rectangle

            axes.add_patch(Rectangle((0, 100 - frame), frame, frame, fill=False, color=_palette()["strong"]))
        changed = [dot for dot in dots if dot.style in ("free", "seen")]
        _draw_front(axes, front(changed, better="high"), worst=100 - side)
        titles = _draw_dots(axes, dots, METHOD_STYLES)
        if not frame:
            _legend(axes, dots, METHOD_STYLES)
        return _svg(axes, name, "Forgetting against keeping", titles)


def _method_style(row: MethodRow) -> Literal["free", "seen", "inference"]:
    """What a method's mark tells of it."""
    if row.kind == "inference":
        return "inference"
    return "seen" if row.sees_answers else "free"


def _draw_dots(axes: Axes, dots: Sequence[Dot], styles: Mapping[str, MarkStyle]) -> dict[str, str]:
    """Marks, intervals through them and labels; returns the id of each mark's group -> what it shows when pointed at.

    The limits of the axes must stand: labels are placed in pixels.
    """
    from matplotlib.lines import Line2D

    marks = [tuple(axes.transData.transform((dot.x, dot.y))) for dot in dots]
    # Measured with a wide character, for nobody knows the reader's font.
    sizes = {i: (6.6 * len(dot.label) + 4, FONT_SIZE + 2.0) for i, dot in enumerate(dots) if dot.label}
    box = axes.bbox
    width = axes.figure.bbox.width
    labels = place_labels(marks, sizes, (box.x0 + 2, box.y0, width - 2, box.y1 + 12))
    for i, (left, bottom, right, top) in labels.items():
        (x, y), alpha, middle = marks[i], 0.5 if dots[i].faint else 1.0, (bottom + top) / 2
        end = left if left >= x else right if right <= x else x
        if math.dist((x, y), (end, middle)) >= LEADER:
            leader = Line2D([x, end], [y, middle], color=_palette()["strong"], linewidth=1, alpha=alpha, transform=None)
            axes.add_artist(leader)
        at, side = (left + 1, "left") if left + 1 >= x else (right - 1, "right")
        axes.text(at, middle, dots[i].label, ha=side, va="center_baseline", transform=None, alpha=alpha)
    for i, dot in enumerate(dots):
        style, alpha = styles[dot.style], 0.5 if dot.faint else 1.0
        colour = _palette()[style.colour]
        if dot.x_interval:
            axes.hlines(dot.y, *dot.x_interval, color=colour, linewidth=1.5, alpha=0.5)
        if dot.y_interval:
            axes.vlines(dot.x, *dot.y_interval, color=colour, linewidth=1.5, alpha=0.5)
        axes.scatter(dot.x, dot.y, gid=f"mark-{i}", alpha=alpha, zorder=3, **_mark_settings(style))
    return {f"mark-{i}": dot.note for i, dot in enumerate(dots)}


def _mark_settings(style: MarkStyle) -> dict[str, Any]:
    """What `scatter` is given for a mark."""
    colour = _palette()[style.colour]
    if style.marker == "x":
        return {"marker": "x", "color": colour, "linewidths": 2, "s": 60}
    face, edge, width = (_palette()["paper"], colour, 2) if style.hollow else (colour, _palette()["paper"], 1)
    return {"marker": style.marker, "facecolor": face, "edgecolor": edge, "linewidths": width, "s": 80}


def _draw_front(axes: Axes, dots: Sequence[Dot], *, worst: float) -> None:
    """A broken line: what lies between two dots of the front is beaten by one of them."""
    if dots:
        xs = [dots[0].x, *(dot.x for dot in dots), axes.get_xlim()[1]]
        ys = [worst, *(dot.y for dot in dots), dots[-1].y]
        axes.step(xs, ys, where="post", color=_palette()["good"], linewidth=1.5, linestyle=(0, (4, 3)))


def _legend(axes: Axes, dots: Sequence[Dot], styles: Mapping[str, MarkStyle]) -> None:
    """What the marks that are there stand for, in a line below the picture."""
    present = [style for name, style in styles.items() if style.legend and any(dot.style == name for dot in dots)]
    handles = [axes.scatter([], [], label=style.legend, **_mark_settings(style)) for style in present]
    axes.figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(axes.bbox.x0 / axes.figure.bbox.width - 0.01, 0.0),
        ncols=len(handles),
        frameon=False,
        borderaxespad=0.2,
        labelcolor=_palette()["soft"],
        handletextpad=0.2,
        columnspacing=1.5,
    )


def _mark_ideal(axes: Axes, *, radius: float) -> None:
    """The upper left corner, where everything is forgotten and everything kept."""
    from matplotlib.patches import Wedge

    (x, _), (_, y) = axes.get_xlim(), axes.get_ylim()
    green, back = _palette()["good"], _palette()["good-back"]
    axes.add_patch(Wedge((x, y), radius, 270, 360, facecolor=back, edgecolor=green, linewidth=0.75, linestyle=":"))


def _y_label(axes: Axes, text: str) -> None:
    """What goes upwards, in a line above the picture: nobody turns their head to read."""
    axes.figure.text(0.005, 1 - 10 / axes.figure.bbox.height, text, color=_palette()["soft"], va="center")


def _new_axes(width: float, height: float, *, left: float, top: float, right: float, bottom: float) -> Axes:
    """Empty axes in a figure of so many pixels, with so many around them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # an SVG of matplotlib's has 72 pixels an inch
    figure.patch.set_visible(False)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    axes.patch.set_visible(False)
    return axes


@contextmanager
def _drawing() -> Iterator[None]:
    """Matplotlib's defaults and this page's settings, whatever stands in a user's matplotlibrc."""
    import matplotlib.style

    colours = _palette()
    settings = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a dollar sign in a set's title is a dollar sign
        "font.size": FONT_SIZE,
        "text.color": colours["ink"],
        "axes.labelcolor": colours["soft"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": colours["line"],
        "grid.linewidth": 1.0,
        **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
        **{f"{axis}tick.{which}.size": 0 for axis in "xy" for which in ("major", "minor")},
        **{f"{axis}tick.labelcolor": colours["soft"] for axis in "xy"},
    }
    with warnings.catch_warnings(), matplotlib.style.context("default"):
        # The font that measures text may lack a script; the reader's browser draws it in its own.
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcParams.update(settings)
        yield


def _svg(axes: Axes, name: str, about: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as an element of a page: without what stands around it in a file, its colours as variables.

    Args:
        axes: the figure's.
        name: tells its ids from those of the page's other figures.
        about: what is read to those who do not see it.
        titles: the id of a group -> what is shown when somebody points at it.
    """
    import matplotlib
    from markupsafe import Markup

    figure, buffer = axes.figure, io.StringIO()
    for artist in figure.findobj():
        artist.set_clip_on(False)  # clipping needs an url(), and cuts marks at the border in two
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.canvas.print_figure(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    body = text[text.index('<g id="figure_1">') : text.rindex("</svg>")]

    def group(found: re.Match[str]) -> str:
        title = (titles or {}).get(found[1])
        return f"<g><title>{escape(title)}</title>" if title else "<g>"

    def style(found: re.Match[str]) -> str:
        # Only inside of attributes: a set's title may look like CSS.
        css = re.sub(r"'DejaVu Sans'[^;]*sans-serif", "system-ui, sans-serif", found[0])
        for colour, light in _palette().items():
            css = css.replace(light, f"var(--{colour})")
        return css

    body = re.sub(r'<g id="(mark-\d+)"/?>|<g id="[^"]*">', group, re.sub(r'<g id="[^"]*"/>', "", body))
    body = re.sub(r'(?<= )style="[^"]*"', style, body)
    body = re.sub(r' transform="rotate\(-0 [^"]*\)"|(?<=>)\s+(?=<)', "", body).replace("xlink:href", "href")
    width, height = figure.bbox.width, figure.bbox.height
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(about)}">'
    return Markup(f"{head}<title>{escape(about)}</title>{body.strip()}</svg>")


def _per_cent_interval(score: Score) -> tuple[float, float] | None:
    return None if math.isnan(score.low + score.high) else (100 * score.low, 100 * score.high)


def _spread_text(mean: MeanOverRuns) -> str:
    spread = "" if math.isnan(mean.over_targets) else f" ± {100 * mean.over_targets:.1f}"
    return f"{100 * mean.value:.1f}{spread} %"
