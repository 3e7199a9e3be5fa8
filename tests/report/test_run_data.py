"""Reading a run folder: what is no run, what is broken, what a killed run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from duet_unlearn.errors import UserError
from duet_unlearn.report import compare, render_report, summary_text
from duet_unlearn.report.run_data import Column, duration, read_run

MakeRun = Callable[..., Path]


@pytest.mark.parametrize("read", [render_report, summary_text, lambda path: compare([path])])
def test_a_path_that_is_no_run_is_two_lines(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "file.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file.txt"):
        with pytest.raises(UserError, match="is not a run folder") as caught:
            read(path)
        assert str(path) in caught.value.message
        assert "duet run" in caught.value.hint
        assert "\n" not in caught.value.message + caught.value.hint


def test_broken_files_are_named(make_run: MakeRun) -> None:
    run = make_run()
    (run / "timings.json").write_text("{")
    with pytest.raises(UserError, match=r"timings\.json: is not JSON"):
        read_run(run)
    (run / "timings.json").unlink()
    (run / "samples" / "base.jsonl").write_text('{"set": "a", "id": "1"}\nnot json\n{}\n')
    with pytest.raises(UserError, match=r"base\.jsonl:2: is not JSON"):
        read_run(run)
    (run / "recipe.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="is not a recipe"):
        read_run(run)


def test_a_torn_last_line_is_dropped_and_repeated_steps_count_once(make_run: MakeRun) -> None:
    run = make_run()
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 2.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    assert [row["loss"] for row in read_run(run).steps] == [3.0, 2.5]


def test_null_is_nan_and_an_unknown_set_is_empty(make_run: MakeRun) -> None:
    run = read_run(make_run(right={"student": (None,)}))
    found = run.subjects["student"].score("forget", "right")
    assert math.isnan(found.value)
    assert found.n == 0
    assert run.subjects["student"].score("nowhere", "right").n == 0


def test_columns_stand_in_order_of_their_groups(make_run: MakeRun) -> None:
    groups = [column.group for column in read_run(make_run()).columns]
    assert list(dict.fromkeys(groups)) == [
        "forget", "neighbour", "retain", "choice", "robustness", "deployer", "summary",
    ]  # fmt: skip


def test_direction_turns_where_refusals_stand_for_answers() -> None:
    def better(goal: str, metric: str) -> str:
        return Column("a", "A", "forget", goal, "", metric).better

    assert [better("forget", "right"), better("keep", "right")] == ["low", "high"]
    assert [better("forget", "refused"), better("keep", "refused")] == ["high", "low"]
    assert better("keep", "points") == "high"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (8.41, 200, 3720)] == ["8.4 s", "3 min 20 s", "1 h 02 min"]
