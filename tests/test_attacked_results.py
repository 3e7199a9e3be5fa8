"""The benchmark of attacks on the sweep's students: what its tables say, and that the page shows its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def one(access: str, above: float, *, tokens: int = 480, metric: str = "right", status: str = "done") -> dict[str, Any]:
    base = {
        "title": f"By {access}",
        "access": access,
        "metric": metric,
        "status": status,
        "tokens": tokens,
        "seconds": 1,
    }
    measured = {"instance": "x", "score": above, "n": 48, "above": [above, above - 0.1, above + 0.1], "any": above}
    return base if status != "done" else base | measured


def test_the_worst_case_is_the_largest_leak_of_facts() -> None:
    import attacked

    attacks = {
        "reverse": one("chat", 0.3),
        "prefill": one("opening", 0.7),
        "membership": one("decoding", 0.9, metric="auc"),
        "relearn": one("weights", 0.5),
        "gcg": one("weights", 1.0, status="failed"),
    }
    assert attacked.worst(attacks) == (0.7, "prefill")
    assert attacked.worst(attacks, ["weights"]) == (0.5, "relearn")
    assert attacked._cells(attacks) == ["30", "70", "n/a", "50", "70", "By opening"]


def test_the_front_rises_with_what_is_paid() -> None:
    import attacked

    attacks = {
        "dear": one("weights", 0.9, tokens=48_000),
        "cheap": one("chat", 0.2, tokens=480),
        "useless": one("chat", 0.1, tokens=960),
    }
    assert attacked.front(attacks, 48) == [(10.0, 0.2), (1000.0, 0.9)]


def test_the_best_are_those_that_give_least_away_of_those_that_keep_enough() -> None:
    import attacked

    found = {name: {"reverse": one("chat", leak)} for name, leak in (("a", 0.1), ("b", 0.4), ("c", 0.2))}
    assert attacked.choose(found, {"a": 0.5, "b": 0.95, "c": 0.9}) == ["c", "b"]


def test_of_equals_the_worst_without_weights_decides_and_the_same_student_counts_once() -> None:
    import attacked

    leaks = {"a": (0.4, 1.0), "again": (0.4, 1.0), "b": (0.2, 1.0), "c": (0.5, 0.9)}
    found = {name: {"reverse": one("chat", by), "relearn": one("weights", all_)} for name, (by, all_) in leaks.items()}
    assert attacked.choose(found, dict.fromkeys(leaks, 1.0)) == ["c", "b", "a"]


def test_what_was_made_robust_stands_beside_what_it_is_made_of() -> None:
    import attacked

    runs = {"gate-0": {"reverse": one("chat", 0.2)}, "gate-1": {"reverse": one("chat", 0.4)}}
    found = {
        "kept": {"duet": 0.94, "undo": 0.8, "npo": 0.7},
        "runs": {"duet": runs, "undo": {"gate-0": runs["gate-0"]}, "npo": runs},
        "robust": {"kept": {"robust": 0.9}, "runs": {"robust": runs}},
    }
    *_, first, second = attacked._robust(found).splitlines()
    assert first == "| robust | 2 | 90 | 30 ± 14 | n/a | n/a | n/a | 30 ± 14 |"
    assert second.startswith("| duet | 2 | 94 |")
    assert attacked._robust({}) == ""


def test_the_page_says_what_was_measured() -> None:
    import attacked

    found = json.loads(attacked.RESULTS.read_text(encoding="utf-8"))
    assert attacked.tables(found) in attacked.PAGE.read_text(encoding="utf-8")
    assert attacked.PICTURE.exists()
