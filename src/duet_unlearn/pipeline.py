"""How a method makes its student: the hooks of ``methods.base.Method`` in the order in which they are called.

No method is known here by name. Whatever one does otherwise than the others is a hook with a default.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.events import Event, OnEvent
from duet_unlearn.job import Job
from duet_unlearn.methods.base import Context, PreparedTeacher, Split
from duet_unlearn.models.load import merged, save_model
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.runs import Run, append_metrics, truncate_metrics
from duet_unlearn.subjects import has_student, load_subject_model, subject_file
from duet_unlearn.teacher.targets import CachedTargets, build_targets, stored_only, targets_fn
from duet_unlearn.training.loop import Checkpoints, timed, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_student(
    run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    """Make the student of a run and save it, if it is not there yet. The model is used up.

    Raises:
        UserError: queries that the method needs are missing, or lack answers.
    """
    recipe, method = job.recipe, job.recipe.method
    if has_student(run, recipe):
        return
    student = train_student(run, job, model, tokenizer, on_event)
    if method.changes_weights:
        merge = recipe.model.lora is not None and (recipe.model.lora.save == "merged" or job.start is not None)
        save_model(merged(student) if merge else student, tokenizer, run.model)
        return
    stored = method.save_subject(student, tokenizer, run.subject, context_of(run, job, on_event))
    # Last, for it says that all that stands beside the model is whole.
    atomic_write_json(subject_file(run), {"method": method.name, **stored})


def train_student(
    run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> nn.Module:
    """Ask the model while it is still as it began; then train it, or edit it. It is used up."""
    method, context = job.recipe.method, context_of(run, job, on_event)
    model = method.trained_model(model)
    teacher = method.prepare_teacher(model, tokenizer, context)
    if not method.trains:
        return method.finish(model, teacher)
    recipe, config = job.recipe, job.recipe.train
    with timed(run, "targets"):
        targets = _targets(context, job, teacher, model, tokenizer, "train")
        training_targets = targets_fn(model, method.target_spec, targets)
        stop = method.stop_rule(model, tokenizer, context)
        held_out = _targets(context, job, teacher, model, tokenizer, "validation") if config.validate_every else None
    method.choose_weights(model)
    method.prepare_student(model, teacher, context)
    teacher = PreparedTeacher()  # a second model must not stay in memory beside the student
    student = add_lora(model, recipe.model.lora, seed=recipe.seed) if recipe.model.lora else model
    if config.gradient_checkpointing:
        save_gradient_memory(model)
    checkpoints, pad_id = Checkpoints(run.checkpoints), int(tokenizer.pad_token_id or 0)
    truncate_metrics(run, step=checkpoints.step())
    pick = method.choose_examples(student, targets.examples, context, pad_id=pad_id)
    source, num_steps = job.source(targets.examples, pick)
    with timed(run, "train"):
        for log in train(
            student,
            source=source,
            num_steps=num_steps,
            loss=method.loss,
            targets=training_targets,
            config=config,
            pad_id=pad_id,
            checkpoints=checkpoints,
            hidden_block=method.hidden_block,
            combine=method.combine_gradients if method.splits_gradients else None,
            seed=recipe.seed,
            validation=held_out.examples if held_out else (),
            validation_targets=held_out.of_batch if held_out else None,
        ):
            right = stop.score(student) if stop and log.step % stop.every == 0 else None
            append_metrics(run, {k: v for k, v in (asdict(log) | {"right": right}).items() if v is not None})
            on_event(Event("train", log.step, num_steps, f"loss {log.loss:.4g}"))
            if stop and right is not None and right >= stop.at_least:
                break
    return method.finish(student, teacher).eval()


def context_of(run: Run, job: Job, on_event: OnEvent) -> Context:
    """What the method may know of the run."""
    return Context(
        run=run,
        settings=job.recipe,
        data=job.training_data("train"),
        validation=job.validation,
        weights=job.weights,
        shown_turns=job.shown_turns,
        load_model=partial(load_subject_model, settings=job.recipe),
        on_event=on_event,
    )


def _targets(
    context: Context,
    job: Job,
    teacher: PreparedTeacher,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
) -> CachedTargets:
    """What the frozen model says on the rows of a split, asked now or read from the run folder."""
    method = job.recipe.method
    data = method.prepare_data(job.training_data(split), model, tokenizer, context, split)
    return build_targets(
        model,
        tokenizer,
        method.build_examples(data),
        spec=stored_only(method.target_spec),
        weights=context.weights + teacher.fingerprint,
        logits_fns=teacher.logits_fns,
        directory=context.run.targets / split,
        on_progress=lambda done, total: context.on_event(Event("targets", done, total, split)),
    )
