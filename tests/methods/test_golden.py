"""The first losses of every trained method are those that are written down: no change of the code changes a method
unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forgetting import cases
from golden import CURVES, curve

from duet_unlearn.methods.base import Method

TOLERANCE = 4 * 5.4e-5
"""Four times the largest difference between eleven settings of vector units, BLAS and threads, relative to the loss
(`python tests/methods/golden.py --spread`): 5.4e-5 of wga with retain = kl, then 4.6e-5 of duet with retain_loss = kl;
all others 2.1e-5 and less."""
CASES = cases()
WRITTEN = json.loads(CURVES.read_text(encoding="utf-8"))


def test_every_method_is_written_down() -> None:
    assert set(WRITTEN) == set(CASES), "run `python tests/methods/golden.py`"


@pytest.mark.parametrize("name", sorted(CASES.keys() & WRITTEN.keys()))
def test_golden(name: str, tmp_path: Path) -> None:
    method: Method = CASES[name]
    assert curve(method, tmp_path) == pytest.approx(WRITTEN[name], rel=TOLERANCE)
