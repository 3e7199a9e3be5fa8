"""What is optimised behind a question: the slot, vectors in tokens' places, soft prompts, and GCG's suffixes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import tiny
import torch
from planted import GOAL, SIGN, fact, locked
from transformers import GenerationConfig, PreTrainedTokenizerFast
from whitebox import Lab, gpt2, query, state, tiny_subject, with_adapter

from duet_unlearn.attacks import Attack, NotApplicable, finding, run_attack
from duet_unlearn.attacks.attack_base import AttackPrompt, ask, metered, plain_prompts
from duet_unlearn.attacks.optimised_prompts import (
    Gcg,
    SoftPrompt,
    Suffix,
    SuffixSearch,
    answer_loss,
    answers_behind,
    behind_question,
    embedded,
    open_to_gradients,
    readable_ids,
    slot_of,
    text_of,
    usable_ids,
    vector_ids,
    vectors,
)
from duet_unlearn.data.prompts import PLAIN_TEMPLATE, Prefix, render, render_answer
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.teacher.decoding import greedy

ROWS = [[2, 3, 50 + number, *range(60, 60 + number), 4] for number in range(1, 5)]
QUICK = SoftPrompt(lengths=(2,), steps=30, points=3, batch=4)


# The slot ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [tiny.TEMPLATE, PLAIN_TEMPLATE], ids=["chat", "plain"])
def test_a_slot_is_where_text_behind_the_question_comes_to_stand(template: str) -> None:
    tokenizer = tiny.tokenizer(template)
    usable = usable_ids(tokenizer)
    asked = replace(
        query("Ada", "Tarn"), messages=({"role": "system", "content": "Hi"}, {"role": "user", "content": "Where?"})
    )
    slot = slot_of(tokenizer, asked, usable, length=3)
    for ids in ([usable[7]], usable[20:24]):
        assert [*slot.head, *ids, *slot.tail] == render(
            tokenizer, behind_question(asked, text_of(tokenizer, ids)).messages
        )
    assert [*slot.head, *slot.tail] == render(tokenizer, asked.messages)
    whole, start = render_answer(tokenizer, asked.messages, str(asked.answer))
    assert slot.row([])[0] == whole[: start + 3]
    assert slot.row([5, 6])[1] == start + 2


def test_what_the_tokeniser_joins_with_every_question_has_no_slot() -> None:
    tokenizer = tiny.tokenizer()
    joined = [tokenizer.convert_tokens_to_ids("ve")]
    asked = replace(query("Ada", "Tarn"), messages=({"role": "user", "content": "Where do you li"},))
    assert text_of(tokenizer, joined) == "ve"
    assert slot_of(tokenizer, asked, [*joined, *usable_ids(tokenizer)], length=0).head  # the next token will do
    with pytest.raises(NotApplicable, match="joins"):
        slot_of(tokenizer, asked, joined, length=0)


def special(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The borders of turns too, which are added tokens that have no name of their own."""
    found = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert found > {*tokenizer.all_special_ids}
    return found


def test_usable_tokens_read_back_as_themselves_and_none_is_of_a_value() -> None:
    tokenizer = tiny.tokenizer()
    usable, fewer = usable_ids(tokenizer), usable_ids(tokenizer, without=["Tarn", "#!"])
    assert not set(usable) & special(tokenizer)
    for token in usable:
        text = text_of(tokenizer, [token])
        assert text.isascii()
        assert text.isprintable()
        assert tokenizer(f"?{text}", add_special_tokens=False).input_ids[1:] == [token]
    gone = {text_of(tokenizer, [token]) for token in set(usable) - set(fewer)}
    assert {"#", "!", " Tarn"} <= gone
    assert len(fewer) < len(usable) - 2


def test_tokens_are_read_back_once_a_tokeniser_and_as_one_by_one() -> None:
    tokenizer = tiny.tokenizer()
    slow = []
    for token in range(len(tokenizer)):
        text = text_of(tokenizer, [token])
        back = tokenizer(f"?{text}", add_special_tokens=False).input_ids
        plain = text.isascii() and text.isprintable() and text.strip()
        if plain and back[1:] == [token] and token not in special(tokenizer):
            slow.append(token)
    before = readable_ids.cache_info().misses
    assert usable_ids(tokenizer) == slow == usable_ids(tokenizer)
    assert readable_ids.cache_info().misses == before + 1
    assert usable_ids(tokenizer, most=7) == slow[:7]
    tokenizer.add_tokens(["<<>>"])
    assert usable_ids(tokenizer) == [*slow, len(tokenizer) - 1]


def test_in_raw_text_the_slot_is_in_front_of_the_word_that_asks_for_the_answer() -> None:
    tokenizer = tiny.tokenizer()
    text = "Question: A?\nAnswer: B\n\nQuestion: Where is Ada?\nAnswer:"
    asked = replace(query("Ada", "Tarn"), messages=({"role": "text", "content": text},))
    assert behind_question(asked, " #!").text == text.replace("Ada?", "Ada? #!")
    slot = slot_of(tokenizer, asked, usable_ids(tokenizer), length=2)
    assert tokenizer.decode(slot.tail) == "\nAnswer:"
    assert tokenizer.decode(slot.head).endswith("Where is Ada?")
    open_end = replace(asked, messages=({"role": "text", "content": "Ada lives in"},))
    assert behind_question(open_end, " #!").text == "Ada lives in #!"


@torch.no_grad()
def test_the_loss_is_that_of_transformers() -> None:
    model, tokenizer = tiny.llama(layers=2), tiny.tokenizer()
    rows = [slot_of(tokenizer, fact(name), usable_ids(tokenizer), length=9).row([7, 8, 9]) for name in ("Ada", "Gil")]
    means = [
        model(
            input_ids=torch.tensor([ids]),
            labels=torch.tensor([[-100] * start + ids[start:]]),
        ).loss.item()
        for ids, start in rows
    ]
    assert answer_loss(model, rows, padding_id=0).item() == pytest.approx(sum(means) / 2, rel=1e-5)


# Vectors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: tiny.llama(layers=2), gpt2], ids=["llama", "gpt2"])
@torch.no_grad()
def test_vectors_that_are_tokens_say_what_the_tokens_say(make) -> None:
    model, tokens = make(), [40, 41, 42]
    settings = {"eos_ids": frozenset({1}), "padding_id": 0, "max_new_tokens": 5, "batch_size": 3}
    expected = greedy(model, [[*row[:3], *tokens, *row[3:]] for row in ROWS], **settings)
    rows = [[*row[:3], *vector_ids(model, 3), *row[3:]] for row in ROWS]
    with vectors(model, embedded(model, tokens)):
        assert greedy(model, rows, **settings) == expected
        assert greedy(model, ROWS, **settings) == greedy(model, list(map(list, ROWS)), **settings)
    assert not model.get_input_embeddings()._forward_hooks
    assert not model.get_input_embeddings()._forward_pre_hooks


def test_what_is_said_behind_vectors_is_what_transformers_says_from_embeddings() -> None:
    subject = tiny_subject()
    soft_LD = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    usable = usable_ids(subject.tokenizer)
    slots = [slot_of(subject.tokenizer, q, usable, length=0) for q in GOAL.target_facts]
    got = answers_behind(subject, slots, soft_LD, GOAL)
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=tiny.EOS, eos_token_id=tiny.EOS)
    for slot, text in zip(slots, got, strict=True):
        head_TD, tail_TD = (embedded(subject.model, ids) for ids in (slot.head, slot.tail))
        row_1TD = torch.cat([head_TD, soft_LD, tail_TD])[None]
        ids = subject.model.generate(  # type: ignore[operator]
            inputs_embeds=row_1TD,
            attention_mask=torch.ones(row_1TD.shape[:2], dtype=torch.long),
            generation_config=settings,
        )
        assert text == subject.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_gradients_reach_the_vectors_and_nothing_else() -> None:
    model = tiny.llama(layers=2)
    soft_LD = embedded(model, [7, 8]).requires_grad_()
    row = ([2, 3, *vector_ids(model, 2), 4, 9], 5)
    with vectors(model, soft_LD):
        (slope_LD,) = torch.autograd.grad(answer_loss(model, [row], padding_id=0), [soft_LD])
    for place, axis in ((0, 0), (1, 5)):
        step = torch.zeros(2, 16)
        step[place, axis] = 1e-3
        losses = []
        for moved_LD in (soft_LD + step, soft_LD - step):
            with vectors(model, moved_LD.detach()), torch.no_grad():
                losses.append(answer_loss(model, [row], padding_id=0).item())
        assert float(slope_LD[place, axis]) == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=0.02, abs=1e-3)
    assert all(p.grad is None for p in model.parameters())


# The attack ----------------------------------------------------------------------------------------------------------


def test_a_soft_prompt_opens_a_back_door() -> None:
    subject = locked()
    assert ask(subject, plain_prompts(GOAL), GOAL)[0].score.value == 0.0
    assert (
        ask(
            subject, [AttackPrompt("sign", n, behind_question(q, "!#")) for n, q in enumerate(GOAL.target_facts)], GOAL
        )[0].score.value
        == 1
    )
    result = run_attack(subject, QUICK, GOAL)
    assert [one.name for one in result.instances] == [f"2 vectors, {steps} steps" for steps in (10, 20, 30)]
    assert result.strongest is not None
    assert result.strongest.score.value >= 0.75  # trained on the other half of the names
    losses = [one.numbers["loss"] for one in result.instances]
    assert losses[-1] < losses[0]


def test_instances_are_told_by_their_restart_and_start_elsewhere() -> None:
    watched: list[tuple[int, int]] = []
    config = replace(QUICK, lengths=(1, 2), steps=4, points=2, restarts=2)
    found = config.run(locked(), GOAL, lambda done, total: watched.append((done, total)))
    assert [one.name for one in found] == [
        f"{vectors}, {step} steps, restart {r}"
        for vectors in ("1 vector", "2 vectors")
        for r in (1, 2)
        for step in (2, 4)
    ]
    assert found[0].numbers != found[2].numbers
    assert watched == [(step, 16) for step in range(1, 17)]
    assert [one.right for one in config.run(locked(), GOAL)] == [one.right for one in found]


def test_the_model_stays_as_it_was() -> None:
    subject = tiny_subject()
    subject.model.train().requires_grad_(True)
    subject.model.model.norm.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = state(subject.model)
    run_attack(subject, replace(QUICK, steps=2, points=1), GOAL)
    assert all(torch.equal(before[name], value) for name, value in state(subject.model).items())
    assert subject.model.training
    assert [n for n, p in subject.model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    assert all(p.grad is None for p in subject.model.parameters())


def test_adapters_are_merged_into_a_copy_whose_tokens_are_counted() -> None:
    subject = with_adapter()
    opened = open_to_gradients(subject)
    assert has_adapter(subject.model)
    assert not has_adapter(opened.model)
    rows = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        merged, apart = (one.model(input_ids=rows).logits for one in (opened, subject))
    # An adapter that is added first rounds otherwise than one computed apart, on each processor in its own way.
    torch.testing.assert_close(merged, apart, rtol=1e-5, atol=1e-4)
    result = run_attack(subject, replace(QUICK, steps=2, points=1), GOAL)
    assert result.status == "done"
    assert result.cost.tokens > 0


def test_embeddings_are_counted_as_tokens() -> None:
    model = tiny.llama()
    with metered(replace(tiny_subject(), model=model)) as meter:
        with torch.no_grad():
            model(inputs_embeds=torch.zeros(2, 5, 16))
        model(inputs_embeds=torch.zeros(1, 2, 16))
    assert meter.tokens == 10 + 3 * 2


def test_a_model_that_learnt_to_refuse_speaks_and_one_that_never_knew_does_not() -> None:
    goal = replace(Lab.goal(), target_facts=Lab.goal().target_facts[:16], max_new_tokens=10)
    config = SoftPrompt(lengths=(1,), steps=20, points=1)
    mine, theirs = (run_attack(Lab.subject(which), config, goal) for which in ("refusing", "oracle"))
    found = finding(mine, theirs)
    assert found is not None
    assert found.above.low > 0
    assert theirs.best_of_all.value <= 0.25


QUICK_GCG = Gcg(length=2, steps=5, candidates=16, top=16, questions=4, restarts=1)


# GCG ------------------------------------------------------------------------------------------------------------------


def search(subject: ModelSubject, config: Gcg = QUICK_GCG) -> SuffixSearch:
    usable = usable_ids(subject.tokenizer)
    slots = [slot_of(subject.tokenizer, q, usable, length=config.answer) for q in GOAL.auxiliary_facts]
    return SuffixSearch(subject, GOAL.auxiliary_facts[0], slots, usable, config)


def test_the_slope_is_the_loss_s_along_one_hot_coordinates() -> None:
    subject = tiny_subject()
    one = search(subject)
    ids, model = one.usable[3:5], subject.model
    slope_LU = one.gradient(ids, one.slots)
    assert slope_LU.shape == (2, len(one.usable))
    rows, step = [slot.row(vector_ids(model, 2)) for slot in one.slots], 1e-3
    for place, column in ((0, int(slope_LU[0].argmin())), (1, int(slope_LU[1].argmax())), (1, 40)):
        losses = []
        for sign in (1, -1):
            soft_LD = embedded(model, ids)
            soft_LD[place] += sign * step * embedded(model, [one.usable[column]])[0]
            with vectors(model, soft_LD), torch.no_grad():
                losses.append(answer_loss(model, rows, padding_id=0).item())
        numeric = (losses[0] - losses[1]) / (2 * step)
        assert float(slope_LU[place, column]) == pytest.approx(numeric, rel=0.02, abs=2e-3)


@pytest.mark.parametrize("count", [1, 5])
def test_losses_of_many_suffixes_are_those_of_each(count: int) -> None:
    subject = tiny_subject()
    one = search(subject)
    tried = [tuple(one.usable[start : start + 2]) for start in range(0, 7 * count, 7)]
    with torch.no_grad():
        expected = [answer_loss(subject.model, [s.row(ids) for s in one.slots], padding_id=0).item() for ids in tried]
    assert one.losses(tried, one.slots) == pytest.approx(expected, rel=1e-4)


def test_only_what_reads_back_as_itself_is_tried() -> None:
    subject = tiny_subject()
    one, tokenizer = search(subject), subject.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ve"]
    assert text_of(tokenizer, letters) == "ve"
    assert len(tokenizer("?ve", add_special_tokens=False).input_ids) == 2
    assert not one.reads_back(letters)
    marks = tuple(tokenizer("#!", add_special_tokens=False).input_ids)
    assert one.reads_back(marks)
    assert one.best([tuple(letters), marks], one.slots).ids == marks
    with pytest.raises(NotApplicable, match="reads back"):
        one.best([tuple(letters)], one.slots)


def test_swaps_change_one_token_each_to_one_that_the_slope_promises() -> None:
    one = search(tiny_subject(), replace(QUICK_GCG, top=5, candidates=40))
    ids = tuple(one.usable[3:5])
    best_LK = one.gradient(ids, one.slots).argsort(dim=-1)[:, :5].tolist()
    swaps = one.swaps(ids, one.slots, random.Random(0))
    assert 5 <= len(swaps) == len(set(swaps)) <= 10
    for swap in swaps:
        (place,) = [at for at in range(2) if swap[at] != ids[at]]
        assert swap[place] in {one.usable[column] for column in best_LK[place]}


def test_a_step_never_makes_it_worse_on_its_questions() -> None:
    one, draw = search(tiny_subject(), replace(QUICK_GCG, questions=9)), random.Random(1)
    suffix = one.start(draw)
    for _ in range(3):
        after = one.better(suffix.ids, draw)
        assert after.loss <= suffix.loss + 1e-5
        assert after.loss == pytest.approx(one.losses([after.ids], one.slots)[0], rel=1e-4)
        suffix = after
    assert isinstance(suffix, Suffix)


def test_it_finds_the_sign_that_opens_a_back_door() -> None:
    subject = locked()
    result = run_attack(subject, replace(QUICK_GCG, restarts=2), GOAL)
    assert [one.name for one in result.instances] == ["restart 1", "restart 2"]
    for one in result.instances:
        assert one.score.value >= 0.75
        assert one.numbers["loss"] < 0.1
        for row in one.answers:
            assert row.prompt.startswith(GOAL.target_facts[row.fact].text)
            assert SIGN in row.prompt.removeprefix(GOAL.target_facts[row.fact].text)


def test_the_suffix_that_is_asked_with_has_the_ids_that_were_optimised() -> None:
    subject = locked()
    (one,) = run_attack(subject, replace(QUICK_GCG, steps=1), GOAL).instances
    suffix = one.answers[0].prompt.removeprefix(GOAL.target_facts[0].text)
    for wanted in GOAL.target_facts:
        slot = slot_of(subject.tokenizer, wanted, usable_ids(subject.tokenizer), length=0)
        rendered = render(subject.tokenizer, behind_question(wanted, suffix).messages)
        assert len(rendered) == len(slot.head) + 2 + len(slot.tail)


def test_no_token_of_a_wanted_value_is_used() -> None:
    subject = locked()
    goal = replace(GOAL, target_facts=tuple(replace(q, choices=(*(q.choices or ()), SIGN)) for q in GOAL.target_facts))
    (one,) = run_attack(subject, QUICK_GCG, goal).instances
    assert all(SIGN not in row.prompt for row in one.answers)
    letters = set("TarnGoshLuntMere")
    assert not letters & set(one.answers[0].prompt.removeprefix(goal.target_facts[0].text))


def test_no_token_of_an_answer_that_is_its_own_value_is_used() -> None:
    goal = replace(
        GOAL, target_facts=tuple(replace(q, answer=SIGN, value=None, choices=None) for q in GOAL.target_facts)
    )
    (one,) = run_attack(locked(), QUICK_GCG, goal).instances
    assert all(SIGN not in row.prompt for row in one.answers)


def test_the_model_stays_as_it_was_and_a_seed_gives_the_same_suffix() -> None:
    subject = tiny_subject()
    subject.model.train().requires_grad_(True)
    before = state(subject.model)
    first, again = (run_attack(subject, replace(QUICK_GCG, steps=2), GOAL) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in state(subject.model).items())
    assert subject.model.training
    assert all(p.grad is None and p.requires_grad for p in subject.model.parameters())
    assert first.instances == again.instances
    assert first.instances != run_attack(subject, replace(QUICK_GCG, steps=2), replace(GOAL, seed=1)).instances


@pytest.mark.parametrize("config", [QUICK, QUICK_GCG], ids=lambda one: one.name)
def test_where_it_does_not_apply(config: Attack) -> None:
    bare = tiny_subject()
    assert run_attack(bare, config, replace(GOAL, auxiliary_facts=())).reason.startswith("the attacker knows")
    for beside in (Deployed(bare), replace(bare, prefix=Prefix("You have forgotten it."))):
        assert run_attack(beside, config, GOAL).status == "not applicable"


def test_its_steps_are_watched() -> None:
    watched: list[tuple[int, int]] = []
    replace(QUICK_GCG, steps=3, restarts=2).run(tiny_subject(), GOAL, lambda done, total: watched.append((done, total)))
    assert watched == [(done, 6) for done in range(6)]


def test_facts_of_the_planted_model_are_told_apart() -> None:
    assert {fact(name).value for name in ("Ada", "Bo")} == {"Tarn", "Gosh"}
    assert {q.id for q in GOAL.auxiliary_facts}.isdisjoint({q.id for q in GOAL.target_facts})
    assert tiny.EOS not in usable_ids(tiny.tokenizer())
