"""UNDO: unlearn, noise, distil on outputs (arXiv 2506.06278): a stage behind any method, against relearning."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from duet_unlearn.config.sections import Settings
from duet_unlearn.data.examples import Example, Role, TrainingData
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import share_right
from duet_unlearn.evals.likelihood import exact_memorisation
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.losses import forward_kl
from duet_unlearn.methods.base import Context, Method, Need, PreparedTeacher, StopRule
from duet_unlearn.teacher.targets import Dense, TargetSpec
from duet_unlearn.training.step import LossOut, Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Undo(Method):
    """An unlearned model (the recipe's `after`, or `model.start`) is the teacher; the student is its copy under noise,
    distilled on the text of `data.distil` by KL(teacher || student) over the whole vocabulary, a mean over all tokens
    (arXiv 2506.06278). All weights are trained."""

    name: Literal["undo"] = "undo"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.6
    """How much of every weight is replaced: ``(1 - alpha) theta + alpha beta N``. 0 leaves the model as it is. The
    paper recommends 0.6, and finds 0.3 and less to buy almost nothing."""
    beta: Annotated[float, Ge(0)] = 0.1
    """Scale of the noise, N being Xavier-uniform; 1 is that of a fresh model. The paper's; 0.05 to 0.5 do alike."""
    stop_at: Annotated[float, Gt(0), Le(1)] | None = 0.95
    """Distilling stops once the student answers this share of what the teacher answers right of
    data.validation_retain; the paper's share. Right is an answer with the query's value in it; where a query has none,
    tokens of the answers are counted, each after the right ones before it, which is laxer, for every sentence has words
    that are easy. null: train to the end."""
    stop_every: Annotated[int, Ge(1)] = 50
    """Steps between two looks at that. Ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"texts"})
    takes_adapters: ClassVar[bool] = False

    def validate(self, settings: Settings, validation: TrainingData) -> None:
        """See ``Method``.

        Raises:
            UserError: adapters, nothing unlearned to begin with, no answers to stop by, a validation of its loss.
        """
        if settings.model.lora:
            raise UserError(
                "model.lora is set, but undo puts noise into all weights and trains them",
                "set model.lora to null; the recipe that `after` names keeps its own",
            )
        if settings.after is None and settings.model.start is None:
            raise UserError(
                "undo is a stage behind another method, and the recipe names none",
                "set `after` to the recipe that unlearns, such as lab/duet, or model.start to a finished run",
            )
        if self.stop_at and not (validation.retain and all(query.answer for query in validation.retain)):
            raise UserError(
                "method.stop_at needs queries with answers in data.validation_retain, and there are none",
                "name such a file, or set method.stop_at to null, which trains to the end",
            )
        if settings.train.validate_every:
            raise UserError(
                "train.validate_every is set, but undo has no loss on validation queries",
                "set it to 0; method.stop_at and method.stop_every say when undo stops",
            )

    def build_examples(self, data: TrainingData) -> list[Example]:
        """The texts alone."""
        return data.whole_texts()

    def target_spec(self, role: Role) -> TargetSpec:
        """Whole rows of every token are too many to store, so a copy of the teacher is asked at every step."""
        return TargetSpec("live")

    def stop_rule(
        self, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> StopRule | None:
        """A share of what the teacher itself gets right.

        Raises:
            UserError: the teacher gets nothing right.
        """
        if self.stop_at is None:
            return None
        queries, config = context.validation.retain, context.settings.evaluate

        def right(model: nn.Module) -> float:
            subject = ModelSubject("", cast("PreTrainedModel", model), tokenizer)
            if all(query.value for query in queries):
                sizes = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
                return share_right(subject.model, tokenizer, queries, **sizes)
            messages, answers = [q.messages for q in queries], [q.answer or "" for q in queries]
            scores = subject.token_scores(messages, answers, batch_size=config.batch_size)
            return fsum(exact_memorisation(score.greedy) for score in scores) / len(scores)

        if (best := right(teacher)) == 0:
            raise UserError(
                "the teacher answers nothing of data.validation_retain right, so a share of that is no goal",
                "look at the queries' values and at evaluate.max_new_tokens, or set method.stop_at to null",
            )
        return StopRule(self.stop_every, self.stop_at * best, right)

    def prepare_student(self, model: PreTrainedModel, teacher: PreparedTeacher, context: Context) -> None:
        """Put noise into all weights."""
        add_noise(model, alpha=self.alpha, beta=self.beta, seed=context.settings.seed)

    def loss(self, step: Step) -> LossOut:
        """Sum over positions of ``KL(teacher || student)``, temperature 1."""
        targets = step.targets["retain"]
        assert isinstance(targets, Dense)
        return LossOut(forward_kl(step.logits_NV, targets.logits_NV).sum(), len(step.logits_NV), "tokens")


@torch.no_grad()
def add_noise(model: nn.Module, *, alpha: float, beta: float, seed: int) -> None:
    """``theta <- (1 - alpha) theta + alpha beta N`` in every trained tensor, once, tied ones too.

    N is Xavier-uniform, ``U(-a, a)`` with ``a = sqrt(6 / (rows + columns))``, in matrices and in each of a stack of
    matrices (experts), and 0 in vectors, so that a norm's scale only shrinks. UNDO (arXiv 2506.06278). Drawn on the
    CPU in fp32 from `seed`: one device's weights are another's.
    """
    draw = torch.Generator().manual_seed(random.Random(f"{seed}/undo").getrandbits(63))
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = xavier(parameter.shape, draw).to(parameter.device)
            parameter.copy_((1 - alpha) * parameter.float() + alpha * beta * noise)


def xavier(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Xavier-uniform noise; 0 for a vector."""
    if len(shape) < 2:
        return torch.zeros(shape)
    bound = (6 / (shape[-1] + shape[-2])) ** 0.5
    return bound * (2 * torch.rand(shape, generator=draw) - 1)
