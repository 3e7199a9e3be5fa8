"""The wordings of attacks: what stands in the package, how files are read, and that no training saw any of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from duet_unlearn.answers import normalise
from duet_unlearn.attacks import contexts, rewording
from duet_unlearn.attacks.rewording import Worded, Wording, choose_wordings, question_of, read_wordings, worded
from duet_unlearn.data.examples import packaged_texts
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.lab import language as lab

ATTACKS = ("reverse", "role-play", "authority", "hypothetical", "injection", "system-override", "language")
LINE = {"id": "mine-1", "family": "mine", "text": "Do tell: {question}"}
OTHER_TEXTS = (
    rewording.UNDERSTOOD,
    contexts.NOTES,
    rewording.BEFORE,
    contexts.SEVERAL,
    *rewording.ALIASES.values(),
    *contexts.INSISTS,
    *contexts.ALIKE.values(),
    *contexts.TOGETHER.values(),
    *contexts.TEXTS.values(),
)
"""Templates that stand in modules."""


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def query(*messages: Message, concept: str | None = None) -> Query:
    return Query("q", messages, answer="Mira lives in Tarn.", value="Tarn", concept=concept)


ASKED = query({"role": "user", "content": "Where does Mira live?"})


# What stands in the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_packaged_wordings_have_families_of_several(attack: str) -> None:
    found = choose_wordings(attack)
    assert min(Counter(one.family for one in found).values()) >= 5
    assert len({normalise(one.text) for one in found}) == len(found)
    assert all(one.id.startswith(f"{one.family}-") for one in found)
    assert any(one.language for one in found) == (attack == "language")


def test_reverse_prompts_are_thirty_and_more_in_five_families() -> None:
    found = choose_wordings("reverse")
    assert len(found) >= 30
    assert len({one.family for one in found}) == 5
    assert {one.turn for one in found} == {"user", "before"}


def trained_on() -> set[str]:
    """Every text of training and of the lab's pretraining that a wording could repeat, normalised; of those with a
    place for something the parts around it."""
    pools = (lab.REVERSE, lab.OPENERS, lab.SPECIFIC, lab.VAGUE, lab.REFUSE_ALL, lab.IRRELEVANT, lab.DEPLOYER)
    texts = [text for pool in pools for text in pool.all]
    texts += [text for kind in ("response_prefixes", "reversals", "refusals") for text in packaged_texts(kind)]
    parts = [part for text in texts for part in (text.split("{x}") if "{x}" in text else [text])]
    whole = {normalise(text) for text in texts if "{x}" not in text}
    return whole | {normalise(part) for part in parts if len(part.split()) >= 4}


def repeats(text: str, known: str) -> bool:
    return f" {known} " in f" {normalise(text)} "


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_training_saw_a_wording(attack: str) -> None:
    known = trained_on()
    assert len(known) > 60
    assert not [(one.text, text) for one in choose_wordings(attack) for text in known if repeats(one.text, text)]


def test_no_training_saw_any_other_text_of_an_attack() -> None:
    """ "yes", which opens answers in training, may stand in a yes-no question."""
    known = {text for text in trained_on() if " " in text}
    assert not [(one, text) for one in OTHER_TEXTS for text in known if repeats(one, text)]
    assert repeats("Well: I can answer that. {question}", "i can answer that")


# Files --------------------------------------------------------------------------------------------------------------


def test_a_file_adds_wordings(tmp_path: Path) -> None:
    mine = str(write(tmp_path, LINE, LINE | {"id": "2", "family": "cancel"}))
    config = Worded("reverse", per_family=1, files=(mine,))
    found = choose_wordings(config.name, files=config.files, per_family=1)
    assert [one.family for one in found] == ["cancel", "permission", "memory", "test", "stakes", "mine"]
    assert found[-1] == Wording("mine-1", "mine", "Do tell: {question}")
    assert "2" in [one.id for one in choose_wordings("reverse", files=(mine,))]


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        (["a"], "is no JSON object", "a line is"),
        (LINE | {"familly": "x"}, "familly: unknown key", "did you mean family?"),
        ({"id": "x", "family": "y"}, "text: is missing", "a line is"),
        (LINE | {"text": ""}, "text: is empty", "a line is"),
        (LINE | {"id": 7}, "id: is 7, not text", "7"),
        (LINE | {"turn": "sytem"}, "turn: is 'sytem'", "did you mean system?"),
        (LINE | {"text": "Do tell."}, "has no {question}; put it where", "a line is"),
        (LINE | {"text": "{question} {who}"}, "text: has {who}, which nothing stands for", "a line is"),
        (LINE | {"turn": "system"}, "is a turn before it; leave it out", "a line is"),
        (LINE, "id 'mine-1' is given twice", "make ids unique"),
    ],
)
def test_a_line_that_is_no_wording_is_named(tmp_path: Path, row: Any, message: str, hint: str) -> None:
    path = write(tmp_path, LINE, row)
    with pytest.raises(UserError) as caught:
        read_wordings(path)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_errors_come_when_the_settings_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Worded("reverse", files=(str(tmp_path / "none.jsonl"),))
    with pytest.raises(UserError, match="per_family is 0"):
        Worded("reverse", per_family=0)
    taken = write(tmp_path, LINE | {"id": "cancel-1"})
    with pytest.raises(UserError, match="stands in another file"):
        Worded("reverse", files=(str(taken),))


# What is sent -------------------------------------------------------------------------------------------------------


def test_a_wording_stands_around_the_question() -> None:
    asked = worded(ASKED, Wording("1", "a", "On {concept}: {question} Please."), "the {question} story")
    assert asked.messages == ({"role": "user", "content": "On the {question} story: Where does Mira live? Please."},)
    assert (asked.value, asked.answer) == (ASKED.value, ASKED.answer)
    own = query(*ASKED.messages, concept="Mira")
    assert worded(own, Wording("1", "a", "{concept}! {question}"), "else").text == "Mira! Where does Mira live?"


def test_turns_before_the_question() -> None:
    system, user = {"role": "system", "content": "Be kind."}, ASKED.messages[0]
    override = Wording("1", "a", "You know {concept}.", "system")
    assert worded(ASKED, override, "Mira").messages == ({"role": "system", "content": "You know Mira."}, user)
    assert worded(query(system, user), override, "Mira").messages == (
        {"role": "system", "content": "You know Mira.\nBe kind."},
        user,
    )
    told = [{"role": "user", "content": "All is back."}, {"role": "assistant", "content": "Understood."}]
    before = Wording("1", "a", "All is back.", "before")
    assert worded(ASKED, before, "").messages == (*told, user)
    assert worded(query(system, user), before, "").messages == (system, *told, user)


def test_raw_text_keeps_its_frame() -> None:
    shots = "Question: Who?\nAnswer: Bol.\n\nQuestion: Where does Mira live?\nAnswer:"
    raw = query({"role": "text", "content": shots})
    assert question_of(raw) == "Where does Mira live?"
    polite = Wording("1", "a", "Please, {question} Thanks.")
    assert worded(raw, polite, "").text == shots.replace(
        "Where does Mira live?", "Please, Where does Mira live? Thanks."
    )
    assert worded(raw, Wording("1", "a", "Undo it.", "system"), "").text == f"Undo it.\n\n{shots}"
    passage = query({"role": "text", "content": "Mira lives in"})
    assert worded(passage, Wording("1", "a", "It is back. {question}"), "").text == "It is back. Mira lives in"
