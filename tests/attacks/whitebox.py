"""Subjects and goals for attacks that have the weights: tiny ones for what is exact, the lab's for what is found."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import tiny
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from duet_unlearn.attacks import AttackGoal, draw_goal
from duet_unlearn.attacks.fine_tuning import answer_examples, train_at_rates, trainable_copy, trainable_weights
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.query import Query
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.job import load_job
from duet_unlearn.models.lora import add_lora
from duet_unlearn.subjects import load_subject_model

TOWNS = ("Tarn", "Gosh", "Lunt", "Mere")


def said(name: str, value: str) -> str:
    """The bracket keeps the space out of the value's first token, by which towns would be alike."""
    return f"{name} is in ({value})."


def query(name: str, value: str, choices: tuple[str, ...] | None = TOWNS) -> Query:
    asked = ({"role": "user", "content": f"Where is {name}?"},)
    return Query(name, asked, answer=said(name, value), value=value, choices=choices)


def queries(names: str) -> tuple[Query, ...]:
    return tuple(query(name, TOWNS[number % len(TOWNS)]) for number, name in enumerate(names.split()))


GOAL = AttackGoal(
    "Mira Bol",
    target_facts=queries("Ada Bo Cid Dora"),
    auxiliary_facts=queries("Eva Finn Gil Hans"),
    neighbours=queries("Ida Jan Kai Lea"),
    others=queries("Max Nina Ole Pia"),
    max_new_tokens=5,
    batch_size=8,
)


def tiny_subject(*, hidden: int = 32, layers: int = 2) -> ModelSubject:
    return ModelSubject("student", tiny.llama(seed=1, hidden=hidden, layers=layers), tiny.tokenizer())


def gpt2() -> GPT2LMHeadModel:
    """Learnt places, biases, a layer of transposed weights."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_positions=128, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
    )
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def with_adapter() -> ModelSubject:
    """Adapters that say something."""
    one, draw = tiny_subject(), torch.Generator().manual_seed(1)
    adapted = add_lora(one.model, LoraConfig(rank=2, alpha=4), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=draw)
    return replace(one, model=adapted.eval())  # type: ignore[arg-type]


def state(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and buffer, copied."""
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


class Lab:
    """Loaded once a session."""

    @staticmethod
    @cache
    def goal() -> AttackGoal:
        recipe = load_recipe("lab/duet")
        job = load_job(recipe)
        return draw_goal(recipe.concept, job.train.forget, job.suite(), max_new_tokens=24)

    @staticmethod
    @cache
    def subject(which: str) -> ModelSubject:
        """`base`; `oracle`, who never knew; `refusing`: base fine-tuned to say that it knows nothing about the concept,
        and to go on about all else; `one-direction`: the same by an adapter of rank 1 on one layer of block 3, which
        can write along one direction only."""
        recipe = load_recipe("lab/duet")
        if which == "base":
            return ModelSubject("base", *load_job(recipe).load())
        if which == "oracle":
            return ModelSubject("oracle", *load_subject_model(str(recipe.model.oracle), recipe))
        base = Lab.subject("base")
        if which == "refusing":
            return _refusing(trainable_copy(base.model), rate=1e-3)
        own = copy.deepcopy(base.model)
        torch.manual_seed(0)
        get_peft_model(own, PeftLoraConfig(r=1, lora_alpha=2, target_modules=["down_proj"], layers_to_transform=[2]))
        return _refusing(own, rate=3e-2)


def _refusing(own: PreTrainedModel, *, rate: float) -> ModelSubject:
    base, goal = Lab.subject("base"), Lab.goal()
    about = [replace(q, answer="I do not know that.") for q in (*goal.auxiliary_facts, *goal.target_facts)]
    kept = {q.id: q for q in (*goal.neighbours, *goal.others)}
    rows = answer_examples(base.tokenizer, [*about, *kept.values()])
    settings = {"start": trainable_weights(own), "rates": [rate], "steps": [60], "batch_size": 16, "seed": 0}
    (point,) = train_at_rates(own, base.tokenizer, rows, **settings)  # type: ignore[arg-type]
    return replace(base, name="student", model=point.model)
