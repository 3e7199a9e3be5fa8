"""Tables over runs: mean and spread by hand, and no mean over runs that differ in more than the seed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from duet_unlearn.errors import UserError
from duet_unlearn.report import compare, summary_text
from duet_unlearn.stats import Score

MakeRun = Callable[..., Path]


def three_seeds(make_run: MakeRun) -> list[Path]:
    students = ((0.0, 0.02), (0.0, 0.04), (0.0, 0.09))
    return [
        make_run(f"seed{seed}", seed=seed, right={"base": (1.0, 0.98), "student": right})
        for seed, right in enumerate(students)
    ]


def lines(paths: list[Path]) -> list[list[str]]:
    """The words of every line below the head, of a table that is wide enough for all columns."""
    table = compare(paths).to_text(width=400).split("\n\n")[0]
    return [re.split(r"\s{2,}", line) for line in table.split("\n")[1:]]


def test_mean_and_spread_by_hand(make_run: MakeRun) -> None:
    paths = three_seeds(make_run)
    # mean (2 + 4 + 9) / 3 = 5; squares 9 + 1 + 16 = 26; sqrt(26 / 2) = 3.606
    assert lines(paths)[-1][:6] == ["student", "lab/duet", "duet", "3", "0.0 ± 0.0", "5.0 ± 3.6"]
    assert "standard deviation over seeds (n - 1)" in compare(paths).to_text()


def test_rows_hold_every_seed(make_run: MakeRun) -> None:
    rows = [row for row in compare(three_seeds(make_run)).rows if row.subject == "student"]
    assert [row.seed for row in rows] == [0, 1, 2]
    assert [row.scores["forget_held_out"].value for row in rows] == [0.02, 0.04, 0.09]
    assert isinstance(rows[0].scores["forget"], Score)


def test_other_settings_are_another_recipe(make_run: MakeRun) -> None:
    paths = [make_run(f"k{k}", k=k, right={"base": (1.0,), "student": (k / 100,)}) for k in (1, 20)]
    assert [line[:2] + line[4:5] for line in lines(paths)] == [
        ["base", "lab/duet method.k=1", "100.0"],  # the second base is the same, and left out
        ["student", "lab/duet method.k=1", "1.0"],
        ["student", "lab/duet method.k=20", "20.0"],
    ]


def test_a_seed_without_a_number_makes_no_mean(make_run: MakeRun) -> None:
    paths = [make_run(f"s{s}", seed=s, right={"student": right}) for s, right in enumerate([(0.1,), (None,)])]
    assert lines(paths)[0][4] == "n/a"


def test_text_is_aligned_and_fits(make_run: MakeRun) -> None:
    shown = compare([make_run()]).to_text(width=90).split("\n")
    assert max(len(line) for line in shown) <= 90
    head, *body = shown[:5]
    assert [line.split()[0] for line in body] == ["base", "prefix", "oracle", "student"]
    assert len({line.index("duet    1") for line in body}) == 1
    assert all(len(line) == len(head) for line in body)


def test_json_has_null_for_nan(make_run: MakeRun) -> None:
    found = json.loads(compare([make_run()]).to_json())
    base = found["rows"][0]
    interval = {"low": pytest.approx(0.9155, abs=1e-3), "high": pytest.approx(0.9897, abs=1e-3)}
    assert base["subject"] == "base"
    assert base["scores"]["shift"]["value"] is None
    assert base["scores"]["near"] == {"value": 0.97, "n": 100, **interval}
    assert {column["name"]: column["better"] for column in found["columns"]}["prefill"] == "low"


def test_table_of_one_run(make_run: MakeRun) -> None:
    sentences, table = summary_text(make_run()).split("\n\n", maxsplit=1)
    assert [line.split()[0] for line in sentences.split("\n")] == ["The", "It"]
    shown = table.split("\n")
    assert shown[0].split() == [
        "forget", "↓", "forget_held_out", "↓", "forget_unseen", "↓", "near", "↑", "far", "↑", "retain", "↑",
        "general", "↑",
    ]  # fmt: skip
    assert shown[4].split() == ["student", "(DUET)", "0.0", "3.0", "5.0", "95.0", "97.0", "98.5", "98.0"]
    assert shown[-1] == "Per cent right; shift in points; ↓ lower is better, ↑ higher."


def test_the_same_run_twice_is_no_second_seed(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(UserError, match="is given twice"):
        compare([run, run / "evals" / ".."])


def test_nothing_to_compare(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="no run to compare"):
        compare([])
    with pytest.raises(UserError, match="has no scores yet"):
        compare([_without_scores(make_run)])


def _without_scores(make_run: MakeRun) -> Path:
    run = make_run("no-scores")
    for file in (run / "evals").glob("*.json"):
        file.unlink()
    return run
