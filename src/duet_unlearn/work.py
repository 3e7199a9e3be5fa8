"""A method at work: its rows, what the frozen model says about them, and the training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from torch import nn

from duet_unlearn.attacked import openings_of, pick_of
from duet_unlearn.distil import goal_of
from duet_unlearn.events import Event, OnEvent
from duet_unlearn.job import Job
from duet_unlearn.methods import (
    Reinforced,
    Rkld,
    TaskVector,
    Undo,
    Whp,
    choose_weights,
    gradients_of,
    layer_of,
    learner,
)
from duet_unlearn.methods.undo import add_noise
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.reinforced import reinforced, set_free, subtracted, weights_of, words_of
from duet_unlearn.runs import Run, add_timing, append_metrics, truncate_metrics
from duet_unlearn.teacher.cache import Targets, build_targets
from duet_unlearn.teacher.live import live_signals, stored_only
from duet_unlearn.training.loop import Checkpoints, peak_memory, reset_peak_memory, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_student(
    run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> nn.Module:
    """Ask the model while it is still as it began; then train it, or edit it. It is used up."""
    recipe, config, strong = job.recipe, job.recipe.train, None
    if isinstance(recipe.method, Reinforced):
        with timed(run, "reinforce"):
            strong = reinforced(run, job, recipe.method.reinforce, model, tokenizer, on_event)
        if isinstance(recipe.method, TaskVector):
            return subtracted(model, strong, scale=recipe.method.scale)
    with timed(run, "targets"):
        targets = _targets(run, job, model, tokenizer, "train", strong, on_event)
        signals = live_signals(model, learner(recipe.method).keep, targets)
        goal = goal_of(recipe, job.validation_retain, model, tokenizer)
        held_out = None
        if config.validate_every:
            held_out = _targets(run, job, model, tokenizer, "validation", strong, on_event)
    if strong is not None:
        set_free(strong)
        del strong
    choose_weights(recipe.method, model)
    student = add_lora(model, recipe.model.lora, seed=recipe.seed) if recipe.model.lora else model
    if isinstance(recipe.method, Undo):
        add_noise(student, alpha=recipe.method.alpha, beta=recipe.method.beta, seed=recipe.seed)
    if config.gradient_checkpointing:
        save_gradient_memory(model)
    checkpoints = Checkpoints(run.checkpoints)
    truncate_metrics(run, step=checkpoints.step())
    pad_id = int(tokenizer.pad_token_id or 0)
    source, num_steps = job.source(targets.examples, pick_of(run, job, student, targets.examples, pad_id=pad_id))
    with timed(run, "train"):
        for log in train(
            student,
            source=source,
            num_steps=num_steps,
            loss=learner(recipe.method).loss,
            signals=signals,
            config=config,
            pad_id=pad_id,
            checkpoints=checkpoints,
            layer=layer_of(recipe.method),
            gradients=gradients_of(recipe.method),
            seed=recipe.seed,
            validation=held_out.examples if held_out else (),
            validation_signals=held_out.signals if held_out else None,
        ):
            right = goal.right(student) if goal and log.step % goal.every == 0 else None
            append_metrics(run, {k: v for k, v in (asdict(log) | {"right": right}).items() if v is not None})
            on_event(Event("train", log.step, num_steps, f"loss {log.loss:.4g}"))
            if goal and right is not None and right >= goal.share:
                break
    return student.eval()


def _targets(
    run: Run,
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Literal["train", "validation"],
    strong: nn.Module | None,
    on_event: OnEvent,
) -> Targets:
    method, teachers, weights = job.recipe.method, None, job.weights
    if isinstance(method, Rkld | Whp) and strong is not None:
        teachers = words_of(model, strong, alpha=method.alpha)
        weights = f"{weights}-{method.alpha:g}*{weights_of(run)}"
    return build_targets(
        model,
        tokenizer,
        job.asked(split, openings_of(run, job, model, tokenizer, split)),
        keep=stored_only(learner(job.recipe.method).keep),
        weights=weights,
        teachers=teachers,
        directory=run.targets / split,
        on_progress=lambda done, total: on_event(Event("targets", done, total, split)),
    )


@contextmanager
def timed(run: Run, phase: str) -> Iterator[None]:
    """Note seconds and peak memory of a phase."""
    start = time.perf_counter()
    reset_peak_memory()
    yield
    add_timing(run, phase, seconds=time.perf_counter() - start, peak_memory=peak_memory())
