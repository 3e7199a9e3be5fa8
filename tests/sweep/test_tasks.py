"""What there is to do, what is chosen of it, and how long the rest takes; by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import write_suite
from workplace import Workplace

from duet_unlearn.events import duration_text
from duet_unlearn.sweep.protocol import load_suite
from duet_unlearn.sweep.tasks import SweepFolder, announcement, chosen_trial, seconds_left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3569, "59 min"), (3590, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_time_left_falls_with_what_is_done(workplace: Workplace) -> None:
    sweep = SweepFolder(load_suite(write_suite(workplace.folder)), workplace.folder / "out")
    assert seconds_left(sweep, workers=1) == 14 * 30
    assert seconds_left(sweep, workers=2) == 7 * 30
    assert seconds_left(sweep, workers=100) == 30  # one run is not shared
    assert announcement(sweep, workers=2) == (
        "sweep tiny: 2 methods, 2 trials each, 4 tests each: 14 runs, about 4 min with 2 workers, at 30 s a run, none"
        " being measured yet"
    )
    write(sweep.run(sweep.trials["duet"][0]).path / "row.json", 6.0)
    assert seconds_left(sweep, workers=1) == (2 + 8) * 30 + 3 * 6  # the other method's trials are expected to be alike
    assert announcement(sweep, workers=1).endswith(
        "14 runs, 1 of them done; about 5 min with 1 worker, by the runs that are done"
    )
    write(sweep.run(sweep.trials["ascent"][0]).path / "row.json", 10.0)
    assert seconds_left(sweep, workers=1) == (2 + 8) * 30 + 6 + 10  # each method's by its own
    failed = sweep.run(sweep.trials["ascent"][1]).path / "failed.json"
    write(failed, 1000.0, failed="no")
    assert seconds_left(sweep, workers=1) == (2 + 8) * 30 + 6


def write(path: Path, seconds: float, failed: str | None = None) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"failed": failed, "seconds": {"total": seconds}}))


def rows(*scores: float | None) -> list[dict[str, Any]]:
    return [{"failed": "broken"} if score is None else {"failed": None, "score": score} for score in scores]


@pytest.mark.parametrize(
    ("scores", "trial"),
    [((0.1, 0.9, 0.5), 1), ((0.5, 0.7, 0.7), 1), ((None, 0.0, 0.0), 1), ((0.2, None, 0.1), 0), ((0.0, 0.0), 0)],
)
def test_the_best_is_chosen_the_first_of_equals_a_failure_last(scores: tuple[float | None, ...], trial: int) -> None:
    trials = [{"train.rate": number} for number in range(len(scores))]
    found = chosen_trial(rows(*scores), trials)
    assert (found["trial"], found["settings"], found["failed"]) == (trial, trials[trial], None)
    assert found["scores"] == list(scores)


def test_where_every_trial_failed_nothing_is_chosen_and_where_there_is_none_nothing_need_be() -> None:
    assert chosen_trial(rows(None, None), [{}, {}])["failed"] == "every trial failed"
    assert chosen_trial([], []) == {"trial": None, "settings": {}, "scores": [], "failed": None}
