"""Suites of attacks: which attacks a file names, with which settings, and how it is told what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from duet_unlearn.attacks import (
    load_suite,
    suite_names,
)
from duet_unlearn.attacks.attack_base import (
    Plain,
)
from duet_unlearn.attacks.fine_tuning import Relearn
from duet_unlearn.attacks.token_access import Prefill
from duet_unlearn.errors import UserError


@pytest.mark.parametrize("name", suite_names())
def test_packaged_suites_are_read(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.attacks[0] == Plain()


def test_only_some_attacks_also_such_as_the_suite_lacks() -> None:
    assert [one.name for one in load_suite("quick", ["plain"]).attacks] == ["plain"]


def test_an_entry_stands_over_its_attacks_own_defaults(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "attacks: [{name: relearn-lora, steps: [3]}, {name: relearn}, {name: role-play}]"
    )
    adapters, weights, played = load_suite(str(tmp_path / "own.yaml")).attacks
    assert adapters == Relearn("relearn-lora", rates=(3e-3, 1e-2), steps=(3,), rank=8)
    assert weights == Relearn()
    assert [one.title for one in (adapters, weights, played)] == [
        "Relearning, adapters",
        "Relearning, all weights",
        "Role play",
    ]


def test_the_old_name_of_a_setting_is_read_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And stored under its old name, so that results of an earlier version are found again."""
    (tmp_path / "own.yaml").write_text("attacks: [{name: prefill, openers: 2}]")
    with caplog.at_level(logging.WARNING, logger="duet_unlearn"):
        (one,) = load_suite(str(tmp_path / "own.yaml")).attacks
    assert one == Prefill(response_prefixes=2)
    assert "own.yaml:1: attacks.0.openers is called response_prefixes now" in caplog.text
    assert one.stored_settings() == {"name": "prefill", "openers": 2, "words": (1, 2, None)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attacks: [{name: plian}]", "unknown attack 'plian'"),
        ("attacks: [{name: plain, loud: true}]", "attacks.0.loud: unknown key|loud: unknown key"),
        ("attacks: []", "missing or no list"),
        ("attacks: [plain]", "has no name"),
        ("attack: [{name: plain}]", "unknown key"),
        ("attacks: [{name: plain}, {name: plain}]", "listed twice"),
        ("- plain", "is no attack suite"),
    ],
)
def test_a_bad_suite_is_told_by_its_place(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_suite(str(tmp_path / "own.yaml"))
    assert "own.yaml" in error.value.message


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean quick"):
        load_suite("quik")
    with pytest.raises(UserError, match="did you mean plain"):
        load_suite("quick", ["plan"])
