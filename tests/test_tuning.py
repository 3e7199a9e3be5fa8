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


def test_retain_first_then_forget_then_fewest_steps(tune: ModuleType) -> None:
    tried = [
        tune.Tried(1e-4, 5, forget=0.40, retain=1.00),  # keeps all, forgets too little
        tune.Tried(3e-4, 10, forget=0.02, retain=0.99),  # a point of retain is allowed
        tune.Tried(3e-4, 20, forget=0.01, retain=1.00),  # no more than a point better, at twice the steps
        tune.Tried(1e-3, 10, forget=0.02, retain=0.99),  # the same at a larger rate
        tune.Tried(1e-3, 20, forget=0.00, retain=0.90),  # forgets best, keeps too little
    ]
    assert tune.choose(tried) == tried[1]
