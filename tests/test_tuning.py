"""The rule by which the lab's settings are chosen."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import tune

    return tune


def test_what_is_kept_comes_first_then_what_is_forgotten_then_fewest_steps(tune: ModuleType) -> None:
    tried = [
        tune.Tried({"train.epochs": 20}, forget=0.10, fall=0.02),
        tune.Tried({"train.epochs": 10}, forget=0.11, fall=0.03),  # a point worse, in half the steps
        tune.Tried({"train.epochs": 5}, forget=0.13, fall=0.00),  # three points worse
        tune.Tried({"train.epochs": 10}, forget=0.00, fall=0.04),  # forgets best, keeps too little
    ]
    assert tune.choose(tried) == tried[1]
    with pytest.raises(ValueError, match="empty"):
        tune.choose(tried[3:])
