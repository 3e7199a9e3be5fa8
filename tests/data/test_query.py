from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from duet_unlearn.data.query import Query


def test_the_text_is_what_the_user_says_last() -> None:
    turns = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mira."})
    assert Query("a", (*turns, {"role": "user", "content": "Where?"})).text == "Where?"


def test_a_query_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Query("a", ({"role": "user", "content": "Where?"},)).id = "b"  # type: ignore[misc]
