"""What the lab's sweep is held against: the paper's order, and claims judged by fixed rules. Numbers are made up."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import MADE, ROWS, Made, results, sweep_of

from duet_unlearn.report.sweep_data import SweepData, parse_sweep
from duet_unlearn.report.sweep_page import SweepLine, SweepTable

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from expectations import Decision, expectations, paper_order, paper_table


@pytest.fixture(scope="module")
def made() -> SweepData:
    return parse_sweep(results())


def line(table: SweepTable, name: str) -> SweepLine:
    return next(one for one in table.lines if one.name == name)


def test_the_papers_numbers_stand_beside_and_the_order_is_counted() -> None:
    """Paper: prefix, DUET, base (0), NPO (-0.16), GA. Here NPO is put above DUET and GA below the base."""

    def change(found: dict[str, Any]) -> None:
        values = {"duet": 150.0, "npo": 170.0, "ga": -20.0}
        for run in found["runs"]:
            if run["kind"] == "test":
                run["scores"]["shift"]["points"]["value"] = values[run["method"]] + run["seed"]

    sweep = sweep_of(ROWS["npo"], ROWS["duet"], ROWS["ga"], change=change)
    found = paper_table(sweep)
    assert found is not None
    assert [one.name for one in found.lines] == ["base + prefix", "DUET", "base", "NPO", "GA"]
    assert [cell.text for cell in line(found, "DUET").cells[:3]] == ["+55.9", "+151.0", "6.0 → 7.3"]
    assert line(found, "base").cells[1].text == "+0.0"
    assert line(found, "base + prefix").cells[3].text == "0.7 → 100.0"
    assert paper_order(sweep) == (
        "Of the 10 pairs with a Shift 8 are in the paper's order, 0 too close to tell, 2 the other way round: "
        "NPO above DUET, NPO above base."
    )


def test_without_a_method_of_the_paper_there_is_no_such_table() -> None:
    assert paper_table(sweep_of(ROWS["simnpo"])) is None


def decisions(*rows: Made, change: Callable[[dict[str, Any]], None] = lambda found: None) -> list[Decision]:
    return [one.decision for one in expectations(sweep_of(*rows, change=change))]


def test_expectations_of_the_made_up_sweep(made: SweepData) -> None:
    found = expectations(made)
    assert [one.decision for one in found] == ["confirmed"] * 5
    assert "retain: 5." in found[0].check.lower()
    assert all("9 runs" in one.check for one in found)
    assert re.search(r"bidirectional \S+ .* the next best gkd ", found[2].check)  # gkd is DUET at another distance


@pytest.mark.parametrize(
    ("place", "name", "change", "verdict"),
    [
        (0, "ga", {"keep": (0.9, 0.95)}, "refuted"),
        (0, "ga", {"keep": (0.5, 0.5)}, "not decidable"),
        (1, "refusal", {"forget": (0.0, 0.1)}, "refuted"),
        (2, "gkd", {"forget": (0.0, 0.0), "keep": (1.0, 1.0)}, "refuted"),
        (2, "shred", {"forget": (0.0, 0.0), "keep": (1.0, 1.0)}, "confirmed"),  # it reads answers
        (3, "bidirectional", {"back": (0.0, 0.6, 0.0, 0.8)}, "refuted"),
        (3, "bidirectional", {"keep": (0.8, 0.99)}, "refuted"),
        (4, "undo", {"back": (0.0, 0.0, 0.0, 0.69)}, "refuted"),
    ],
)
def test_an_expectation_follows_the_numbers(place: int, name: str, change: dict[str, Any], verdict: Decision) -> None:
    rows = [made._replace(**change) if made.name == name else made for made in MADE]
    assert decisions(*rows)[place] == verdict


def test_without_the_methods_nothing_is_decided() -> None:
    assert decisions(ROWS["npo"]) == ["not decidable"] * 5


def test_ga_that_forgot_nothing_is_judged_by_its_trials() -> None:
    timid = ROWS["ga"]._replace(forget=(0.95, 0.97), keep=(0.97, 0.99))

    def trials(*pairs: tuple[float, float]) -> Callable[[dict[str, Any]], None]:
        def change(found: dict[str, Any]) -> None:
            for trial, (forget, keep) in zip(found["methods"][0]["trials"], pairs, strict=True):
                trial |= {"forget": forget, "keep": keep}

        return change

    kept = [(0.97, 0.99)] * 5
    assert decisions(timid, change=trials((0.1, 0.2), *kept))[0] == "confirmed"
    assert decisions(timid, change=trials((0.1, 0.9), *kept))[0] == "refuted"
    assert decisions(timid, change=trials((0.97, 0.99), *kept))[0] == "not decidable"


def test_refusal_and_duet_must_have_had_the_same_queries() -> None:
    def change(found: dict[str, Any]) -> None:
        found["methods"][0]["queries"] = {"forget": "a.jsonl"}

    assert decisions(ROWS["refusal"], ROWS["duet"])[1] == "confirmed"
    assert decisions(ROWS["refusal"], ROWS["duet"], change=change)[1] == "not decidable"


def test_undo_with_little_noise_is_not_meant() -> None:
    def alpha(value: float) -> Callable[[dict[str, Any]], None]:
        def change(found: dict[str, Any]) -> None:
            found["methods"][0]["settings"] = {}
            found["methods"][0]["options"] = {"alpha": value}

        return change

    assert decisions(ROWS["undo"], ROWS["maxent"], change=alpha(0.3))[4] == "not decidable"
    assert decisions(ROWS["undo"], ROWS["maxent"], change=alpha(0.9))[4] == "confirmed"
