"""A sweep's page: its numbers by hand, its marks by rule, and honest about what is missing. The numbers are made up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_sweep import ROWS, results, sweep_of, write
from test_run_page import Page
from typer.testing import CliRunner

from duet_unlearn.report import render_report, write_report
from duet_unlearn.report.sweep_data import SweepData, parse_sweep, read_sweep
from duet_unlearn.report.sweep_page import (
    MISSING,
    SweepLine,
    SweepTable,
    cost_table,
    failures,
    headline,
    main_table,
    robustness_table,
    tuning_table,
)

SECTIONS = [
    "headline",
    "pictures",
    "table-main",
    "table-robustness",
    "table-cost",
    "table-tuning",
    "not-relearned",
    "failed",
    "protocol",
]
FEW = tuple(ROWS[name] for name in ("duet", "npo", "wga", "simnpo", "guard", "ngdiff"))
"""Enough for a page with everything on it."""
TABLES = {"main": main_table, "robustness": robustness_table, "cost": cost_table, "tuning": tuning_table}


@pytest.fixture(scope="module")
def made() -> SweepData:
    return parse_sweep(results())


def table(sweep: SweepData, key: str) -> SweepTable:
    return TABLES[key](sweep)


def line(table: SweepTable, name: str) -> SweepLine:
    return next(one for one in table.lines if one.name == name)


def column(table: SweepTable, key: str) -> int:
    return [one.key for one in table.columns].index(key)


def test_every_finished_method_has_a_line_and_the_rest_are_named(made: SweepData) -> None:
    for key in ("main", "robustness", "cost"):
        names = [one.name for one in table(made, key).lines if one.kind != "baseline"]
        assert sorted(names) == sorted(set(ROWS) - {"ngdiff"})
    assert [one.name for one in table(made, "tuning").lines] == list(ROWS)
    assert ("wga", "silver-mill, seed 2: the loss is not finite at step 40") in failures(made)
    assert ("ngdiff", "trials 0, 1, 2, 3, 4, 5: the loss is not finite at step 1") in failures(made)
    assert line(table(made, "main"), "wga").failed == 1


def test_tables_are_sorted_by_what_they_say(made: SweepData) -> None:
    shifts = [row.mean("shift").value for row in made.ranked("shift", "high")]
    trained, others = shifts[:-3], shifts[-3:]  # prefix, guard and eco change no weights
    assert trained == sorted(trained, reverse=True)
    assert others == sorted(others, reverse=True)
    main = table(made, "main")
    assert [one.name for one in main.lines[:3]] == ["base", "base + prefix", "oracle"]
    assert [one.kind for one in main.lines[-3:]] == ["inference"] * 3
    assert "Sorted by Performance Shift" in main.note


def test_a_column_marks_its_best_and_no_failed_method(made: SweepData) -> None:
    main = table(made, "main")
    at = column(main, "forget_held_out")
    values = {one.name: made.method(one.name).mean("forget_held_out").value for one in main.lines[3:]}  # type: ignore[union-attr]
    lowest = min(value for name, value in values.items() if name not in ("wga", "prefix", "guard", "eco"))
    assert all(one.cells[at].best for one in main.lines[3:] if values[one.name] == lowest and one.kind == "trained")
    assert not any(cell.best for cell in line(main, "wga").cells)
    assert not any(cell.best for one in main.lines if one.kind != "trained" for cell in one.cells)


def test_cells_hold_numbers_spreads_and_what_is_behind_them() -> None:
    def change(found: dict[str, Any]) -> None:
        for run in found["runs"]:
            if run["kind"] == "test":
                story = {"amber-gate": 0.1, "silver-mill": 0.2, "hollow-clock": 0.3}[run["target"]]
                run["scores"]["near"]["right"]["value"] = story + 0.01 * run["seed"]

    main = table(sweep_of(ROWS["duet"], change=change), "main")
    cell = line(main, "duet").cells[column(main, "near")]
    assert (cell.text, cell.over_targets, cell.over_seeds) == ("21.0", "10.0", "1.0")
    assert cell.title == "duet, near: 21.0 %; ± 10.0 over targets; ± 1.0 over seeds; 9 runs; n = 540"
    assert line(main, "base").cells[column(main, "shift")].text == MISSING


def test_a_mean_over_fewer_runs_is_marked() -> None:
    def change(found: dict[str, Any]) -> None:
        run = next(run for run in found["runs"] if run["kind"] == "test")
        run["scores"]["near"]["right"] = {"value": None, "n": 0, "low": None, "high": None}

    main = table(sweep_of(ROWS["duet"], change=change), "main")
    cells = line(main, "duet").cells
    assert cells[column(main, "near")].partial
    assert not cells[column(main, "far")].partial


def test_methods_without_weights_are_judged_by_prompts_and_say_so(made: SweepData) -> None:
    robust = table(made, "robustness")
    cells = line(robust, "guard").cells
    assert cells[column(robust, "relearned")].text == MISSING
    assert cells[column(robust, "by")].text == "format shift (prompts only)"
    assert line(robust, "oracle").cells[column(robust, "worst")].text == "0.0"
    assert line(robust, "duet").cells[column(robust, "by")].text in ("prefill", "format shift")


def test_needs_hold_those_of_the_stages_before_and_of_the_retain_term(tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", results((ROWS["undo"], ROWS["maxent"], ROWS["ga"], ROWS["npo"])))
    for name, section in (("ga", {"name": "ga", "retain": "ce"}), ("npo", {"name": "npo", "retain": "none"})):
        run = folder / f"test/{name}/amber-gate-0"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(yaml.safe_dump({"method": section, "data": {"forget": "f.jsonl"}}))
    sweep = read_sweep(folder)
    needs = {row.name: row.needs for row in sweep.methods}
    assert needs["undo"] == {"texts", "answers", "retain"}
    assert needs["ga"] == {"answers", "retain"}
    assert needs["npo"] == {"answers", "reference"}
    cost = table(sweep, "cost")
    cells = dict(zip([one.key for one in cost.columns], line(cost, "npo").cells, strict=True))
    assert (cells["answers"].text, cells["retain"].text, cells["made"].text) == ("yes", "", "base's outputs")


def test_tuning_shows_what_was_tried_and_what_was_chosen(made: SweepData) -> None:
    tuning = table(made, "tuning")
    cells = [cell.text for cell in line(tuning, "simnpo").cells]
    assert cells[:2] == ["train.rate 0.001, 0.003, 0.009; train.epochs 5, 10", "train.rate 0.003; train.epochs 5"]
    assert cells[3:] == ["0.060", "0.710", "6", "1"]
    assert line(tuning, "prefix").cells[0].text == "no setting: the prefix is the recipe's"
    assert [cell.text for cell in line(tuning, "ngdiff").cells[1:5]] == [MISSING] * 4


def test_headline_names_the_best_and_the_hardest(made: SweepData) -> None:
    first, second = headline(made)
    best = max((r for r in made.methods if r.kind == "trained"), key=lambda r: r.mean("shift").value)
    assert f"{best.name} +{best.mean('shift').value:.1f}" in first
    assert "undo" in second  # ga and others are lower or near, but keep too little


def test_every_section_is_on_the_page_in_order(tmp_path: Path) -> None:
    page = Page(render_report(write(tmp_path / "sweep", results(FEW))))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert page.open == []


def test_page_loads_nothing_runs_nothing_and_has_a_dark_side(tmp_path: Path) -> None:
    text = render_report(write(tmp_path / "sweep", results(FEW)))
    page = Page(text)
    assert page.active == []
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form"})
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count("prefers-color-scheme: dark") == 1


def test_texts_of_the_sweep_are_escaped(tmp_path: Path) -> None:
    found = json.loads(json.dumps(results(FEW)).replace("wga", "<img src=x>").replace("not finite", "<script>"))
    found["sets"]["prefill"]["title"] = "</svg><b>"
    text = render_report(write(tmp_path / "sweep", found))
    page = Page(text)
    assert page.open == []
    assert page.tags.isdisjoint({"img", "script"})
    assert "&lt;img src=x&gt;" in text


def nothing(found: dict[str, Any]) -> None:
    found |= {"finished": False, "runs": [], "sets": {}, "baselines": {}}
    found["methods"] = [m | {"chosen": None, "settings": None, "failed": None} for m in found["methods"]]


def no_oracle(found: dict[str, Any]) -> None:
    for one in found["baselines"].values():
        del one["oracle"]


def no_relearning(found: dict[str, Any]) -> None:
    found["protocol"]["relearn"] = None
    for run in found["runs"]:
        run["relearned"] = None
    for one in found["baselines"].values():
        for subject in one.values():
            subject["relearned"] = None


def one_run(found: dict[str, Any]) -> None:
    found["runs"] = [r for r in found["runs"] if (r["kind"], r["method"], r["seed"]) == ("test", "npo", 0)][:1]


def own_sets(found: dict[str, Any]) -> None:
    """A user's sets: none of the lab's names, and questions without known answers."""
    names = {"forget_held_out": "secret", "near": "public"}
    keep = {key: info for key, info in found["sets"].items() if key in names}
    found["sets"] = {names[key]: info for key, info in keep.items()}
    for run in found["runs"]:
        if run["kind"] == "test" and not run["failed"]:
            run["scores"] = {names[k]: {"refused": v["right"]} for k, v in run["scores"].items() if k in names}
    for one in found["baselines"].values():
        for subject in one.values():
            subject["scores"] = {names[k]: {"refused": v["right"]} for k, v in subject["scores"].items() if k in names}


@pytest.mark.parametrize("change", [nothing, no_oracle, no_relearning, one_run, own_sets])
def test_a_missing_piece_leaves_the_page_whole(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = results(FEW)
    change(found)
    page = Page(text := render_report(write(tmp_path / "sweep", found)))
    assert [name for name in page.ids if name in SECTIONS if name != "not-relearned"] == [
        name for name in SECTIONS if name != "not-relearned"
    ]
    assert page.open == []
    assert ("not finished" in text) == (change is nothing)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower()


def test_a_sweep_and_a_run_are_told_apart(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    assert "methods compared" in write_report(write(tmp_path / "sweep", results(FEW))).read_text()
    run = make_run()
    write(run, results(FEW))
    assert "methods compared" not in write_report(run).read_text()


def test_the_command_writes_the_page_of_a_sweep(tmp_path: Path) -> None:
    from duet_unlearn.cli import app

    folder = write(tmp_path / "sweep", results(FEW))
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
