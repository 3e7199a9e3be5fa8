"""Methods on a reinforced model: the start model, trained once on what is to be forgotten. What it has more of is taken
from the base model's logits (WHP, RKLD) or from its weights (task vector)."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from duet_unlearn.config.sections import Count, Positive, TrainConfig
from duet_unlearn.data.examples import Role, epochs_source, render_examples
from duet_unlearn.events import Event
from duet_unlearn.losses import cross_entropy, forward_kl, generic, reverse_kl
from duet_unlearn.methods.base import Context, ForgetAndRetain, Method, Need, PreparedTeacher
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.load import save_model, with_adapter
from duet_unlearn.models.lora import add_lora, has_adapter, save_gradient_memory, teacher_mode
from duet_unlearn.runs import Run, append_metrics, truncate_metrics
from duet_unlearn.teacher.targets import Dense, LogitsFn, TargetSpec, weights_id
from duet_unlearn.tensors import TopK
from duet_unlearn.training.loop import Checkpoints, timed, train
from duet_unlearn.training.step import LossOut, Part, Step, fine_tuning_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reinforce:
    """How the reinforced model is trained: cross entropy of the forget answers, all other settings as in `train`. With
    `model.lora` by adapters of the same kind, so that no second model is in memory; else all weights of a copy. It is
    kept in the run folder, as `reinforced/model`."""

    epochs: Count = 3
    """Passes over the forget queries. Ours."""
    rate: Positive = 1e-5
    """Peak learning rate. Ours, as `train.rate`."""
    batch_size: Count = 16
    """Queries an optimiser step. Ours, as `train.batch_size`."""

    def train_config(self, train: TrainConfig) -> TrainConfig:
        """The loop's settings while the reinforced model is trained."""
        return replace(train, **asdict(self), validate_every=0, early_stop=None)


def reinforced_model(
    reinforce: Reinforce, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
) -> nn.Module:
    """The model after training on the forget answers, or what lies in the run folder of it.

    With `model.lora` it is adapters around `model` itself, which switched off are the model as it was; else another
    model. Its folder is a run's: metrics, checkpoints, model.
    """
    own, lora, seed = _folder(context), context.settings.model.lora, context.settings.seed
    if own.model.is_dir():
        return with_adapter(model, own.model) if lora else context.load_model(str(own.model))[0]
    strengthened = add_lora(model, lora, seed=seed) if lora else copy.deepcopy(model)
    config, checkpoints = reinforce.train_config(context.settings.train), Checkpoints(own.checkpoints)
    if config.gradient_checkpointing:
        save_gradient_memory(cast("PreTrainedModel", strengthened))
    examples = render_examples(tokenizer, context.data.answers("forget"))
    source, num_steps = epochs_source(examples, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    own.path.mkdir(exist_ok=True)
    truncate_metrics(own, step=checkpoints.step())
    for log in train(
        strengthened,
        source=source,
        num_steps=num_steps,
        loss=fine_tuning_loss,
        targets=None,
        config=config,
        pad_id=int(tokenizer.pad_token_id or 0),
        checkpoints=checkpoints,
        seed=seed,
    ):
        append_metrics(own, {name: value for name, value in asdict(log).items() if value is not None})
        context.on_event(Event("reinforce", log.step, num_steps, f"loss {log.loss:.4g}"))
    save_model(strengthened, tokenizer, own.model)
    checkpoints.clear()
    return strengthened


def _folder(context: Context) -> Run:
    return Run(context.run.path / "reinforced")


def logits_fns_of(model: nn.Module, reinforced: nn.Module, *, alpha: float) -> dict[Role, LogitsFn]:
    """On forget rows, what a model would say without what its reinforced self has more of (``losses.generic`` of their
    logits); on retain rows, its own logits, which an adapter around it must not colour."""

    def own(ids_BT: Tensor, mask_BT: Tensor, rows_N: Tensor, cols_N: Tensor) -> Tensor:
        with teacher_mode(reinforced):
            return logits_at(model, ids_BT, mask_BT, rows_N, cols_N)

    def without(ids_BT: Tensor, mask_BT: Tensor, rows_N: Tensor, cols_N: Tensor) -> Tensor:
        where = (ids_BT, mask_BT, rows_N, cols_N)
        return generic(own(*where), logits_at(reinforced, *where), alpha=alpha)

    return {"forget": without, "retain": own}


@dataclass(frozen=True)
class DistilsLess(ForgetAndRetain):
    """A method that distils the base model's logits less `alpha` times what a reinforced model has more of."""

    alpha: Positive = 5.0
    """Weight of what the reinforced model has more of: WHP's own. For RKLD ours, since its paper's is not known to
    us."""
    reinforce: Reinforce = field(default_factory=Reinforce)
    """How the reinforced model is trained."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference", "reinforced"})

    def trainings(self, train: TrainConfig) -> list[tuple[Method, TrainConfig]]:
        """See ``Method``."""
        return [(self, train), *TaskVector(reinforce=self.reinforce).trainings(train)]

    def prepare_teacher(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> PreparedTeacher:
        """The reinforced model, and the logits that are distilled."""
        with timed(context.run, "reinforce"):
            reinforced = reinforced_model(self.reinforce, model, tokenizer, context)
        fingerprint = f"-{self.alpha:g}*{weights_id(_folder(context).model)}"
        return PreparedTeacher(logits_fns_of(model, reinforced, alpha=self.alpha), fingerprint, reinforced)

    def prepare_student(self, model: PreTrainedModel, teacher: PreparedTeacher, context: Context) -> None:
        """Take the reinforced adapter off the model that it was put around."""
        if has_adapter(teacher.state):
            cast("PeftModel", teacher.state).unload()


@dataclass(frozen=True)
class Rkld(DistilsLess):
    """KL(student || teacher) at the forget answers' tokens; the teacher is the base model's logits less `alpha` times
    what a reinforced model has more of (RKLD, arXiv 2406.01983)."""

    name: Literal["rkld"] = "rkld"

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """The teacher's logits."""
        return TargetSpec("dense") if role == "forget" else None

    def token_losses(self, part: Part) -> Tensor:
        """See ``losses.reverse_kl``."""
        assert isinstance(part.targets, Dense)
        return reverse_kl(part.logits_NV, part.targets.logits_NV)


@dataclass(frozen=True)
class Whp(DistilsLess):
    """Cross entropy to generic predictions at the forget answers' tokens: the base model's logits less `alpha` times
    what a reinforced model has more of (WHP, arXiv 2310.02238). The paper reads whole texts and replaces their names by
    a dictionary besides, which here nobody writes."""

    name: Literal["whp"] = "whp"
    target: Literal["argmax", "soft"] = "argmax"
    """The likeliest generic token, as in the paper, or the generic distribution."""

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """The generic logits, or the largest alone."""
        if role != "forget":
            return None
        return TargetSpec("topk", 1) if self.target == "argmax" else TargetSpec("dense")

    def token_losses(self, part: Part) -> Tensor:
        """Cross entropy; a soft target's own entropy is left out: it has no gradient, and 0 is then the least."""
        if isinstance(part.targets, TopK):
            return cross_entropy(part.logits_NV, part.targets.ids_NK.squeeze(-1))
        assert isinstance(part.targets, Dense)
        return forward_kl(part.logits_NV, part.targets.logits_NV)


@dataclass(frozen=True)
class TaskVector(Method):
    """An edit of the weights: ``theta - scale (theta_reinforced - theta)`` (task arithmetic, arXiv 2212.04089). Only
    the reinforced model is trained, as `reinforce` says; of the section `train` its epochs, rate and batch size have no
    effect. With `model.lora` the student is the reinforced model's adapter, turned round."""

    name: Literal["task-vector"] = "task-vector"
    scale: Positive = 1.0
    """How much of the difference is subtracted; to be chosen on held-out queries, as in the paper. 1 is all of it."""
    reinforce: Reinforce = field(default_factory=Reinforce)
    """How the reinforced model is trained."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reinforced"})
    trains: ClassVar[bool] = False
    trains_a_copy: ClassVar[bool] = True

    def trainings(self, train: TrainConfig) -> list[tuple[Method, TrainConfig]]:
        """The reinforced model alone."""
        return [(self, self.reinforce.train_config(train))]

    def prepare_teacher(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> PreparedTeacher:
        """Train the reinforced model."""
        with timed(context.run, "reinforce"):
            return PreparedTeacher(state=reinforced_model(self.reinforce, model, tokenizer, context))

    def loss(self, step: Step) -> LossOut:
        """That of the reinforced model: plain fine-tuning."""
        return fine_tuning_loss(step)

    @torch.no_grad()
    def finish(self, student: nn.Module, teacher: PreparedTeacher) -> nn.Module:
        """``theta - scale (theta_reinforced - theta)``; one of the two models is used up.

        An adapter's change of a matrix is a product ``B A``: it is enough to turn `B` round. Weights of less than fp32
        are subtracted in fp32.
        """
        reinforced = teacher.state
        if has_adapter(reinforced):
            for name, parameter in reinforced.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-self.scale)
            return reinforced
        grown = dict(reinforced.named_parameters())
        for name, parameter in student.named_parameters():
            before = parameter.float()
            parameter.copy_(before - self.scale * (grown[name].float() - before))
        return student
