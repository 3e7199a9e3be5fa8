"""The charts: marks by rule, labels that can be read, text that cannot break out, and the same bytes twice."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up_attacks import measured, write_attack, write_everyone
from made_up_sweep import MADE, results

from duet_unlearn.report import figures
from duet_unlearn.report.figures import Dot, forget_keep_charts, front, place_labels, robust_cost_chart
from duet_unlearn.report.run_data import read_run
from duet_unlearn.report.sweep_data import SweepData, keeps, parse_sweep
from duet_unlearn.report.verdict import attack_summaries
from duet_unlearn.stats import NOTHING, Score

MakeRun = Callable[..., Path]
NASTY = '</svg><script>alert(1)</script> $x_1$ 漢字 & " <!--'
SCORES = {name: Score(share, 60, share - 0.05, share + 0.05) for name, share in (("base", 0.9), ("student", 0.1))}


@pytest.fixture(scope="module")
def made() -> SweepData:
    return parse_sweep(results())


def test_the_front_is_what_nothing_beats() -> None:
    rng = random.Random(3)
    dots = [Dot("free", rng.randrange(12) / 10, rng.randrange(12) / 10, "") for i in range(60)]
    for better, sign in (("high", 1), ("low", -1)):
        found = {(dot.x, dot.y) for dot in front(dots, better=better)}  # type: ignore[arg-type]
        unbeaten = {
            (one.x, one.y)
            for one in dots
            if not any(
                other.x <= one.x and sign * other.y >= sign * one.y and (other.x, other.y) != (one.x, one.y)
                for other in dots
            )
        }
        assert found == unbeaten


def test_what_keeps_little_is_faint_and_not_on_the_front(made: SweepData) -> None:
    ga, duet = made.method("ga"), made.method("duet")
    assert ga
    assert duet
    assert not keeps(made, ga)
    assert keeps(made, duet)
    svg = robust_cost_chart(made)
    text = {found.text: found.get("style", "") for found in ElementTree.fromstring(svg).iter("text")}
    assert "opacity: 0.5" in text["ga"]
    assert "opacity" not in text["duet"]
    # The front is the only broken line. It does not begin at `ga`, which costs less than all that keep enough.
    start = re.search(r'<path d="M ([\d.]+) [^"]*" style="[^"]*stroke-dasharray', svg)
    places = {title.text: group for group in ElementTree.fromstring(svg).iter("g") for title in group.findall("title")}
    x_of_ga = next(
        float(use.get("x", "")) for title, g in places.items() if title.startswith("ga:") for use in g.iter("use")
    )
    assert start
    assert float(start[1]) > x_of_ga


def meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("seed", range(3))
def test_labels_lie_on_no_label_and_no_mark(seed: int) -> None:
    rng = random.Random(seed)
    marks = [(60 + 300 * rng.random() ** 2, 40 + 200 * rng.random()) for _ in range(32)]
    room, sizes = (50, 20, 750, 480), dict.fromkeys(range(30), (58.0, 14.0))
    places = place_labels(marks, sizes, room)
    boxes = list(places.values())
    assert places.keys() == sizes.keys()
    assert not any(meet(one, other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert not any(meet(box, (x - 5, y - 5, x + 5, y + 5)) for box in boxes for x, y in marks)
    assert all(box[0] >= 50 and box[2] <= 750 and box[1] >= 20 and box[3] <= 480 for box in boxes)
    assert places == place_labels(marks, sizes, room)


def test_pictures_name_every_method_once(made: SweepData) -> None:
    overview, corner = forget_keep_charts(made)
    cost = robust_cost_chart(made)
    for name in {made.name for made in MADE} - {"ngdiff"}:
        assert len(re.findall(rf">{re.escape(name)}</text>", overview + corner)) == 1, name
        assert len(re.findall(rf">{re.escape(name)}</text>", cost)) == 1, name
    assert overview.count("<title>") == corner.count("<title>") + len(marks_outside(overview, corner))


def marks_outside(overview: str, corner: str) -> set[str]:
    """What is shown of the marks that the second picture lacks."""
    return set(re.findall(r"<title>(.*?)</title>", overview)) - set(re.findall(r"<title>(.*?)</title>", corner))


def test_the_picture_of_attacks_has_a_mark_each_and_names_what_comes_back(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "cheap", 60, 0, 30, title="Cheap <b>", tokens=600)
    write_everyone(run, "dear", 60, 0, 0, title="Dear", tokens=6_000_000, access="weights")
    svg = figures.attack_chart(attack_summaries(read_run(run)))
    assert "<title>Cheap &lt;b&gt;: 50 % above the oracle, 10 tokens a fact</title>" in svg
    assert "<title>Dear: 0 % above" in svg
    assert ">Cheap &lt;b&gt;</text>" in svg
    assert ">Dear</text>" not in svg
    assert [text for text in ("asks", "opens the answer", "has the weights") if f">{text}</text>" in svg] == [
        "asks",
        "has the weights",
    ]
    write_attack(run, "member", "student", [measured("loss", 0.6, 0.5, 0.7)], metric="auc")
    member = [one for one in attack_summaries(read_run(run)) if one.metric == "auc"]
    assert figures.attack_chart(member) == ""


def drawn(svg: str) -> ElementTree.Element:
    """The picture, which is well-formed, has no ids but those of its own marks, and loads nothing."""
    root = ElementTree.fromstring(svg)
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r' href="#([^"]*)"', svg)) <= set(ids)
    assert not re.search(r"https?://|<script|<style|url\(", re.sub(r">[^<]*<", "><", svg))
    return root


def charts() -> dict[str, str]:
    pair = {name: (score, SCORES["base"]) for name, score in SCORES.items()}
    return {
        "subjects": figures.subjects_chart(pair, x_label=NASTY, y_label=NASTY),
        "bars": figures.bars_chart("set", NASTY, SCORES | {"oracle": NOTHING}),
        "curve": figures.curve_chart("loss", NASTY, [(step, 5 / step) for step in range(1, 2000)], colour="student"),
    }


@pytest.mark.parametrize("name", ["subjects", "bars", "curve"])
def test_a_picture_is_its_own_and_the_same_again(name: str) -> None:
    first, again = charts()[name], charts()[name]
    assert first == again
    assert drawn(first).get("role") == "img"
    assert "#1d4ed8" not in first
    assert "var(--student)" in first


def test_two_pictures_of_a_page_share_no_id() -> None:
    pair = [figures.curve_chart(name, "t", [(1, 2.0), (2, 1.0)], colour="student") for name in ("loss", "validation")]
    first, second = (set(re.findall(r' id="([^"]*)"', svg)) for svg in pair)
    assert first
    assert first.isdisjoint(second)


def test_texts_stay_text_and_long_curves_short() -> None:
    found = charts()
    texts = [text.text for text in drawn(found["bars"]).iter("text")]
    assert {"base", "student", "90 % of 60", "10 % of 60", "n/a (n = 0)"} <= set(texts)
    assert any(text.text == NASTY for text in drawn(found["subjects"]).iter("text"))
    assert len(found["curve"]) < 20_000


def test_every_colour_has_a_name_of_its_own_and_a_dark_side() -> None:
    light, dark = (dict(re.findall(r"--([a-z-]+): (#\w{6})", part)) for part in figures.palette_css().split("@media"))
    assert light.keys() == dark.keys()
    assert len(set(light.values())) == len(light)


def test_figures_without_numbers_do_not_fail() -> None:
    assert figures.curve_chart("loss", "t", [(1, math.nan)], colour="student") == ""
    assert figures.curve_chart("loss", "t", [(0, 0.0)], colour="student").startswith("<svg")
    assert figures.subjects_chart({}, x_label="x", y_label="y").startswith("<svg")
    assert figures.attack_chart([]) == ""
