"""How long a sweep takes: by the seconds of its own finished runs, and a declared guess before there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean

from duet_unlearn.events import duration_text
from duet_unlearn.sweep.suite import Expected
from duet_unlearn.sweep.tasks import Row, Sweep


def seconds_left(sweep: Sweep, *, workers: int) -> float:
    """Wall seconds until everything is done: what is open, as long as its like took, over the workers; but no less
    than the longest single run."""
    rows = [row for task in sweep.tasks() if (row := sweep.row(task))]
    guess = guesser(rows, sweep.loaded.suite.expect)
    times = [guess(kind, method) for kind, method in sweep.open()]
    return max(sum(times) / max(workers, 1), max(times, default=0.0))


def guesser(rows: Iterable[Row], expect: Expected) -> Callable[[str, str], float]:
    """(kind, method) -> seconds of a run: the mean of the method's own, else of all of that kind, else the guess."""
    times: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if not row["failed"]:
            times.setdefault((row["kind"], row["method"]), []).append(row["seconds"]["total"])

    def guess(kind: str, method: str) -> float:
        alike = [second for (other, _), found in times.items() if other == kind for second in found]
        declared = expect.tune if kind == "tune" else expect.test
        return fmean(times.get((kind, method)) or alike or [declared])

    return guess


def announcement(sweep: Sweep, *, workers: int) -> str:
    """What there is to do and how long it will take, before it begins."""
    suite, open_ = sweep.loaded.suite, sweep.open()
    total = sweep.num_runs
    measured = any(sweep.done(task) for task in sweep.tasks())
    basis = "by the runs that are done" if measured else f"at {_declared(suite.expect)} a run, none being measured yet"
    done = f"{total - len(open_)} of them done; " if measured else ""
    return (
        f"sweep {suite.name}: {len(suite.methods)} methods, {sweep.loaded.num_trials} trials each, {sweep.num_tests}"
        f" tests each: {total} runs, {done}about {duration_text(seconds_left(sweep, workers=workers))}"
        f" with {workers} worker{'s' if workers > 1 else ''}, {basis}"
    )


def _declared(expect: Expected) -> str:
    one, other = f"{expect.tune:g}", f"{expect.test:g}"
    return f"{one} s" if one == other else f"{one} s (trials) and {other} s (tests)"
