"""Any task of lm-eval (the LM Evaluation Harness) on a model that is loaded, with its settings as they took effect.

lm-eval takes settings that it then leaves aside (a task with ``num_fewshot: 0`` keeps it, whatever was asked). Here
what was asked is compared with what lm-eval reports, and a difference is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from duet_unlearn.errors import UserError, nearest, needs_extra

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_SETTINGS = ("batch_size", "max_length", "add_bos_token", "prefix_token_id")
"""How lm-eval asks the model; settings of its `HFLM` that act on a model which is loaded already."""
RUN_SETTINGS = (
    "num_fewshot",
    "limit",
    "gen_kwargs",
    "apply_chat_template",
    "system_instruction",
    "fewshot_as_multiturn",
    "fewshot_random_seed",
    "bootstrap_iters",
)
"""What lm-eval asks: arguments of its `simple_evaluate`."""
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "configs", "config", "date")
"""What is written of lm-eval's own report; with the versions of the packages."""
Settings = Mapping[str, Any]


class Harness(NamedTuple):
    record: dict[str, Any]
    """Tasks, settings asked and in effect, each task's first prompt, and lm-eval's results."""
    samples: dict[str, list[dict[str, Any]]]
    """Task -> lm-eval's record of each question."""


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    settings: Settings,
    *,
    include: Path | None = None,
) -> Harness:
    """Scores of `tasks` (of lm-eval, or of YAML files in the folder `include`).

    Raises:
        UserError: lm-eval is not installed, has no such task, knows no such setting, or did not follow one.
    """
    with needs_extra("lm-eval", "an evaluation by lm-eval"):
        from lm_eval import simple_evaluate
        from lm_eval.utils import handle_non_serializable
    _require_known(settings, tokenizer)
    manager = _manager(tasks, include)
    asked = {name: value for name, value in settings.items() if name in RUN_SETTINGS}
    harness = hf_model(model, tokenizer, {n: v for n, v in settings.items() if n in MODEL_SETTINGS})
    report = simple_evaluate(
        model=harness,
        tasks=_load(manager, tasks, asked),
        task_manager=manager,
        batch_size=settings.get("batch_size"),
        **asked,
    )
    whole = json.loads(json.dumps(report, default=handle_non_serializable))
    effective = effective_settings(whole, harness, settings)
    samples = whole["samples"]
    record = {
        "tasks": list(tasks),
        "asked": dict(settings),
        "effective": effective,
        "first_prompts": {task: first_prompt(rows) for task, rows in samples.items()},
        "packages": {name: version(name) for name in ("lm-eval", "transformers", "torch")},
        **{key: whole[key] for key in KEPT if key in whole},
    }
    require_followed(settings, record)
    return Harness(record, samples)


def hf_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> HFLM:
    """lm-eval's view of a loaded model."""
    with needs_extra("lm-eval", "an evaluation by lm-eval"):
        from lm_eval.models.huggingface import HFLM
    return HFLM(pretrained=model, tokenizer=tokenizer, **settings)  # type: ignore[arg-type]


def first_prompt(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the model was shown before its first answer."""
    return str(rows[0]["arguments"][0][0]) if rows else ""


def effective_settings(report: Mapping[str, Any], harness: HFLM, settings: Settings) -> dict[str, Any]:
    """The settings that can be read back, as lm-eval used them: by task where a task decides."""
    tasks = [task for task in report["configs"] if task in report["n-samples"]]
    read: dict[str, Any] = {
        "num_fewshot": {task: report["n-shot"][task] for task in tasks},
        "limit": {task: report["n-samples"][task]["effective"] for task in tasks},
        "gen_kwargs": {task: report["configs"][task].get("generation_kwargs") for task in tasks},
        "bootstrap_iters": report["config"]["bootstrap_iters"],
        "fewshot_random_seed": report["config"]["fewshot_seed"],
    }
    return read | {name: getattr(harness, name) for name in MODEL_SETTINGS if name in settings}


def require_followed(settings: Settings, record: Mapping[str, Any]) -> None:
    """Compare what was asked with what lm-eval reports.

    Raises:
        UserError: a setting was accepted and not followed.
    """
    for name, requested in settings.items():
        if name == "system_instruction":
            unlike = {t: prompt[:80] for t, prompt in record["first_prompts"].items() if str(requested) not in prompt}
        elif name in ("num_fewshot", "limit", "gen_kwargs"):
            used = record["effective"][name]
            unlike = {t: value for t, value in used.items() if not _is_followed(name, requested, value, t, record)}
        else:
            used = record["effective"].get(name, requested)
            unlike = {} if used == requested else {"all tasks": used}
        if unlike:
            task, value = next(iter(unlike.items()))
            raise UserError(
                f"lm-eval did not follow {name}={requested!r}: it used {value!r} for {task}",
                "leave the setting out, or choose tasks that can be asked so",
            )


def _is_followed(name: str, requested: Any, used: Any, task: str, record: Mapping[str, Any]) -> bool:
    if name == "num_fewshot":
        return bool(used == requested)
    if name == "gen_kwargs":
        return isinstance(used, dict) and requested.items() <= used.items()
    every = record["n-samples"][task]["original"]
    return bool(used == min(every, math.ceil(every * requested) if requested < 1 else int(requested)))


def _require_known(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
    known = (*RUN_SETTINGS, *MODEL_SETTINGS)
    for name in settings:
        if name not in known:
            close = nearest(name, known)
            raise UserError(
                f"no lm-eval setting {name!r} can be passed on",
                f"did you mean {close}?" if close else f"these can: {', '.join(known)}",
            )
    if "gen_kwargs" in settings and not isinstance(settings["gen_kwargs"], dict):
        raise UserError("gen_kwargs is no mapping", "write it as {temperature: 0.7, do_sample: true}")
    if settings.get("apply_chat_template") and not tokenizer.chat_template:
        raise UserError("apply_chat_template is set, but the tokeniser has no chat template", "leave it out")


def _manager(tasks: Sequence[str], include: Path | None) -> TaskManager:
    """lm-eval's list of tasks; its own 13,000 files are read only where the folder `include` has not all."""
    from lm_eval.tasks import TaskManager

    if include is None:
        return TaskManager()
    few = TaskManager(include_path=str(include), include_defaults=False)
    return few if set(tasks) <= set(few.all_tasks) else TaskManager(include_path=str(include))


def _load(manager: TaskManager, tasks: Sequence[str], asked: Settings) -> list[Any]:
    """The tasks, read once; a group is one object, a tag stays its name.

    Raises:
        UserError: no such task; a task whose own file rules the shots out, which is worth knowing before it runs.
    """
    for name in tasks:
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_tasks)
            hint = f"did you mean {close}?" if close else "`lm-eval ls tasks` lists them"
            raise UserError(f"lm-eval has no task {name!r}", hint)
    loaded = manager.load(list(tasks))
    for name, task in loaded["tasks"].items():
        if asked.get("num_fewshot") and task.get_config("num_fewshot") == 0:
            raise UserError(
                f"lm-eval would not follow num_fewshot={asked['num_fewshot']}: the task {name} is fixed to 0",
                "leave num_fewshot out, or choose another task",
            )
    return [loaded["groups"].get(name) or loaded["tasks"].get(name) or name for name in tasks]
