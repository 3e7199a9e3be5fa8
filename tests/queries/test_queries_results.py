"""The stored figures of benchmarks/queries.py: extracted queries forget as well as the hand-made ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "queries.json"
POINTS = 5.0


def test_extracted_queries_forget_within_5_points_of_the_hand_made() -> None:
    found = json.loads(RESULTS.read_text("utf-8"))
    assert {row["target"] for row in found["runs"]} == set(found["extraction"])
    assert len(found["extraction"]) == 3
    for target, extracted in found["extraction"].items():
        assert extracted["kept"] == 100, target
        assert extracted["strict"] >= 95, target
    for source in ("hand-made", "extracted"):
        held_out = [row["right"]["forget_held_out"] for row in found["runs"] if row["source"] == source]
        assert found["mean"][source]["forget_held_out"] == pytest.approx(sum(held_out) / len(held_out))
    assert abs(found["mean"]["difference in points"]["forget_held_out"]) <= POINTS
