from __future__ import annotations

import pytest

from duet_unlearn.errors import UserError, nearest
from duet_unlearn.events import Event, ignore


def test_a_user_error_is_two_lines() -> None:
    error = UserError("no such file", "check the path")
    assert (error.message, error.hint) == ("no such file", "check the path")
    assert str(error) == "no such file\ncheck the path"


@pytest.mark.parametrize(
    ("name", "expected"), [("epoch", "epochs"), ("bacth_size", "batch_size"), ("zzz", None), ("", None)]
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, (option for option in ("epochs", "batch_size", "rate"))) == expected


def test_nobody_needs_to_watch() -> None:
    assert ignore(Event("train", 1, 2, "loss 0.1")) is None
