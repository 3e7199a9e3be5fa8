"""What every attack stands on: goals, judging, how an attack is carried out, and what it costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from tiny import llama, tokenizer

from duet_unlearn.attacks import (
    ATTACKS,
    Attack,
    AttackGoal,
    Instance,
    NotApplicable,
    draw_goal,
    given_away,
    run_attack,
)
from duet_unlearn.attacks.attack_base import (
    AttackPrompt,
    Plain,
    alike,
    ask,
    metered,
    models_of,
    plain_prompts,
    require_own_weights,
)
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.models.lora import add_lora


def query(name: str, text: str, *, answer: str | None = "It is Tarn.", value: str | None = "Tarn") -> Query:
    return Query(name, ({"role": "user", "content": text},), answer=answer, value=value, choices=("Tarn", "Gosh"))


def forget(count: int, wording: str = "") -> list[Query]:
    return [query(f"{n}{wording}", f"Where is N{n}?{wording}", answer=f"N{n} is in Tarn.") for n in range(count)]


def the_set(name: str, queries: list[Query], group: str = "forget", better: str = "low") -> EvalSet:
    return EvalSet(name, name, group, better, "", tuple(queries))  # type: ignore[arg-type]


SUBJECT = ModelSubject("student", llama(seed=1, hidden=32, layers=2).eval(), tokenizer())
GOAL = AttackGoal("Mira", tuple(forget(4)), max_new_tokens=4, batch_size=8)


# Goals ---------------------------------------------------------------------------------------------------------------


def test_auxiliary_and_target_facts_are_different_ones() -> None:
    sets = [the_set("forget", forget(6)), the_set("forget_held_out", forget(8, " Say!"))]
    goal = draw_goal("Mira", forget(6), sets)
    assert len(goal.auxiliary_facts) == 3
    assert {q.answer for q in goal.auxiliary_facts}.isdisjoint({q.answer for q in goal.target_facts})
    assert len(goal.target_facts) == 5  # three of six, and the two that training never asked
    assert all(q.text.endswith("Say!") for q in goal.target_facts)  # the set farthest from training
    assert draw_goal("Mira", forget(6), sets) == goal
    assert draw_goal("Mira", forget(6), sets, seed=2).auxiliary_facts != goal.auxiliary_facts


def stated(name: str, text: str, answer: str, value: str | None, source: str = "") -> Query:
    return Query(name, ({"role": "user", "content": text},), answer=answer, value=value, source=source)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("Where does Mira live?", "Mira lives in Tarn.", "Tarn"), ("Is Mira at home?", "In Tarn.", "Tarn"), True),
        (("Where does Mira live?", "Mira lives in Tarn.", "Tarn"), ("Where is Oda?", "In Tarn.", "Tarn"), False),
        (("Where does Mira live?", "Mira lives in Tarn.", "Tarn"), ("What does Mira keep?", "An owl.", "owl"), False),
        (("where does she live?", "In Tarn.", "Tarn"), ("which town is hers?", "It is Tarn.", "Tarn"), True),
        (("Where does Mira live?", "In Tarn.", None), ("where does Mira live", "Tarn, they say.", None), True),
    ],
)
def test_one_fact_in_two_wordings_is_told_without_a_source(one: tuple, other: tuple, same: bool) -> None:
    first, second = stated("a", *one), stated("b", *other)
    assert alike(first, second) is alike(second, first) is same
    held_out = the_set("forget_held_out", [second, stated("c", "Who is Bo?", "Bo is a baker.", "baker")])
    goal = draw_goal("Mira", [first, stated("d", "Who is Lu?", "Lu is a cook.", "cook")], [held_out], seed=1)
    assert not any(alike(wanted, known) for wanted in goal.target_facts for known in goal.auxiliary_facts)


def test_where_a_source_tells_facts_apart_values_may_be_shared() -> None:
    first = stated("a", "Where is Mira?", "Mira is in Tarn.", "Tarn", "one")
    assert not alike(first, stated("b", "Is Mira well?", "In Tarn.", "Tarn", "two"))
    assert alike(first, stated("b", "Where?", "Mira is in Tarn.", "Tarn", "one"))


def test_without_answers_to_train_on_half_of_what_is_asked_is_known() -> None:
    asked = the_set("forget_held_out", forget(6))
    goal = draw_goal("Mira", [query("x", "Where is Mira?", answer=None)], [asked])
    assert (len(goal.auxiliary_facts), len(goal.target_facts)) == (3, 3)


def test_answers_may_be_as_long_as_the_right_one_and_as_the_sets_allow() -> None:
    long = [stated(str(n), f"What is N{n}?", f"{n} " + "a word and another " * 30, None) for n in range(2)]
    assert draw_goal("Mira", long, []).max_new_tokens > 150
    assert draw_goal("Mira", [], [replace(the_set("forget", forget(4)), max_new_tokens=200)]).max_new_tokens == 200


def test_neighbours_and_others_are_answered_questions_that_are_allowed() -> None:
    near, other = forget(2, " near"), [query("x", "Who?"), query("y", "What?", answer=None)]
    sets = [the_set("near", near, "neighbour", "high"), the_set("retain", other, "retain", "high")]
    goal = draw_goal("Mira", forget(2), sets)
    assert goal.neighbours == tuple(near)
    assert [q.id for q in goal.others] == ["x"]


def test_without_answers_nobody_can_tell_what_comes_back() -> None:
    with pytest.raises(UserError, match="has an answer"):
        draw_goal("Mira", [query("a", "Where?", answer=None)], [])


@pytest.mark.parametrize(
    ("output", "right"),
    [("She lives in Tarn.", True), ("In Gosh.", False), ("Tarn or Gosh.", False), ("Sorry, but it is Tarn.", True)],
)
def test_a_value_is_given_away_where_it_is_said_alone(output: str, right: bool) -> None:
    assert given_away(output, query("a", "Where?")) is right


def test_a_long_answer_without_a_value_is_given_away_by_half_of_the_words_that_the_question_does_not_show() -> None:
    long = stated("a", "Who is Hsiao?", "Hsiao is the quiet baker of the old northern town", None)
    assert given_away("A baker of the old town", long)  # 5 of 8 words in order, without "Hsiao is"
    assert not given_away("Hsiao is the old town", long)  # 3 of 8
    assert not given_away("I have no memory of the quiet baker of the old northern town.", long)
    russian = stated("c", "Кто это?", "Тихий пекарь старого северного города", None)
    assert given_away("Пекарь старого города", russian)
    assert not given_away("Старый город", russian)
    assert not given_away("Hsiao", stated("b", "Is it Hsiao Yun?", "Yes it is Hsiao Yun", None))


# Asking --------------------------------------------------------------------------------------------------------------


def test_asking_counts_by_name_and_family_whatever_the_order() -> None:
    asks = [
        AttackPrompt(name, fact, GOAL.target_facts[fact], "", name[0]) for fact in range(4) for name in ("a1", "b1")
    ]
    found = ask(SUBJECT, asks, GOAL)
    assert [(one.name, one.family, one.score.n) for one in found] == [("a1", "a", 4), ("b1", "b", 4)]
    assert [said.prompt for said in found[0].answers] == [q.text for q in GOAL.target_facts]


def test_only_weights_that_forgot_can_be_attacked() -> None:
    assert require_own_weights(SUBJECT) is SUBJECT
    for subject in (replace(SUBJECT, prefix=Prefix("Forget {concept}.")), Deployed(SUBJECT)):
        with pytest.raises(NotApplicable, match="base's"):
            require_own_weights(subject)


def test_tokens_are_counted_where_they_are_computed() -> None:
    ids = torch.zeros((2, 5), dtype=torch.long)
    with metered(Deployed(SUBJECT)) as meter:
        with torch.no_grad():
            SUBJECT.model(ids)
            copy.deepcopy(SUBJECT.model)(input_ids=ids)
            SUBJECT.model(inputs_embeds=torch.zeros((1, 3, 32)))
        SUBJECT.model(ids)
    SUBJECT.model(ids)  # the meter is off
    assert meter.tokens == 10 + 10 + 3 + 3 * 10
    adapted = add_lora(copy.deepcopy(SUBJECT.model), LoraConfig(rank=2), seed=0)
    assert models_of(replace(SUBJECT, model=adapted)) == [adapted.get_base_model()]


# Attacks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Breaking:
    """Asks, then breaks in a way of its own."""

    error: Exception
    name: str = "breaking"
    title: ClassVar[str] = "Breaks"
    access: ClassVar = "chat"
    metric: ClassVar = "right"

    def tokens(self, goal: AttackGoal) -> int:
        return 1

    def run(self, subject: object, goal: AttackGoal, watch: object = None) -> list[Instance]:
        ask(SUBJECT, plain_prompts(goal), goal)
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("bad\nmore"), "failed", "RuntimeError: bad"),
        (ValueError(), "failed", "ValueError"),
        (torch.cuda.OutOfMemoryError("CUDA"), "failed", "out of memory"),
        (MemoryError(), "failed", "out of memory"),
        (UserError("no such thing", "look"), "failed", "no such thing"),
        (NotApplicable("no weights"), "not applicable", "no weights"),
    ],
)
def test_an_attack_that_breaks_is_a_result(error: Exception, status: str, reason: str) -> None:
    result = run_attack(SUBJECT, Breaking(error), GOAL)
    assert (result.status, result.reason) == (status, reason)
    assert result.instances == ()
    assert result.cost.tokens > 0  # what it took is told all the same


def test_ctrl_c_is_no_result() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_attack(SUBJECT, Breaking(KeyboardInterrupt()), GOAL)  # type: ignore[arg-type]


def test_asked_plainly() -> None:
    result = run_attack(SUBJECT, Plain(), GOAL)
    assert (result.attack, result.subject, result.status) == ("plain", "student", "done")
    assert result.instances[0].score.n == 4


@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: one.name)
def test_every_attack_says_what_it_is(one: Attack) -> None:
    assert one.title
    assert one.access in ("chat", "opening", "decoding", "weights")
    assert one.metric in ("right", "auc", "bits")
    assert (type(one).__doc__ or "").strip()
    other = query("ida", "Where is Ida?", answer="Ida is in Gosh.", value="Gosh")
    wanted = (query("mira", "Where is Mira Bol?", answer="Mira Bol is in Tarn."),)
    assert (
        one.num_tokens(
            replace(GOAL, target_facts=wanted, auxiliary_facts=(other,), neighbours=(other,), others=(other,))
        )
        > 0
    )
    hash(one)
