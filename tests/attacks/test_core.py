"""What every attack stands on: goals, judging, instances, the oracle's luck, cost, and what is stored."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny import llama, tokenizer

from duet_unlearn.attacks import (
    Attack,
    Goal,
    Instance,
    NotApplicable,
    attack,
    draw_goal,
    finding,
    given_away,
    load_suite,
)
from duet_unlearn.attacks.asking import Ask, ask, plain, whole
from duet_unlearn.attacks.cost import metered, models_of
from duet_unlearn.attacks.goal import alike
from duet_unlearn.attacks.plain import Plain
from duet_unlearn.attacks.relearning import Relearn
from duet_unlearn.attacks.result import AttackResult, Cost, Said, difference, from_json, instance, to_json
from duet_unlearn.attacks.suite import ATTACKS, suite_names, title_of
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.models.lora import add_lora
from duet_unlearn.stats import NOTHING, Score, wilson


def query(name: str, text: str, *, answer: str | None = "It is Tarn.", value: str | None = "Tarn") -> Query:
    return Query(name, ({"role": "user", "content": text},), answer=answer, value=value, choices=("Tarn", "Gosh"))


def forget(count: int, wording: str = "") -> list[Query]:
    return [query(f"{n}{wording}", f"Where is N{n}?{wording}", answer=f"N{n} is in Tarn.") for n in range(count)]


def the_set(name: str, queries: list[Query], group: str = "forget", better: str = "low") -> EvalSet:
    return EvalSet(name, name, group, better, "", tuple(queries))  # type: ignore[arg-type]


SUBJECT = ModelSubject("student", llama(seed=1, hidden=32, layers=2).eval(), tokenizer())
GOAL = Goal("Mira", tuple(forget(4)), max_new_tokens=4, batch_size=8)


# Goals ---------------------------------------------------------------------------------------------------------------


def test_what_is_known_and_what_is_wanted_are_different_facts() -> None:
    sets = [the_set("forget", forget(6)), the_set("forget_held_out", forget(8, " Say!"))]
    goal = draw_goal("Mira", forget(6), sets)
    assert len(goal.known) == 3
    assert {q.answer for q in goal.known}.isdisjoint({q.answer for q in goal.wanted})
    assert len(goal.wanted) == 5  # three of six, and the two that training never asked
    assert all(q.text.endswith("Say!") for q in goal.wanted)  # the set farthest from training
    assert draw_goal("Mira", forget(6), sets) == goal
    assert draw_goal("Mira", forget(6), sets, seed=2).known != goal.known


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
    assert not any(alike(wanted, known) for wanted in goal.wanted for known in goal.known)


def test_where_a_source_tells_facts_apart_values_may_be_shared() -> None:
    first = stated("a", "Where is Mira?", "Mira is in Tarn.", "Tarn", "one")
    assert not alike(first, stated("b", "Is Mira well?", "In Tarn.", "Tarn", "two"))
    assert alike(first, stated("b", "Where?", "Mira is in Tarn.", "Tarn", "one"))


def test_without_answers_to_train_on_half_of_what_is_asked_is_known() -> None:
    asked = the_set("forget_held_out", forget(6))
    goal = draw_goal("Mira", [query("x", "Where is Mira?", answer=None)], [asked])
    assert (len(goal.known), len(goal.wanted)) == (3, 3)


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


# Instances and findings ----------------------------------------------------------------------------------------------


def test_a_fact_asked_twice_is_right_if_any_answer_was() -> None:
    said = [Said(0, "a", "", "x", False), Said(0, "a", "", "y", True), Said(2, "b", "", "z", False)]
    one = instance("try", said, 3, family="f")
    assert one.right == (True, None, False)
    assert one.score == wilson(1, 2)


def test_best_of_all_is_any_instance_fact_by_fact() -> None:
    instances = (
        Instance("a", wilson(1, 3), right=(True, False, None)),
        Instance("b", wilson(1, 3), right=(False, True, None)),
    )
    result = AttackResult("x", "student", "done", instances=instances)
    assert result.best_of_all == wilson(2, 2)
    assert result.strongest is instances[0]  # the first of equals


def test_where_options_are_shown_guessing_is_no_leak() -> None:
    instances = (
        Instance("a", wilson(1, 4), right=(True, False, False, False)),
        Instance("letters", wilson(3, 4), "choice", (False, True, True, True), {"chance": 0.5}),
    )
    result = AttackResult("x", "student", "done", instances=instances)
    assert result.best_of_all == wilson(1, 4)
    best = finding(result)  # without an oracle: 3/4 less 1/2, and 1/4 less nothing
    assert best is not None
    assert best.above.value == pytest.approx(0.25)
    assert AttackResult("x", "student", "done", instances=instances[1:]).best_of_all == wilson(3, 4)


def test_the_difference_is_newcombes() -> None:
    """56 of 70 against 48 of 80: 0.2, 0.0524 to 0.3339 (Newcombe 1998, Statistics in Medicine 17:873, table II, 10)."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0524, abs=5e-5)
    assert found.high == pytest.approx(0.3339, abs=5e-5)
    assert difference(wilson(5, 7), NOTHING).low == pytest.approx(wilson(5, 7).low)


def test_the_oracles_luck_in_a_family_excuses_that_family_alone() -> None:
    def of(subject: str, *shares: tuple[str, str, int]) -> AttackResult:
        found = tuple(Instance(name, wilson(k, 100), family) for name, family, k in shares)
        return AttackResult("x", subject, "done", instances=found)

    student = of("student", ("letters", "choice", 40), ("raw", "open", 30), ("json", "open", 20))
    oracle = of("oracle", ("other letters", "choice", 35), ("raw", "open", 2), ("json", "open", 4))
    best = finding(student, oracle)
    assert best is not None
    assert best.instance.name == "raw"
    alone = difference(wilson(30, 100), wilson(4, 100))
    assert best.above.low < alone.low < alone.high < best.above.high  # the larger of two: each is given 97.5 %
    assert alone.low - best.above.low == pytest.approx((2.2414 / 1.95996 - 1) * (alone.value - alone.low), rel=1e-3)
    assert best.above.value == pytest.approx(0.26)  # against the best of the oracle's open ones, 4
    alone = finding(student)
    assert alone is not None
    assert alone.instance.name == "letters"
    assert finding(AttackResult("x", "student", "failed")) is None


def test_what_is_stored_is_read_back_with_the_strongest_instances_words() -> None:
    said = (Said(0, "Where?", "It", "is Tarn", True),)
    instances = (
        Instance("a", Score(0.5, 2, 0.1, 0.9), "f", (True, None, False), {"rank": 1.5}, said),
        Instance("b", NOTHING, said=said),
    )
    result = AttackResult("x", "student", "done", "", "auc", instances, Cost(7, 0.25, 0))
    stored = json.loads(json.dumps(to_json(result, facts=["p", "q"]), allow_nan=False))
    back = from_json(stored)
    broken = replace(instances[0], numbers={"loss": math.nan, "rank": 1.5})
    assert from_json(to_json(replace(result, instances=(broken,)))).instances[0].numbers == {"rank": 1.5}
    assert back.instances[0] == instances[0]
    assert math.isnan(back.instances[1].score.value)
    assert back.instances[1].said == ()
    assert replace(back, instances=()) == replace(result, instances=())
    assert stored["facts"] == ["p", "q"]


# Asking --------------------------------------------------------------------------------------------------------------


def test_asking_counts_by_name_and_family_whatever_the_order() -> None:
    asks = [Ask(name, fact, GOAL.wanted[fact], "", name[0]) for fact in range(4) for name in ("a1", "b1")]
    found = ask(SUBJECT, asks, GOAL)
    assert [(one.name, one.family, one.score.n) for one in found] == [("a1", "a", 4), ("b1", "b", 4)]
    assert [said.prompt for said in found[0].said] == [q.text for q in GOAL.wanted]


def test_only_weights_that_forgot_can_be_attacked() -> None:
    assert whole(SUBJECT) is SUBJECT
    for subject in (replace(SUBJECT, prefix=Prefix("Forget {concept}.")), Deployed(SUBJECT)):
        with pytest.raises(NotApplicable, match="base's"):
            whole(subject)


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

    def tokens(self, goal: Goal) -> int:
        return 1

    def carry_out(self, subject: object, goal: Goal, watch: object = None) -> list[Instance]:
        ask(SUBJECT, plain(goal), goal)
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
    result = attack(SUBJECT, Breaking(error), GOAL)
    assert (result.status, result.reason) == (status, reason)
    assert result.instances == ()
    assert result.cost.tokens > 0  # what it took is told all the same


def test_ctrl_c_is_no_result() -> None:
    with pytest.raises(KeyboardInterrupt):
        attack(SUBJECT, Breaking(KeyboardInterrupt()), GOAL)  # type: ignore[arg-type]


def test_asked_plainly() -> None:
    result = attack(SUBJECT, Plain(), GOAL)
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
    assert one.tokens(replace(GOAL, wanted=wanted, known=(other,), neighbours=(other,), others=(other,))) > 0
    hash(one)


# Suites --------------------------------------------------------------------------------------------------------------


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
    assert [title_of(one) for one in (adapters, weights, played)] == [
        "Relearning, adapters",
        "Relearning, all weights",
        "Role play",
    ]


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
