"""The reinforced model: trained once on the forget answers, kept in the run folder; and what methods do with it."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from duet_unlearn.data.examples import Role, epochs_source
from duet_unlearn.events import Event, OnEvent
from duet_unlearn.job import Job, load_subject_model
from duet_unlearn.losses import generic
from duet_unlearn.methods import Reinforce
from duet_unlearn.methods.reinforce import reinforcing
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.load import save_model, with_adapter
from duet_unlearn.models.lora import add_lora, has_adapter, save_gradient_memory, teacher_mode
from duet_unlearn.runs import Run, append_metrics, truncate_metrics
from duet_unlearn.teacher.ask import Teacher, rows_of
from duet_unlearn.teacher.cache import weights_id
from duet_unlearn.training.loop import Checkpoints, train

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def reinforced(
    run: Run,
    job: Job,
    how: Reinforce,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    on_event: OnEvent,
) -> nn.Module:
    """The model after training on the forget answers: with `model.lora` adapters around `model` itself, which switched
    off are the model as it was; else another model. Its folder is a run's: metrics, checkpoints, model."""
    own, recipe = _folder(run), job.recipe
    if own.model.is_dir():
        return with_adapter(model, own.model) if recipe.model.lora else load_subject_model(str(own.model), recipe)[0]
    strong = add_lora(model, recipe.model.lora, seed=recipe.seed) if recipe.model.lora else copy.deepcopy(model)
    _train(own, job, how, strong, tokenizer, on_event)
    save_model(strong, tokenizer, own.model)
    Checkpoints(own.checkpoints).clear()
    return strong


def _folder(run: Run) -> Run:
    return Run(run.path / "reinforced")


def _train(
    own: Run, job: Job, how: Reinforce, strong: nn.Module, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    config, checkpoints = reinforcing(job.recipe.train, how), Checkpoints(own.checkpoints)
    if config.gradient_checkpointing:
        save_gradient_memory(cast("PreTrainedModel", strong))
    rows = rows_of(tokenizer, how.asks(job.material("train")))
    source, num_steps = epochs_source(
        [row.example() for row in rows], batch_size=config.batch_size, epochs=config.epochs, seed=job.recipe.seed
    )
    own.path.mkdir(exist_ok=True)
    truncate_metrics(own, step=checkpoints.step())
    for log in train(
        strong,
        source=source,
        num_steps=num_steps,
        loss=how.loss,
        signals=None,
        config=config,
        pad_id=int(tokenizer.pad_token_id or 0),
        checkpoints=checkpoints,
        seed=job.recipe.seed,
    ):
        append_metrics(own, {name: value for name, value in asdict(log).items() if value is not None})
        on_event(Event("reinforce", log.step, num_steps, f"loss {log.loss:.4g}"))


def words_of(model: nn.Module, strong: nn.Module, *, alpha: float) -> dict[Role, Teacher]:
    """On forget rows, what a model would say without what its reinforced self has more of (``losses.generic`` of their
    logits); on retain rows, its own words, which an adapter around it must not colour."""

    def own(ids_BT: Tensor, mask_BT: Tensor, rows_N: Tensor, cols_N: Tensor) -> Tensor:
        with teacher_mode(strong):
            return logits_at(model, ids_BT, mask_BT, rows_N, cols_N)

    def without(ids_BT: Tensor, mask_BT: Tensor, rows_N: Tensor, cols_N: Tensor) -> Tensor:
        where = (ids_BT, mask_BT, rows_N, cols_N)
        return generic(own(*where), logits_at(strong, *where), alpha=alpha)

    return {"forget": without, "retain": own}


def weights_of(run: Run) -> str:
    """Identity of a run's reinforced model."""
    return weights_id(_folder(run).model)


def set_free(strong: nn.Module) -> None:
    """Take the reinforced adapter off the model that it was put around."""
    if has_adapter(strong):
        cast("PeftModel", strong).unload()


@torch.no_grad()
def subtracted(model: nn.Module, strong: nn.Module, *, scale: float) -> nn.Module:
    """``theta - scale (theta_reinforced - theta)``; one of the two is used up.

    An adapter's change of a matrix is a product ``B A``: it is enough to turn `B` round. Weights of less than fp32 are
    subtracted in fp32.
    """
    if has_adapter(strong):
        for name, parameter in strong.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-scale)
        return strong
    grown = dict(strong.named_parameters())
    for name, parameter in model.named_parameters():
        before = parameter.float()
        parameter.copy_(before - scale * (grown[name].float() - before))
    return model
