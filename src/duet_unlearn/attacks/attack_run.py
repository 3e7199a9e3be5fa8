"""``duet attack``: a suite of attacks on a run or a model, beside base, base + prefix and oracle.

Results lie in ``attacks/<subject>/<attack>.json``. One that is there is not done again, unless its settings, its
goal or the subject's weights have changed, or it failed; so what was stopped goes on when the same is asked again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from duet_unlearn import __version__
from duet_unlearn.attacks import Attack, AttackGoal, AttackResult, AttackSuite, draw_goal, finding, run_attack
from duet_unlearn.attacks.result import from_json, to_json
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json, read_text
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.events import Event, OnEvent, duration_text, ignore
from duet_unlearn.job import Job, hashed, load_job
from duet_unlearn.report import write_report
from duet_unlearn.report.text_tables import WIDTH, blocks
from duet_unlearn.runs import Run, find_run
from duet_unlearn.stats import Score
from duet_unlearn.subjects import SUBJECTS, load_subject_model, require_base, require_student, subjects, weights_of
from duet_unlearn.teacher.targets import weights_id

TOKENS_PER_SECOND = 1e4
"""Until some have been measured."""


@dataclass(frozen=True)
class Attacked:
    """Where the results of a suite lie, and what it came to."""

    folder: Path
    goal: AttackGoal
    results: dict[str, dict[str, AttackResult]]
    """Attack -> subject -> result, in the suite's order."""


def attack_run(
    path: Path | str, suite: AttackSuite, *, like: Path | str | None = None, on_event: OnEvent = ignore
) -> Attacked:
    """Attack a run's student, and its base, base + prefix and oracle for comparison; results go into its ``attacks/``
    and its report.

    `like` is another run that was attacked: what base, prefix and oracle gave away there is taken over, if it was the
    same attack, with the same goal, on the same weights.

    Raises:
        UserError: no such run, or no student yet; nothing that was forgotten has an answer.
    """
    run = find_run(path)
    recipe = load_recipe(run.recipe)
    require_student(run, recipe)
    require_base(run, recipe)
    folders = [run.path / "attacks", *([Path(like) / "attacks"] if like else [])]
    weights = _weights(recipe) | {"student": _student_weights(run, recipe)}
    if like and not folders[1].is_dir():
        raise UserError(
            f"{like}: nothing to take over, this run was not attacked", "attack it first, or leave --like out"
        )
    try:
        return _run_suite(suite, load_job(recipe), partial(subjects, run, recipe), weights, folders, on_event)
    finally:
        write_report(run.path)  # also of what was done when it was stopped


def attack_model(
    model: str, recipe: Recipe, suite: AttackSuite, *, out: Path | str, on_event: OnEvent = ignore
) -> Attacked:
    """Attack any model about what a recipe forgets, beside that recipe's base, base + prefix and oracle.

    Raises:
        UserError: the model cannot be loaded; nothing that was forgotten has an answer.
    """

    def attacked(names: set[str]) -> Iterator[Subject]:
        yield from subjects(None, recipe, names)
        if "model" in names:
            yield ModelSubject("model", *load_subject_model(model, recipe))

    weights = _weights(recipe) | {"model": weights_of(model)}
    return _run_suite(suite, load_job(recipe), attacked, weights, [Path(out)], on_event)


@dataclass(frozen=True)
class AttackTask:
    """One attack on one subject."""

    subject: str
    attack: Attack
    stamp: Mapping[str, Any]
    """What its result depends on: if any of it changes, the attack is carried out again."""

    def path(self, folder: Path) -> Path:
        """Where its result lies."""
        return folder / self.subject / f"{self.attack.name}.json"

    def stored(self, folders: Sequence[Path]) -> dict[str, Any] | None:
        """The result, where it is there already: in its own folder, the first, or, of what is no student, in
        another's."""
        for place, folder in enumerate(folders):
            path = self.path(folder)
            if not path.is_file() or (place and self.subject == "student"):
                continue
            stored = json.loads(read_text(path))
            if stored["status"] != "failed" and all(stored.get(key) == value for key, value in self.stamp.items()):
                return stored
        return None


def _run_suite(
    suite: AttackSuite,
    job: Job,
    load_subjects: Callable[[set[str]], Iterator[Subject]],
    weights: Mapping[str, str | None],
    folders: Sequence[Path],
    on_event: OnEvent,
) -> Attacked:
    """Carry out what is not stored yet. `load_subjects` holds one model in memory at a time."""
    goal = goal_of(job)
    goal_id, facts = hashed(goal.stored()), [query.id for query in goal.target_facts]
    tasks = [
        AttackTask(
            subject,
            one,
            {
                "config": _as_json(one.stored_settings()),
                "goal": goal_id,
                "under": cache_fingerprint(one, job),
                "weights": weights[subject],
            },
        )
        for subject in weights
        if weights[subject] is not None
        for one in suite.attacks
    ]
    results: dict[str, dict[str, AttackResult]] = {one.name: {} for one in suite.attacks}
    left: list[AttackTask] = []
    for task in tasks:
        if (stored := task.stored(folders)) is None:
            left.append(task)
            continue
        results[task.attack.name][task.subject] = from_json(stored)
        path = task.path(folders[0])
        if not path.is_file() or json.loads(read_text(path)) != stored:
            atomic_write_json(path, stored)

    def seconds(task: AttackTask) -> float:
        """As long as the attack took on another subject, or else by its tokens at the speed so far."""
        if seen := [one.cost.seconds for one in results[task.attack.name].values() if one.status == "done"]:
            return sum(seen) / len(seen)
        done = [one.cost for found in results.values() for one in found.values()]
        spent, tokens = sum(cost.seconds for cost in done), sum(cost.tokens for cost in done)
        return task.attack.num_tokens(goal) / (tokens / spent if spent and tokens else TOKENS_PER_SECOND)

    def tell(task: AttackTask, done: int, total: int) -> None:
        rest = left[left.index(task) :]
        inside = f" {done}/{total}" if total else ""
        text = f"{task.subject}: {task.attack.name}{inside}; about {duration_text(sum(map(seconds, rest)))} left"
        on_event(Event("attack", len(tasks) - len(rest), len(tasks), text))

    for subject in load_subjects({task.subject for task in left}):
        for task in (task for task in left if task.subject == subject.name):
            tell(task, 0, 0)
            result = run_attack(subject, task.attack, goal, partial(tell, task))
            results[task.attack.name][subject.name] = result
            about = {"title": task.attack.title, "access": task.attack.access}
            atomic_write_json(task.path(folders[0]), about | to_json(result, facts=facts) | dict(task.stamp))
        del subject  # before the next model is loaded
    on_event(Event("attack", len(tasks), len(tasks), "done"))
    ordered = {name: {who: found[who] for who in weights if who in found} for name, found in results.items()}
    return Attacked(folders[0], goal, ordered)


def goal_of(job: Job) -> AttackGoal:
    """What attacks on a run go for: the same for every method and seed on the same questions."""
    recipe = job.recipe
    goal = draw_goal(
        recipe.concept,
        job.train.forget,
        job.suite(),
        max_new_tokens=recipe.evaluate.max_new_tokens,
        batch_size=recipe.evaluate.batch_size,
    )
    if recipe.evaluate.suite == "queries":
        return goal
    from duet_unlearn.lab.questions import lab_forms

    return replace(goal, forms=lab_forms(goal.target_facts))


# What results depend on ----------------------------------------------------------------------------------------------


def cache_fingerprint(attack: Attack, job: Job) -> str:
    """Identity of what else an attack's result depends on, for every subject alike: how models are loaded, what the
    attack says of itself, and the code."""
    model, template = job.recipe.model, job.recipe.model.chat_template
    if template and Path(template).is_file():
        template = read_text(Path(template))
    return hashed([model.dtype, model.quantise, template, attack.other_inputs(), __version__])


def _weights(recipe: Recipe) -> dict[str, str | None]:
    """Identity of the weights of base, base + prefix and oracle, and of what stands beside them; None where there is no
    such subject."""
    base, oracle = weights_of(recipe.model.path), recipe.model.oracle
    prefix = f"{base}+{hashed([recipe.concept, asdict(recipe.prefix)])}"
    return {"base": base, "prefix": prefix, "oracle": weights_of(oracle) if oracle else None}


def _student_weights(run: Run, recipe: Recipe) -> str | None:
    """The same of a run's student."""
    if recipe.method.changes_weights:
        return weights_id(run.model)
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(run.subject.rglob("*"))
        if path.is_file()
    }
    start = weights_of(recipe.model.start) if recipe.model.start else ""
    return f"{weights_of(recipe.model.path)}+{hashed([_as_json(asdict(recipe.method)), start, recipe.after, files])}"


def _as_json(value: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(value))


# What is read and shown ----------------------------------------------------------------------------------------------


def read_attacks(folder: Path, *, subjects: Sequence[str] = (*SUBJECTS, "model")) -> dict[str, dict[str, Any]]:
    """Attack -> subject -> what is stored, of an ``attacks/`` folder; empty where there is none."""
    found: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        for path in sorted((folder / subject).glob("*.json")):
            found.setdefault(path.stem, {})[subject] = json.loads(read_text(path))
    return found


def attacks_text(results: Mapping[str, Mapping[str, AttackResult]]) -> str:
    """A table: of each attack the share of facts that its strongest instance brings back, subject by subject; then,
    of the model in question, what that is above the oracle, all instances together, and which instance it was."""
    subjects = list(dict.fromkeys(name for found in results.values() for name in found))
    last = subjects[-1]
    head = ["attack", *({"prefix": "base + prefix"}.get(name, name) for name in subjects)]
    body = []
    for name, found in results.items():
        own = found.get(last)
        best = finding(own, found.get("oracle")) if own and last not in ("base", "oracle") else None
        tail = ["-"] * 3
        if own and best:
            scale, digits = (100, 0) if own.metric == "right" else (1, 2)
            value, low, high = (
                f"{scale * part:+.{digits}f}" for part in (best.above.value, best.above.low, best.above.high)
            )
            tail = [f"{value} [{low}, {high}]", _share_text(own.best_of_all), best.instance.name]
        body.append([name, *(_cell(found.get(subject)) for subject in subjects), *tail])
    table = blocks([*head, "above oracle", "any", "strongest"], body, num_fixed=1, width=WIDTH)
    problems = [
        f"{name} on {who}: {one.status}, {one.reason}"
        for name, found in results.items()
        for who, one in found.items()
        if one.status == "failed"
    ]
    note = (
        "Per cent of the facts that come back under an attack's strongest instance; above oracle: in points"
        " (AUC, bits), with 95 % interval; any: facts that at least one instance brings back; n/a: it does not apply."
    )
    return "\n".join([*table, note, *problems])


def _cell(result: AttackResult | None) -> str:
    if result is None:
        return "-"
    if result.status != "done":
        return "failed" if result.status == "failed" else "n/a"
    return _share_text(result.strongest.score, result.metric) if result.strongest else "-"


def _share_text(score: Score, metric: str = "right") -> str:
    if math.isnan(score.value):
        return "-"
    if metric == "right":
        return f"{100 * score.value:.0f}"
    return f"{score.value:.2f} AUC" if metric == "auc" else f"{score.value:.1f} bits"


__all__ = ["Attacked", "attack_model", "attack_run", "attacks_text", "goal_of", "read_attacks"]
