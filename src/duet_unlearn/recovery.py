"""``duet attack``: a suite of attacks on a run or a model, beside base, base + prefix and oracle.

Results lie in ``attacks/<subject>/<attack>.json``. One that is there is not done again, unless its settings, its
goal or the subject's weights have changed, or it failed; so what was stopped goes on when the same is asked again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from duet_unlearn import __version__
from duet_unlearn.attacks import Attack, AttackResult, AttackSuite, Goal, attack, draw_goal, finding
from duet_unlearn.attacks.result import from_json, to_json
from duet_unlearn.attacks.run import Dependent
from duet_unlearn.attacks.suite import title_of
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json, read_text
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.events import Event, OnEvent, ignore, words
from duet_unlearn.job import Job, hashed, load_job
from duet_unlearn.report import write_report
from duet_unlearn.report.text_tables import WIDTH, blocks
from duet_unlearn.runs import Run, find_run
from duet_unlearn.stats import Score
from duet_unlearn.subjects import SUBJECTS, load_subject_model, require_base, require_student, subjects, weights_of
from duet_unlearn.teacher.targets import weights_id

SPEED = 1e4
"""Tokens a second, until some have been measured."""


@dataclass(frozen=True)
class Attacked:
    """Where the results of a suite lie, and what it came to."""

    folder: Path
    goal: Goal
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
    weights = {name: _weights(name, run, recipe) for name in SUBJECTS}
    if like and not folders[1].is_dir():
        raise UserError(
            f"{like}: nothing to take over, this run was not attacked", "attack it first, or leave --like out"
        )
    try:
        return _carry_out(suite, load_job(recipe), run, weights, folders, on_event)
    finally:
        write_report(run.path)  # also of what was done when it was stopped


def attack_model(
    model: str, recipe: Recipe, suite: AttackSuite, *, out: Path | str, on_event: OnEvent = ignore
) -> Attacked:
    """Attack any model about what a recipe forgets, beside that recipe's base, base + prefix and oracle.

    Raises:
        UserError: the model cannot be loaded; nothing that was forgotten has an answer.
    """
    weights = {name: _weights(name, None, recipe) for name in SUBJECTS[:3]} | {"model": weights_of(model)}
    return _carry_out(suite, load_job(recipe), model, weights, [Path(out)], on_event)


def goal_of(job: Job) -> Goal:
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
    from duet_unlearn.lab.forms import lab_forms

    return replace(goal, forms=lab_forms(goal.wanted))


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
        tail = (
            [_points(best.above, own.metric), _share(own.best_of_all), best.instance.name]
            if own and best
            else ["-"] * 3
        )
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
    return _share(result.strongest.score, result.metric) if result.strongest else "-"


def _share(score: Score, metric: str = "right") -> str:
    if math.isnan(score.value):
        return "-"
    return {"right": f"{100 * score.value:.0f}", "auc": f"{score.value:.2f} AUC", "bits": f"{score.value:.1f} bits"}[
        metric
    ]


def _points(above: Score, metric: str) -> str:
    scale, digits = (100, 0) if metric == "right" else (1, 2)
    value, low, high = (f"{scale * one:+.{digits}f}" for one in (above.value, above.low, above.high))
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Task:
    """One attack on one subject."""

    subject: str
    attack: Attack
    stamp: Mapping[str, Any]
    """What its result depends on: if any of it changes, the attack is carried out again."""


def _carry_out(
    suite: AttackSuite,
    job: Job,
    attacked: Run | str,
    weights: Mapping[str, str | None],
    folders: Sequence[Path],
    on_event: OnEvent,
) -> Attacked:
    goal, results = goal_of(job), {one.name: {} for one in suite.attacks}
    goal_id = hashed(asdict(goal))
    tasks = [
        Task(
            name,
            one,
            {"config": _plain(asdict(one)), "goal": goal_id, "under": _under(one, job), "weights": weights[name]},
        )
        for name in weights
        if weights[name] is not None
        for one in suite.attacks
    ]
    there = {(t.subject, t.attack.name): stored for t in tasks if (stored := _stored(t, folders))}
    for task in tasks:
        if stored := there.get((task.subject, task.attack.name)):
            results[task.attack.name][task.subject] = from_json(stored)
            _write(folders[0], task, stored)
    left = [task for task in tasks if (task.subject, task.attack.name) not in there]
    clock = Clock(goal, results)
    for subject in _subjects(attacked, job.recipe, {task.subject for task in left}):
        for task in [task for task in left if task.subject == subject.name]:

            def watch(done: int, total: int, task: Task = task) -> None:
                _tell(on_event, tasks, left, task, clock, f" {done}/{total}" if total else "")

            watch(0, 0)
            result = attack(subject, task.attack, goal, watch)
            results[task.attack.name][subject.name] = result
            facts = [query.id for query in goal.wanted]
            _write(folders[0], task, _labelled(task) | to_json(result, facts=facts) | dict(task.stamp))
        del subject
    on_event(Event("attack", len(tasks), len(tasks), "done"))
    ordered = {name: {who: found[who] for who in weights if who in found} for name, found in results.items()}
    return Attacked(folders[0], goal, ordered)


def _labelled(task: Task) -> dict[str, Any]:
    return {"title": title_of(task.attack), "access": task.attack.access}


@dataclass(frozen=True)
class Clock:
    """How long attacks take: as long as on another subject, or else by their tokens at the speed so far."""

    goal: Goal
    results: Mapping[str, Mapping[str, AttackResult]]

    def seconds(self, task: Task) -> float:
        """An attack's expected time."""
        if seen := [one.cost.seconds for one in self.results[task.attack.name].values() if one.status == "done"]:
            return sum(seen) / len(seen)
        done = [one.cost for found in self.results.values() for one in found.values()]
        seconds, tokens = sum(cost.seconds for cost in done), sum(cost.tokens for cost in done)
        return task.attack.tokens(self.goal) / (tokens / seconds if seconds and tokens else SPEED)


def _tell(on_event: OnEvent, tasks: Sequence[Task], left: Sequence[Task], now: Task, clock: Clock, inside: str) -> None:
    rest = left[left.index(now) :]
    seconds = sum(clock.seconds(task) for task in rest)
    text = f"{now.subject}: {now.attack.name}{inside}; about {words(seconds)} left"
    on_event(Event("attack", len(tasks) - len(rest), len(tasks), text))


def _subjects(attacked: Run | str, recipe: Recipe, names: set[str]) -> Iterator[Subject]:
    """The subjects to attack, one model in memory at a time."""
    yield from subjects(attacked if isinstance(attacked, Run) else None, recipe, names)
    if isinstance(attacked, str) and "model" in names:
        yield ModelSubject("model", *load_subject_model(attacked, recipe))


def _stored(task: Task, folders: Sequence[Path]) -> dict[str, Any] | None:
    """The result of a task that is there already: in its own folder, or, of what is no student, in another's."""
    for place, folder in enumerate(folders):
        path = folder / task.subject / f"{task.attack.name}.json"
        if not path.is_file() or (place and task.subject == "student"):
            continue
        stored = json.loads(read_text(path))
        if stored["status"] != "failed" and all(stored.get(key) == value for key, value in task.stamp.items()):
            return stored
    return None


def _write(folder: Path, task: Task, stored: Mapping[str, Any]) -> None:
    path = folder / task.subject / f"{task.attack.name}.json"
    if not path.is_file() or json.loads(read_text(path)) != stored:
        atomic_write_json(path, stored)


def _under(one: Attack, job: Job) -> str:
    """Identity of what else an attack's result depends on, for every subject alike: how models are loaded, what the
    attack says of itself, and the code."""
    model, beside = job.recipe.model, one.beside() if isinstance(one, Dependent) else []
    template = model.chat_template
    if template and Path(template).is_file():
        template = read_text(Path(template))
    return hashed([model.dtype, model.quantise, template, beside, __version__])


def _weights(name: str, run: Run | None, recipe: Recipe) -> str | None:
    """Identity of a subject's weights and of what stands beside them; None where there is no such subject."""
    base = weights_of(recipe.model.path)
    if name == "base":
        return base
    if name == "prefix":
        return f"{base}+{hashed([recipe.concept, asdict(recipe.prefix)])}"
    if name == "oracle":
        return weights_of(recipe.model.oracle) if recipe.model.oracle else None
    assert run is not None
    if not recipe.method.changes_weights:
        beside = {path.name: _digest(path) for path in sorted(run.subject.rglob("*")) if path.is_file()}
        start = weights_of(recipe.model.start) if recipe.model.start else ""
        return f"{base}+{hashed([_plain(asdict(recipe.method)), start, recipe.after, beside])}"
    return weights_id(run.model)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(value))


__all__ = ["Attacked", "attack_model", "attack_run", "attacks_text", "goal_of", "read_attacks"]
