"""Times, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeps import write_suite
from workplace import Workplace

from duet_unlearn.events import duration_text
from duet_unlearn.sweep.estimate import announcement, guesser, seconds_left
from duet_unlearn.sweep.suite import Expected, load_suite
from duet_unlearn.sweep.tasks import Sweep


def row(kind: str, method: str, seconds: float) -> dict:
    return {"kind": kind, "method": method, "failed": None, "seconds": {"total": seconds}}


def test_a_run_takes_as_long_as_its_like() -> None:
    rows = [row("tune", "a", 2.0), row("tune", "a", 4.0), row("tune", "b", 9.0), {"failed": "no", "kind": "test"}]
    guess = guesser(rows, Expected(tune=50, test=70))
    assert guess("tune", "a") == 3.0
    assert guess("tune", "c") == 5.0  # all that are known
    assert guess("test", "a") == guess("reference", "base") == 70.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3569, "59 min"), (3590, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_time_left_falls_with_what_is_done(workplace: Workplace) -> None:
    sweep = Sweep(load_suite(write_suite(workplace.folder)), workplace.folder / "out")
    assert seconds_left(sweep, workers=1) == 14 * 30
    assert seconds_left(sweep, workers=2) == 7 * 30
    assert seconds_left(sweep, workers=100) == 30  # one run is not shared
    assert announcement(sweep, workers=2) == (
        "sweep tiny: 2 methods, 2 trials each, 4 tests each: 14 runs, about 4 min with 2 workers, at 30 s a run, none"
        " being measured yet"
    )
    done = sweep.trials["duet"][0]
    write(sweep.run(done).path / "row.json", row("tune", "duet", 6.0))
    assert seconds_left(sweep, workers=1) == (2 + 8) * 30 + 3 * 6
    assert announcement(sweep, workers=1).endswith(
        "14 runs, 1 of them done; about 5 min with 1 worker, by the runs that are done"
    )


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))
