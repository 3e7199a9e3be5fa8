"""Soft prompts: vectors behind the question that no text stands for, the upper bound of what a prompt can do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from duet_unlearn.attacks.asking import judged, plain
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.attacks.slot import (
    Slot,
    answer_loss,
    embedded,
    open_to_gradients,
    slot_of,
    usable_ids,
    vector_ids,
    vectors,
)
from duet_unlearn.config.sections import Count, Positive, named
from duet_unlearn.evals.generate import as_text
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id

SOME = 4096
"""Tokens from whose vectors is started, and which tell how large vectors are."""


@dataclass(frozen=True)
class SoftPrompt:
    """Train vectors behind the question, the model frozen, until it gives the answers that the attacker knows; then
    ask for the others (arXiv 2402.09063, there for one question at a time). In raw text that ends with "Answer:" they
    stand in front of that."""

    name: Literal["soft-prompt"] = "soft-prompt"
    lengths: tuple[Count, ...] = (1, 2)
    """How many vectors, each number tried for itself; ours: small models lose the question behind many. The paper
    attacks the vectors of a whole prompt."""
    steps: Count = 30
    """Of Adam; ours."""
    points: Count = 2
    """After how many equal parts of the steps the facts are asked for; each is an instance."""
    rate: Positive = 0.1
    """A step's size, as a multiple of the root mean square of the tokens' own vectors; ours."""
    batch: Count = 16
    """Known questions of a step."""
    answer: Count = 24
    """Of an answer so many tokens are trained for."""
    restarts: Count = 1
    """From so many starts; each is instances of its own."""
    title: ClassVar[str] = "Soft prompt"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "lengths")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        trained = 3 * self.steps * min(self.batch, len(goal.known)) + self.points * len(goal.wanted)
        return len(self.lengths) * self.restarts * trained * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: nothing is known to train on, or there are no weights of its own.
        """
        voice = open_to_gradients(subject)
        if not goal.known:
            raise NotApplicable("the attacker knows no other answer to train on")
        usable = usable_ids(voice.tokenizer, most=SOME)
        slots = [slot_of(voice.tokenizer, query, usable, length=self.answer) for query in goal.known]
        asked = [slot_of(voice.tokenizer, query, usable, length=0) for query in goal.wanted]
        found, tries = [], [(length, restart) for length in self.lengths for restart in range(self.restarts)]
        for number, (length, restart) in enumerate(tries):
            curve = self._train(voice, slots, usable, length, random.Random(f"soft/{goal.seed}/{restart}"))
            for step, (loss, soft_LD) in enumerate(curve, start=1):
                watch(number * self.steps + step, len(tries) * self.steps)
                if step * self.points % self.steps < self.points:
                    name = f"{length} vectors, {step} steps" if length > 1 else f"1 vector, {step} steps"
                    name += f", restart {restart + 1}" if self.restarts > 1 else ""
                    outputs = said_behind(voice, asked, soft_LD, goal)
                    one = judged([ask._replace(instance=name) for ask in plain(goal)], outputs, goal)[0]
                    found.append(replace(one, numbers={"loss": loss}))
        return found

    def _train(
        self, voice: ModelSubject, slots: Sequence[Slot], usable: Sequence[int], length: int, draw: random.Random
    ) -> Iterator[tuple[float, Tensor]]:
        """The loss and the vectors after each step."""
        model, padding_id = voice.model, pad_id(voice.tokenizer)
        soft_LD = embedded(model, draw.choices(usable, k=length)).float().requires_grad_()
        scale = float(embedded(model, usable).float().square().mean().sqrt())
        optimizer = torch.optim.Adam([soft_LD], lr=self.rate * scale)
        inserted = vector_ids(model, length)
        for _ in range(self.steps):
            rows = [slot.row(inserted) for slot in draw.sample(slots, min(self.batch, len(slots)))]
            with evaluating(model), torch.enable_grad(), vectors(model, soft_LD):
                loss = answer_loss(model, rows, padding_id=padding_id)
                (soft_LD.grad,) = torch.autograd.grad(loss, [soft_LD])  # the model's own stay as they are
            optimizer.step()
            yield float(loss.detach()), soft_LD.detach()


def said_behind(voice: ModelSubject, slots: Sequence[Slot], soft_LD: Tensor, goal: Goal) -> list[str]:
    """Greedy answers to the wanted questions, with the vectors in their slots."""
    inserted = vector_ids(voice.model, len(soft_LD))
    with vectors(voice.model, soft_LD):
        new = greedy(
            voice.model,
            [[*slot.head, *inserted, *slot.tail] for slot in slots],
            eos_ids=end_ids(voice.model, voice.tokenizer),
            padding_id=pad_id(voice.tokenizer),
            max_new_tokens=goal.max_new_tokens,
            batch_size=goal.batch_size,
        )
    return as_text(voice.tokenizer, new, [query.messages for query in goal.wanted])
