"""The whole job from Python: ``unlearn``, ``probe``, ``evaluate``, ``chat``, ``build_lab``.

A run is a row of phases (probe, targets, baselines, train, evaluate, report). Each leaves its files in the run
folder and is skipped when they are there, so a run that was killed goes on by being started again.
"""

from __future__ import annotations

import datetime
import gc
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duet_unlearn.config.reading import differing_key, dump_recipe, load_recipe
from duet_unlearn.config.recipe import Recipe, recipe_hash
from duet_unlearn.config.sections import prefix_of
from duet_unlearn.data.files import atomic_write_json, atomic_write_text
from duet_unlearn.data.prompts import with_context
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import with_summaries
from duet_unlearn.evals.question_sets import run_suite, suite_json
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.events import Event, OnEvent, ignore
from duet_unlearn.export import export
from duet_unlearn.job import Job, load_job
from duet_unlearn.models.load import load_model
from duet_unlearn.pipeline import make_student
from duet_unlearn.redact import require_not_purged
from duet_unlearn.report import write_report
from duet_unlearn.runs import LOCK, Run, find_run, locked, mark_done, versions
from duet_unlearn.subjects import (
    SUBJECTS,
    load_start,
    load_student,
    load_subject_model,
    model_folder,
    require_student,
    subjects,
)
from duet_unlearn.teacher.probe import ADVICE, ProbeResult, first_tokens
from duet_unlearn.teacher.probe import probe as probe_prefix
from duet_unlearn.training.loop import Checkpoints, timed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger("duet_unlearn")


def unlearn(
    recipe: Recipe, *, out: Path | str | None = None, like: Path | str | None = None, on_event: OnEvent = ignore
) -> Run:
    """Do everything that a recipe says, into a run folder: probe, targets, training, evaluation, report.

    A finished run is returned as it is; an unfinished one goes on, to the same result. `like` is a finished run that
    asked the same models the same questions: what base, prefix and oracle said there is taken over.

    Raises:
        UserError: whatever the user can put right, from a missing file to a full disk.
    """
    folder, job = Path(out or recipe.out or default_out(recipe)), load_job(recipe)
    if (run := may_run(folder, recipe)).finished:
        _require_same(run, job.query_hashes())
        return run
    model, tokenizer = job.load()
    with locked(run):
        if run.finished:  # by another process meanwhile
            return run
        run = open_run(folder, recipe)
        _write_env(run, job, tokenizer)
        if like:
            _take_baselines(run, Run(Path(like)))
        if start := _start(run, recipe, on_event):
            _evaluate_subjects(run, job, _baselines(job, model, tokenizer), on_event)
            job, model = replace(job, start=start), load_start(start, recipe)
        _probe(run, job, model, tokenizer, on_event)
        if not start:
            _evaluate_subjects(run, job, _baselines(job, model, tokenizer), on_event)
        make_student(run, job, model, tokenizer, on_event)
        del model
        gc.collect()
        if recipe.model.oracle:
            oracle = load_subject_model(recipe.model.oracle, recipe)
            _evaluate_subjects(run, job, [ModelSubject("oracle", *oracle)], on_event)
            del oracle
        _evaluate_subjects(run, job, [load_student(run, recipe)], on_event)
        _summarise(run, job)
        on_event(Event("report", 0, 1))
        write_report(run.path)
        Checkpoints(run.checkpoints).clear()
        on_event(Event("report", 1, 1))
        mark_done(run)
    return run


def default_out(recipe: Recipe) -> Path:
    """Where a run goes if nobody says: ``runs/<name>-<short hash>``, so another recipe is another folder."""
    slug = re.sub(r"[^\w.-]+", "-", recipe.name).strip("-.") or "run"
    return Path("runs") / f"{slug}-{recipe_hash(recipe)[:8]}"


def may_run(path: Path | str, recipe: Recipe) -> Run:
    """A folder that is free for a recipe's run, or holds it already, finished or not. Writes nothing.

    Raises:
        UserError: the folder is another recipe's run, a purged one, or holds something that is no run.
    """
    run = Run(Path(path))
    require_not_purged(run.path)
    if run.path.is_dir() and run.recipe.exists():
        _require_same_recipe(run, recipe)
    elif run.path.exists() and (not run.path.is_dir() or _foreign(run.path)):
        raise UserError(f"{run.path}: is there already and is no run folder", "choose another folder with --out")
    return run


def open_run(path: Path | str, recipe: Recipe) -> Run:
    """A new run folder, or the one that this recipe began. Raises as ``may_run``."""
    run = may_run(path, recipe)
    if not run.recipe.exists():
        atomic_write_text(run.recipe, dump_recipe(recipe))
    return run


def _require_same_recipe(run: Run, recipe: Recipe) -> None:
    there = load_recipe(run.recipe)
    if key := differing_key(there, recipe):
        raise UserError(
            f"{run.path}: is the output folder of another run: {key} differs",
            "choose another folder with --out",
        )


def _foreign(folder: Path) -> bool:
    """Whether a folder holds anything but its lock and what a killed ``open_run`` leaves."""
    left = (".recipe.yaml.", LOCK)
    return any(not p.name.startswith(left) for p in folder.iterdir())


def env_info(
    recipe: Recipe, *, hashes: Mapping[str, str], device: str = "cpu", warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``env.json`` holds. `hashes`: of model, forget and retain queries; the recipe's is added."""
    import torch

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
        "commit": _commit(),
        "device": device,
        "threads": torch.get_num_threads(),
        "seed": recipe.seed,
        "hashes": {**hashes, "recipe": recipe_hash(recipe)},
        "warnings": list(warnings),
    }


def _commit() -> str | None:
    """The commit of the source tree that this package runs from; None when it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            env=_git_env(),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _git_env() -> dict[str, str]:
    """The environment without git's own variables, which a hook sets to another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def probe(recipe: Recipe, *, on_event: OnEvent = ignore) -> ProbeResult:
    """What the recipe's prefix does to its model, before any training. Writes nothing.

    Raises:
        UserError: as ``unlearn``.
    """
    job = load_job(recipe)
    on_event(Event("probe", 0, 1))
    result = _ask_probe(job, *job.load())
    on_event(Event("probe", 1, 1, result.verdict))
    return result


def evaluate(
    what: str | Path, *, recipe: Recipe | None = None, on_event: OnEvent = ignore
) -> dict[str, dict[str, Any]]:
    """Scores of a run's subjects, or of any model, on a recipe's questions; a run has questions of its own. Writes
    nothing.

    Returns subject -> the object of ``evals/<subject>.json``.

    Raises:
        UserError: a model without a recipe; otherwise as ``unlearn``.
    """
    if (Path(what) / "recipe.yaml").exists():
        run = find_run(what)
        job = load_job(recipe or load_recipe(run.recipe))
        asked = subjects(run, job.recipe)
    elif recipe is None:
        if Path(what).suffix in (".yaml", ".yml"):
            raise UserError(f"{what}: is a recipe, not a model", f"duet evaluate MODEL --recipe {what}")
        raise UserError(f"{what}: a model has no questions of its own", "name a recipe that has, with --recipe")
    else:
        job = load_job(recipe)
        asked = iter([ModelSubject("model", *load_subject_model(str(what), recipe))])
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for one in asked:
        results[one.name], samples[one.name] = _ask_subject(job, one, results.get("base"), on_event)
    return with_summaries(results, samples, job.recipe.evaluate)


def chat(path: Path | str, question: str, *, max_new_tokens: int = 64, on_event: OnEvent = ignore) -> dict[str, str]:
    """One question to base, base + prefix and student of a finished run: label -> greedy answer.

    Raises:
        UserError: no such run, or it has no student yet.
    """
    run = find_run(path)
    recipe = load_recipe(run.recipe)
    require_student(run, recipe)
    messages, answers = [({"role": "user", "content": question},)], {}
    without_oracle = replace(recipe, model=replace(recipe.model, oracle=None))
    for number, subject in enumerate(subjects(run, without_oracle)):
        on_event(Event("chat", number, 3, subject.name))
        response = subject.generate(messages, max_new_tokens=max_new_tokens, batch_size=1)[0]
        answers[{"prefix": "base + prefix"}.get(subject.name, subject.name)] = response
    on_event(Event("chat", 3, 3))
    return answers


def lm_eval(
    what: str | Path, tasks: Sequence[str], *, settings: Mapping[str, Any], include: Path | None = None
) -> dict[str, Any]:
    """lm-eval's tasks on a run's student, or on any model; of a run, written to ``evals/lm_eval-<tasks>.json``.

    Returns what ``evals.benchmarks.lm_eval.Harness.record`` is.

    Raises:
        UserError: as ``evals.benchmarks.lm_eval.run_lm_eval``; the run has no student yet, or one that is no model.
    """
    from duet_unlearn.evals.benchmarks.lm_eval import run_lm_eval

    if not (Path(what) / "recipe.yaml").exists():
        return run_lm_eval(*load_model(model_folder(str(what))), tasks, settings, include=include).record
    run = find_run(what)
    student = load_student(run, load_recipe(run.recipe))
    if not isinstance(student, ModelSubject):
        raise UserError(
            f"{run.path}: lm-eval asks models, and this run's student is a model with something beside it",
            "ask it with evaluate.benchmarks or evaluate.sets, which take any student; or ask its model alone",
        )
    record = run_lm_eval(student.model, student.tokenizer, tasks, settings, include=include).record
    atomic_write_json(run.evals / f"lm_eval-{'-'.join(tasks)[:80]}.json", record)
    return record


def build_lab(out: Path | str | None = None, *, on_event: OnEvent = ignore) -> Path:
    """Train the lab's models anew, each pair at once; into the package if `out` is None. Returns the folder."""
    from duet_unlearn.lab.pretraining import build
    from duet_unlearn.lab.quality import write_cards
    from duet_unlearn.lab.references import MODELS

    folder = Path(out) if out else MODELS
    build(("base", "oracle"), folder, on_event=on_event)
    build(("arithmetic", "plus-minus"), folder, on_event=on_event)
    write_cards(folder, on_event=on_event)
    return folder


def _start(run: Run, recipe: Recipe, on_event: OnEvent) -> str | None:
    """The model that training starts from, where it is not the base; what comes first is done now."""
    if recipe.after is None:
        return recipe.model.start
    first = load_recipe(recipe.after)
    if not first.method.changes_weights:
        raise UserError(
            f"after: {recipe.after} changes no weights ({first.method.name}), so nothing can start from its student",
            "name a recipe that trains, or none",
        )
    model = replace(recipe.model, lora=first.model.lora)
    earlier = replace(recipe, name=first.name, model=model, method=first.method, train=first.train, after=first.after)
    before = run.path / "before"
    done = unlearn(replace(earlier, out=None), out=before, like=run.path, on_event=on_event)
    _take_baselines(run, done)
    return str(done.path)


def _baselines(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[ModelSubject]:
    """What the base is asked as: with the prefix too, where the method has a teacher."""
    base = ModelSubject("base", model, tokenizer)
    teacher = "teacher" in job.recipe.method.needs
    return [base, replace(base, name="prefix", prefix=prefix_of(job.recipe))] if teacher else [base]


def _take_baselines(run: Run, other: Run) -> None:
    """Take over what base, prefix and oracle said in another run, if it asked the same models the same questions."""
    if not other.env.exists() or not run.env.exists():
        return
    mine, theirs = (json.loads(one.env.read_text(encoding="utf-8"))["hashes"] for one in (run, other))
    same = ("model", "oracle", "tokenizer", "evaluation questions", "settings")
    if any(mine.get(part) != theirs.get(part) for part in same):
        return
    for name in ("base", "prefix", "oracle"):
        scores, samples = other.evals / f"{name}.json", other.samples / f"{name}.jsonl"
        if scores.exists() and not (run.evals / f"{name}.json").exists():
            atomic_write_text(run.samples / samples.name, samples.read_text(encoding="utf-8"))
            atomic_write_text(run.evals / scores.name, scores.read_text(encoding="utf-8"))


def _write_env(run: Run, job: Job, tokenizer: PreTrainedTokenizerBase) -> None:
    """Note what the run depends on; of a run that goes on, check that it is the same still.

    Raises:
        UserError: the model's weights or the queries were changed since.
    """
    hashes = job.model_hashes(tokenizer) | job.query_hashes()
    if run.env.exists():
        _require_same(run, hashes)
        return
    for warning in job.warnings:
        LOG.warning("warning: %s", warning)
    own = [concept for concept in job.concepts if concept != job.recipe.concept]
    info = env_info(job.recipe, hashes=hashes, device=job.device, warnings=job.warnings)
    atomic_write_json(run.env, info | ({"concepts": own} if own else {}))


def _require_same(run: Run, hashes: dict[str, str]) -> None:
    begun = json.loads(run.env.read_text(encoding="utf-8"))["hashes"]
    for part, value in hashes.items():
        if begun.get(part) != value:
            raise UserError(
                f"{run.path}: this run began with other {part} ({begun.get(part)} then, {value} now)",
                "choose another folder with --out, or put the old ones back",
            )


def _probe(run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent) -> None:
    if run.probe.exists() or "teacher" not in job.recipe.method.needs:
        return
    on_event(Event("probe", 0, 1))
    with timed(run, "probe"):
        result = _ask_probe(job, model, tokenizer)
    if not result.works:
        LOG.warning("warning: %s\nhint: %s", result.verdict, ADVICE)
    atomic_write_json(run.probe, result.to_json())
    on_event(Event("probe", 1, 1, result.verdict))


def _ask_probe(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ProbeResult:
    return probe_prefix(
        model,
        tokenizer,
        with_context(job.train.forget, job.context),
        with_context(job.train.retain, job.context),
        prefix_of(job.recipe),
        k=job.recipe.method.probe_k,
        max_new_tokens=job.recipe.evaluate.max_new_tokens,
        batch_size=job.recipe.evaluate.batch_size,
    )


def _evaluate_subjects(
    run: Run,
    job: Job,
    subjects: Sequence[Subject],
    on_event: OnEvent,
) -> None:
    """Evaluate what has no scores yet: samples first, then scores, whose file says that both are whole."""
    for subject in subjects:
        name = subject.name
        path = run.evals / f"{name}.json"
        if path.exists():
            continue
        base = json.loads((run.evals / "base.json").read_text(encoding="utf-8")) if name != "base" else None
        with timed(run, "evaluate"):
            scores, samples = _ask_subject(job, subject, base, on_event)
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        atomic_write_text(run.samples / f"{name}.jsonl", lines)
        if name == "student" and isinstance(subject, ModelSubject):
            _write_first_tokens(run, job, subject.model, subject.tokenizer)
        atomic_write_json(path, scores)


def _summarise(run: Run, job: Job) -> None:
    """Add what takes several sets, or the oracle beside, to each subject's scores: all of them are there by now."""
    if not job.recipe.evaluate.benchmarks:
        return
    found = {name: run.evals / f"{name}.json" for name in SUBJECTS if (run.evals / f"{name}.json").exists()}
    # Split at line feeds alone: a model may write other characters that end a line.
    lines = {name: (run.samples / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1] for name in found}
    stored = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items()}
    samples = {name: [json.loads(line) for line in lines[name]] for name in found}
    for name, scores in with_summaries(stored, samples, job.recipe.evaluate).items():
        atomic_write_json(found[name], scores)


def _ask_subject(
    job: Job, subject: Subject, base: dict[str, Any] | None, on_event: OnEvent
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    sets, recipe, name = job.suite(), job.recipe, subject.name
    result = run_suite(
        subject,
        sets,
        max_new_tokens=recipe.evaluate.max_new_tokens,
        batch_size=recipe.evaluate.batch_size,
        on_progress=lambda set_name, done, total: on_event(Event(f"ask {name}", done, total, set_name)),
    )
    label = f"student ({recipe.method.name})" if name == "student" else {"prefix": "base + prefix"}.get(name, name)
    shift = job.shift(base["scores"], result.scores) if base else None
    return suite_json(result, sets, subject=name, label=label, shift=shift), result.samples


def _write_first_tokens(run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The probe's first tokens, with the student's beside them."""
    if not run.probe.exists():
        return
    shown = json.loads(run.probe.read_text(encoding="utf-8"))["shift"]
    by_text: dict[str, Query] = {query.text: query for query in (*job.train.forget, *job.train.retain)}
    student = first_tokens(model, tokenizer, [by_text[row["query"]] for row in shown])
    rows = [row | {"student": tokens} for row, tokens in zip(shown, student, strict=True)]
    atomic_write_json(run.evals / "first_tokens.json", rows)


__all__ = ["SUBJECTS", "build_lab", "chat", "evaluate", "export", "lm_eval", "probe", "unlearn"]
