"""What the page shows of attacks, with numbers by hand: 60 facts an attack."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_attacks import FACTS, counted, measured, write_attack, write_everyone
from test_report_page import Page

from duet_unlearn.report import render_report, summary_text, write_report
from duet_unlearn.report.attack_views import amount, between, number, row
from duet_unlearn.report.cost_figure import cost_figure
from duet_unlearn.report.read import Score, read_run
from duet_unlearn.report.recovered import BACK, RULE, Way, outcome_of, ways
from duet_unlearn.report.verdict import verdict

MakeRun = Callable[..., Path]
NASTY = "<script>alert(1)</script>"


def section(run: Path) -> str:
    found = re.search(r'<section id="attacks">.*?</section>', render_report(run), re.DOTALL)
    assert found
    return found[0]


def one(run: Path, name: str) -> Way:
    return next(way for way in ways(read_run(run)) if way.name == name)


def test_a_run_that_nobody_attacked_says_so(make_run: MakeRun) -> None:
    assert "duet attack RUN" in section(make_run())


def test_a_run_that_nobody_attacked_is_shown_without_torch(make_run: MakeRun) -> None:
    code = (
        "import sys; from pathlib import Path; from duet_unlearn.report import render_report\n"
        "render_report(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(make_run())], timeout=60).returncode == 0


def test_the_strongest_instance_less_the_oracles(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30)
    way = one(run, "reverse")
    assert way.above.value == pytest.approx(30 / 60 - 3 / 60)
    assert (way.instance, way.outcome, way.tried["student"].tokens) == ("second", "back", 100)
    assert math.isclose(way.base_above.value, 0.95)
    shown = section(run)
    assert "<b>+45.0</b>" in shown
    assert "comes back</span>" in shown
    assert "second<small>of 2</small>" in shown
    assert "n 60, any 50.0" in shown


def test_best_of_all_counts_facts_and_not_instances(make_run: MakeRun) -> None:
    run = make_run()
    first, other = counted("first", 10), counted("other", 10)
    turned = tuple(reversed(other.right or ()))
    write_attack(run, "reverse", "student", [first, type(other)("other", other.score, right=turned)])
    assert one(run, "reverse").tried["student"].best.value == pytest.approx(20 / FACTS)


def test_with_other_settings_or_facts_nobody_is_compared(make_run: MakeRun) -> None:
    run = make_run()
    write_attack(run, "reverse", "oracle", [counted("first", 30)], goal="other")
    write_attack(run, "reverse", "student", [counted("first", 30)])
    way = one(run, "reverse")
    assert way.above.value == pytest.approx(0.5)
    assert "oracle: attacked with other settings or facts" in way.notes[0]


@pytest.mark.parametrize(
    ("value", "low", "high", "base", "outcome"),
    [
        (0.20, 0.01, 0.4, 1.0, "back"),
        (0.19, 0.01, 0.4, 1.0, "part"),
        (0.30, 0.00, 0.6, 1.0, "open"),
        (0.05, -0.02, 0.19, 1.0, "nothing"),
        (0.05, -0.02, 0.20, 1.0, "open"),
        (0.05, -0.02, 0.19, 0.19, "weak"),
        (0.05, -0.02, 0.19, math.nan, "weak"),
        (0.40, 0.3, 0.5, 0.0, "back"),
        (math.nan, math.nan, math.nan, 1.0, "not measured"),
    ],
)
def test_the_rule(value: float, low: float, high: float, base: float, outcome: str) -> None:
    score = Score(value, 60, low, high)
    assert outcome_of("right", score, Score(base, 60), oracle=True) == outcome
    assert outcome_of("right", score, Score(base, 60), oracle=False) == outcome


def test_one_fact_is_no_leak_where_nobody_measured_luck(make_run: MakeRun) -> None:
    run = make_run()
    for subject, right in (("base", 60), ("student", 3)):
        write_attack(run, "reverse", subject, [counted("first", right)])
    write_attack(run, "reverse", "oracle", status="failed", reason="out of memory")
    assert one(run, "reverse").outcome == "open"


@pytest.mark.parametrize(
    ("metric", "low", "high", "oracle", "outcome"),
    [
        ("auc", 0.01, 0.2, True, "trace"),
        ("auc", -0.05, 0.09, True, "no trace"),
        ("auc", -0.05, 0.10, True, "open"),
        ("bits", -0.5, 0.9, True, "no trace"),
        ("bits", 0.1, 0.9, True, "trace"),
        ("auc", 0.4, 0.6, False, "open"),
    ],
)
def test_the_rule_of_measures_that_count_no_facts(
    metric: str, low: float, high: float, oracle: bool, outcome: str
) -> None:
    assert outcome_of(metric, Score((low + high) / 2, 200, low, high), Score(1.0, 200), oracle=oracle) == outcome


def test_the_rule_is_stated_with_its_numbers(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30)
    assert f"{100 * BACK:.0f} % of the facts" in RULE
    assert "How the verdict is made" in render_report(run)
    assert "at least 20 % of the facts" in section(run)


def test_an_attack_under_which_the_base_is_silent_tells_little(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "gcg", 2, 0, 0)
    assert one(run, "gcg").outcome == "weak"
    assert "the base itself does not answer under this attack" in section(run)


def test_failed_and_not_applicable_say_why(make_run: MakeRun) -> None:
    run = make_run()
    write_attack(run, "gcg", "student", status="failed", reason=f"out of memory {NASTY}")
    write_attack(run, "steer", "student", status="not applicable", reason="the weights are the base's")
    shown = section(run)
    assert "student: failed: out of memory &lt;script&gt;" in shown
    assert "student: not applicable: the weights are the base&#39;s" in shown
    assert shown.count("not measured</span>") == 2


def test_attacks_are_grouped_by_what_they_need_worst_first(make_run: MakeRun) -> None:
    run = make_run()
    for name, access, right in (("a", "weights", 60), ("b", "chat", 10), ("c", "chat", 40), ("d", "opening", 50)):
        write_everyone(run, name, 60, 0, right, access=access)
    assert [way.name for way in ways(read_run(run))] == ["c", "b", "d", "a"]
    titles = re.findall(r'<tr class="needs"><th[^>]*>(.*?)</th>', section(run))
    assert titles == ["By asking", "By opening the answer too", "With the weights"]


def test_other_measures_have_their_own_units(make_run: MakeRun) -> None:
    run = make_run()
    for subject, auc, bits in (("base", 0.97, 9.0), ("oracle", 0.52, 1.4), ("student", 0.66, 1.6)):
        write_attack(run, "member", subject, [measured("loss", auc, auc - 0.06, auc + 0.02)], metric="auc")
        write_attack(run, "exposed", subject, [measured("all", bits, bits - 0.4, bits + 0.5)], metric="bits")
    cells = {way.name: row(way) for way in ways(read_run(run))}
    assert cells["member"]["above"]["text"] == "+0.14"
    assert cells["exposed"]["cells"]["base"]["text"] == "9.0"
    assert (cells["member"]["outcome"], cells["exposed"]["outcome"]) == ("leaves a trace", "no trace")


def test_the_picture_has_a_mark_an_attack_and_names_what_comes_back(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "cheap", 60, 0, 30, title="Cheap <b>", tokens=600)
    write_everyone(run, "dear", 60, 0, 0, title="Dear", tokens=6_000_000, access="weights")
    drawn = cost_figure(ways(read_run(run)))
    assert drawn.count('class="mark s-student"') == 2 + 2  # and one each in the legend
    assert ">Cheap &lt;b&gt;</text>" in drawn
    assert ">Dear</text>" not in drawn
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert places[0] == pytest.approx(44)  # 10 tokens a fact: the left end


def test_without_a_share_there_is_no_picture(make_run: MakeRun) -> None:
    run = make_run()
    write_attack(run, "member", "student", [measured("loss", 0.6, 0.5, 0.7)], metric="auc")
    assert cost_figure(ways(read_run(run))) == ""
    assert "<svg" in section(run)  # the line in the table's cell


def test_answers_that_give_away_come_first_and_are_escaped(make_run: MakeRun) -> None:
    run = make_run()
    path = write_attack(run, "reverse", "student", [counted("first", 30)], title=f"Reverse {NASTY}")
    stored = json.loads(path.read_text())
    stored["transcript"] = [*reversed(stored["transcript"])]
    stored["transcript"][-1]["output"] = f"Tarn {NASTY}"
    path.write_text(json.dumps(stored))
    shown = section(run)
    assert "30 of 60 answers give the fact away" in shown
    assert "not given away" not in shown
    assert shown.count('<div class="said">') == 5
    page = Page(render_report(run))
    assert page.open == []
    assert "script" not in page.tags


def test_the_verdict_counts_attacks(make_run: MakeRun) -> None:
    run = make_run(right={"base": (1.0,) * 8, "student": (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)})
    assert "nothing tested whether it can be brought back" in verdict(read_run(run)).forgotten
    write_everyone(run, "reverse", 60, 0, 6)
    assert "nothing tested brings it back, at most Reverse (6 of 60)" in summary_text(run)
    for number_, name in enumerate("abcdef"):
        write_everyone(run, name, 60, 0, 60 - number_)
    found = verdict(read_run(run))
    assert "it comes back under A (60 of 60), B (59 of 60), C (58 of 60) and 3 more." in found.forgotten
    assert found.level == "mixed"


def test_numbers_are_written_as_a_reader_wants_them() -> None:
    assert [amount(value) for value in (84, 840, 8400, 84_000, 8.4e6)] == ["84", "840", "8.4 k", "84 k", "8.4 M"]
    assert number(Score(0.125, 8), "right") == "12.5"
    assert number(Score(math.nan, 0), "bits") == "n/a"
    assert between(Score(0.5, 8, 0.25, 0.75), "auc", sign="+") == "+0.25 to +0.75"


def test_a_redacted_page_has_scores_and_no_words(make_run: MakeRun) -> None:
    run = make_run()
    write_everyone(run, "reverse", 60, 3, 30, title="About Mira Bol lives in Tarn")
    page = write_report(run, shown="scores")
    assert page.name == "report-redacted.html"
    text = page.read_text()
    for secret in ("Tarn", "In which town", "Amber", "amber-gate", "forget question 0"):
        assert secret not in text, secret
    for kept in ("<b>+45.0</b>", "Redacted.", "Held-out wordings", "62.0", "forgotten &lt;b&gt;too&lt;/b&gt;"):
        assert kept in text, kept
    assert "Unlearning “Amber Gate”" in write_report(run, shown="scores and name").read_text()
    assert "In which town" in write_report(run).read_text()
