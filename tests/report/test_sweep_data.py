"""A sweep's results as data: means, differences and who is best, by hand. The numbers are made up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import ROWS, results, sweep_of

from duet_unlearn.errors import UserError
from duet_unlearn.report.sweep_data import (
    RunValue,
    SweepData,
    SweepRow,
    best_of,
    difference,
    mean_of,
    parse_sweep,
    read_sweep,
)


@pytest.fixture(scope="module")
def made() -> SweepData:
    return parse_sweep(results())


def points(*values: tuple[str, int, float]) -> list[RunValue]:
    return [RunValue(target, seed, value, 10) for target, seed, value in values]


def row(name: str, *values: float, failures: tuple[str, ...] = ()) -> SweepRow:
    """One seed of a story each."""
    return SweepRow(
        name, name, "trained", {"near": [RunValue(f"t{i}", 0, v, 10) for i, v in enumerate(values)]}, 3, failures
    )


def test_mean_and_both_spreads_by_hand() -> None:
    found = mean_of(points(("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.4), ("b", 1, 0.6), ("b", 2, 0.8)))
    assert found.value == pytest.approx(0.4)  # of 0.2 and 0.6: a story counts once, however many seeds it has
    assert found.over_targets == pytest.approx(0.4 / math.sqrt(2))
    assert found.over_seeds == pytest.approx((0.2 / math.sqrt(2) + 0.2) / 2)
    assert (found.n, found.runs) == (50, 5)


def test_what_was_not_measured_is_nan_and_one_story_has_no_spread() -> None:
    nothing, one = mean_of([]), mean_of(points(("a", 0, 0.1)))
    assert math.isnan(nothing.value)
    assert nothing.n == 0
    assert one.value == 0.1
    assert math.isnan(one.over_targets)
    assert math.isnan(one.over_seeds)


def test_a_difference_is_taken_run_by_run() -> None:
    one = points(("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.2), ("c", 0, 0.9))
    other = points(("a", 0, 0.4), ("a", 1, 0.4), ("b", 0, 0.1), ("b", 1, 0.9))
    gap = difference(one, other)
    assert gap is not None
    assert gap.mean == pytest.approx(0.15)  # stories: 0.2 and 0.1
    assert gap.spread == pytest.approx(0.1 / math.sqrt(2))
    assert gap.error == pytest.approx(0.05)
    assert (gap.targets, gap.runs) == (2, 3)
    base = difference(one, points(("a", 0, 0.1)), match="target")
    assert base is not None
    assert base.mean == pytest.approx(0.5)
    assert difference(one, points(("d", 0, 0.4))) is None


def test_means_are_those_that_the_engine_gives(made: SweepData) -> None:
    """Written apart from each other: the engine's summary for a terminal, and the report's."""
    from duet_unlearn.sweep.results import summary

    rows = [run for run in results()["runs"] if run["kind"] == "test"]
    for method in made.methods:
        engine = summary([row for row in rows if row["method"] == method.name])
        assert engine["failed"] == sum("seed" in what for what in method.failures)
        for name, theirs in engine["sets"].items():
            ours = method.mean(name)
            assert (ours.n, ours.runs) == (theirs["n"], theirs["runs"])
            if theirs["mean"] is not None:
                values = (theirs["mean"], theirs["over_targets"], theirs["over_seeds"])
                assert (ours.value, ours.over_targets, ours.over_seeds) == pytest.approx(values)


def test_forgotten_kept_and_worst_of_a_run_by_hand() -> None:
    def change(found: dict[str, Any]) -> None:
        shares = {"forget_held_out": 0.1, "forget_unseen": 0.3, "near": 0.8, "retain": 0.7, "choice": 0.9}
        attacks = {"reverse_prompt": 0.2, "prefill": 0.5, "continuation": 0.4}
        for run in found["runs"]:
            if run["kind"] == "test":
                for name, share in (shares | attacks).items():
                    run["scores"][name]["right"]["value"] = share
                run["relearned"]["worst"]["value"] = 0.6
        for one in found["baselines"].values():
            one["oracle"]["scores"]["prefill"]["right"]["value"] = 0.2
            one["oracle"]["relearned"]["worst"]["value"] = 0.25

    found = sweep_of(ROWS["duet"], change=change).methods[0]
    assert found.mean("forgotten").value == pytest.approx(0.2)
    assert found.mean("kept").value == pytest.approx(0.7)
    oracle = 1 / 60  # 0.02 of 60 questions
    assert found.mean("prompted").value == pytest.approx(0.4 - oracle)  # continuation; prefilling is 0.3 above
    assert found.mean("worst").value == pytest.approx(0.4 - oracle)  # relearning is 0.35 above


def test_a_run_that_lacks_a_set_is_in_no_picture() -> None:
    def change(found: dict[str, Any]) -> None:
        run = next(run for run in found["runs"] if run["kind"] == "test")
        del run["scores"]["near"]

    found = sweep_of(ROWS["duet"], change=change).methods[0]
    assert found.mean("kept").runs == 8
    assert found.mean("forgotten").runs == 9


def test_best_and_its_ties() -> None:
    best, close, far = row("best", 0.9, 0.8, 0.7), row("close", 0.8, 0.8, 0.7), row("far", 0.6, 0.5, 0.4)
    assert best_of([best, close, far], "near", "high") == {"best", "close"}  # 0.033 a story, ± 0.058
    assert best_of([best, close, far], "near", "low") == {"far"}
    broken = row("broken", 1.0, 1.0, failures=("t2, seed 0: no",))
    assert best_of([best, broken, far], "near", "high") == {"best"}
    assert best_of([best, row("same", 0.9, 0.8, 0.7)], "near", "high") == set()
    assert best_of([row("alone", 0.5)], "near", "high") == {"alone"}
    assert best_of([SweepRow("none", "none", "trained", {})], "near", "high") == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"schema": 2}', "another version"),
        ("[]", "another version"),
        (None, "is not a sweep folder"),
    ],
)
def test_what_is_no_sweep_is_said_plainly(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_sweep(tmp_path)
