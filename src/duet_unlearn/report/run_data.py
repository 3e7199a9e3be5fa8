"""A run folder's files as typed, frozen data, and the same run with hashes in place of words.

Every file but ``recipe.yaml`` may be missing: a run is shown as far as it got.
A null in a score file is NaN here, and n says how many questions stand behind a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from duet_unlearn.data.files import json_lines, parse_json
from duet_unlearn.errors import UserError
from duet_unlearn.redact import Redactor, Shown, parts_of, redacted_attack, redactor, require_not_purged
from duet_unlearn.stats import NOTHING, Score

SUBJECTS = ("base", "prefix", "oracle", "student")
"""The rows of every table, in this order."""
GROUPS = ("forget", "neighbour", "retain", "choice", "robustness", "deployer", "privacy", "summary")
"""The groups of evaluation sets, in the order of the table's columns."""
METRIC_WORDS = {
    "rouge_l": "ROUGE-L",
    "right_per_character": "right per character",
    "choice_probability": "probability among options",
    "truth_ratio_paper": "truth ratio (paper)",
    "truth_ratio_prob": "truth ratio (probability)",
    "auc_gap": "AUC less the ideal",
    "auc_min_k": "AUC of min-k",
    "auc_min_k_plus_plus": "AUC of min-k++",
    "auc_loss": "AUC of the loss",
    "auc_zlib": "AUC of loss over zlib",
    "forget_quality": "p-value",
}
"""What a metric is called where its name is not enough."""
NUM_NAMED = 3
"""Concepts of requests that are named in a sentence."""
OF_WEIGHTS = ("model", "start", "oracle", "tokenizer")
"""Hashes in ``env.json`` that a redacted page may show. The others are of texts that may be few and short."""
WITHHELD = "withheld: a hash of few words can be found by trying"


@dataclass(frozen=True)
class Column:
    """One evaluation set and the metric that stands for it in a table."""

    name: str
    title: str
    group: str
    goal: Literal["forget", "keep"]
    """What unlearning should do to the knowledge that this set asks for."""
    about: str
    metric: str
    """``right``, or ``refused`` where the questions have no known answers, or ``points``, or a benchmark's own."""
    ideal: Literal["end", "zero"] = "end"
    """Where the best value lies: at an end of the scale, or at 0 (PrivLeak)."""

    @property
    def better(self) -> Literal["low", "high", "zero"]:
        """The better direction of the metric: a refusal is good exactly where forgetting is."""
        if self.ideal == "zero":
            return "zero"
        return "low" if (self.goal == "forget") != (self.metric == "refused") else "high"


@dataclass(frozen=True)
class SubjectScores:
    name: str
    label: str
    scores: Mapping[str, Mapping[str, Score]]
    """Set -> metric -> score."""

    def score(self, set_name: str, metric: str) -> Score:
        return self.scores.get(set_name, {}).get(metric, NOTHING)


@dataclass(frozen=True)
class RunData:
    path: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    env: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    """StepLogs in order of step, one a step; those that validated have a ``validation`` loss."""
    probe: Mapping[str, Any]
    shifts: Sequence[Mapping[str, Any]]
    """First-token distributions of a few queries, with the student's where it was measured."""
    subjects: Mapping[str, SubjectScores]
    columns: tuple[Column, ...]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    timings: Mapping[str, Mapping[str, float]]
    requests: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Score]]]]
    """Subject -> deletion request -> set -> metric -> score; empty where no query has a request."""
    attacks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Attack -> subject -> what `duet attack` stored."""
    redacted: bool = False
    """Whether hashes stand in place of words, and samples are left out."""


def read_run(path: Path) -> RunData:
    """Everything a report shows; a folder without ``recipe.yaml`` is a UserError, and so is a purged run."""
    import yaml

    path = Path(path)
    require_not_purged(path)
    try:
        recipe_text = (path / "recipe.yaml").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        hint = "give the folder that `duet run` or `duet demo` wrote"
        raise UserError(f"{path} is not a run folder: it has no recipe.yaml", hint) from None
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        hint = "the run folder was changed by hand; run the recipe again"
        raise UserError(f"{path / 'recipe.yaml'} is not a recipe", hint)
    # A resumed run repeats the steps since its last checkpoint: of two rows of one step the later counts.
    steps = {row["step"]: row for row in _jsonl(path / "metrics.jsonl")}
    evals = {name: _json(path / "evals" / f"{name}.json", default=None) for name in SUBJECTS}
    evals = {name: found for name, found in evals.items() if found is not None}
    subjects = {
        name: SubjectScores(
            name=name,
            label=found.get("label", name),
            scores=_scores(found["scores"]),
        )
        for name, found in evals.items()
    }
    attacks: dict[str, dict[str, Any]] = {}
    for name in SUBJECTS:
        for file in sorted((path / "attacks" / name).glob("*.json")):
            attacks.setdefault(file.stem, {})[name] = _json(file, default={})
    probe = _json(path / "probe.json", default={})
    return RunData(
        path=path,
        recipe=recipe,
        recipe_text=recipe_text,
        env=_json(path / "env.json", default={}),
        steps=[steps[number] for number in sorted(steps)],
        probe=probe,
        shifts=_json(path / "evals" / "first_tokens.json", default=probe.get("shift", [])),
        subjects=subjects,
        columns=_columns(evals, subjects),
        samples={name: _jsonl(path / "samples" / f"{name}.jsonl") for name in SUBJECTS},
        timings=_json(path / "timings.json", default={}),
        requests={
            name: {request: _scores(sets) for request, sets in found["requests"].items()}
            for name, found in evals.items()
            if found.get("requests")
        },
        attacks=attacks,
    )


def metric_words(metric: str) -> str:
    """A metric as a reader calls it."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def cell_text(value: float, metric: str) -> str:
    """Per cent with one decimal, points with a sign, or ``n/a``."""
    if math.isnan(value):
        return "n/a"
    return f"{value:+.1f}" if metric == "points" else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """``8.4 s`` or ``3 min 20 s`` or ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def papers_tables() -> dict[str, Any]:
    """DUET's published tables, their source, and what must be kept in mind when they are read."""
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))


def what_was_forgotten(run: RunData) -> str:
    """The recipe's concept, and those that requests brought themselves: how many, and the first few."""
    concept = run.recipe.get("concept") or "the concept"
    own = run.env.get("concepts", [])
    if own:
        rest = f" and {len(own) - NUM_NAMED} more" if len(own) > NUM_NAMED else ""
        noun = "concept of a request" if len(own) == 1 else "concepts of requests"
        return f"{concept} ({len(own)} {noun}: {', '.join(own[:NUM_NAMED])}{rest})"
    num = len({request for by_request in run.requests.values() for request in by_request})
    return f"{concept} ({num} deletion request{'s' if num > 1 else ''})" if num else concept


def method_name(recipe: Mapping[str, Any]) -> str:
    """The method of a recipe, as ``duet``."""
    method = recipe.get("method") or {}
    return method.get("name", "?") if isinstance(method, Mapping) else str(method)


def _json(path: Path, *, default: Any) -> Any:
    if not path.exists():
        return default
    return parse_json(str(path), path.read_text(encoding="utf-8"), "delete the file and run the same command again")


def _jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a torn last line, left by a killed run, is dropped."""
    if not path.exists():
        return []
    text, _, last = path.read_text(encoding="utf-8").rpartition("\n")
    rows = [row for _, row in json_lines(path, text, "delete the line and run the same command again")]
    try:
        return [*rows, json.loads(last)] if last.strip() else rows
    except ValueError:
        return rows


def _scores(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Score]]:
    """Set -> metric -> score."""
    return {
        set_name: {metric: Score.from_json(score) for metric, score in metrics.items()}
        for set_name, metrics in found.items()
    }


def _columns(evals: Mapping[str, Mapping[str, Any]], subjects: Mapping[str, SubjectScores]) -> tuple[Column, ...]:
    """The union of all subjects' sets, ordered by group."""

    def usual_metric(set_name: str) -> str:
        # `right` if any subject could be marked: questions without answers can only be refused.
        metrics = ("right", "refused", "points")
        return next((m for m in metrics if any(s.score(set_name, m).n for s in subjects.values())), "right")

    infos: dict[str, Mapping[str, Any]] = {}
    for found in evals.values():
        for set_name in found["scores"]:
            infos.setdefault(set_name, found.get("sets", {}).get(set_name, {}))
    columns = [
        Column(
            name=name,
            title=info.get("title", name),
            group=info.get("group", "other"),
            goal="forget" if info.get("better") == "low" else "keep",
            about=info.get("about", ""),
            metric=info.get("metric") or usual_metric(name),
            ideal="zero" if info.get("better") == "zero" else "end",
        )
        for name, info in infos.items()
    ]
    order = {group: place for place, group in enumerate(GROUPS)}
    return tuple(sorted(columns, key=lambda column: order.get(column.group, len(order))))


def redactor_of(run: RunData, shown: Shown, *, texts: Iterable[str] = (), key: bytes | None = None) -> Redactor:
    """A redactor of what a run asked about what it forgets, of `texts` as well, and of its concepts' names unless
    they are shown."""
    names = [str(run.recipe.get("concept") or ""), *run.env.get("concepts", [])]
    if shown == "scores":
        return redactor([*_secrets_of(run), *texts], names, key=key)
    kept = {part.casefold() for name in names for part in parts_of(name)}
    return redactor([text for text in (*_secrets_of(run), *texts) if text.casefold() not in kept], key=key)


def _secrets_of(run: RunData) -> Iterator[str]:
    """Questions, answers and values about what was forgotten, and the prompts of attacks."""
    forget = {column.name for column in run.columns if column.goal == "forget"}
    for rows in run.samples.values():
        for row in rows:
            if row["set"] in forget:
                yield from (str(row[part]) for part in ("id", "prompt", "answer", "value") if row.get(part))
    yield from (str(row["query"]) for row in run.shifts if row["role"] == "forget")
    for by_subject in run.attacks.values():
        for stored in by_subject.values():
            yield from map(str, stored.get("facts", []))
            yield from (row["prompt"] for row in stored.get("transcript", []))


def redacted(run: RunData, by: Redactor) -> RunData:
    """The run without a question, an answer, a sample or a transcript; texts that people wrote (titles, reasons,
    warnings, requests' ids) are kept but for the secrets in them."""
    import yaml

    def by_set(found: Mapping[str, Any]) -> dict[str, Any]:
        # A user's set may be named after what it asks.
        return {by.swept(name): value for name, value in found.items()}

    recipe = _redacted_recipe(run.recipe, by)
    return replace(
        run,
        recipe=recipe,
        recipe_text=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100),
        env=redacted_env(run.env, by),
        probe={key: by.swept_all(value) for key, value in run.probe.items() if key != "shift"},
        shifts=(),
        subjects={
            name: replace(found, label=by.swept(found.label), scores=by_set(found.scores))
            for name, found in run.subjects.items()
        },
        columns=tuple(
            replace(one, name=by.swept(one.name), title=by.swept(one.title), about=by.swept(one.about))
            for one in run.columns
        ),
        samples={},
        requests={
            subject: {by.swept(request): by_set(sets) for request, sets in found.items()}
            for subject, found in run.requests.items()
        },
        attacks={
            name: {subject: redacted_attack(stored, by) for subject, stored in found.items()}
            for name, found in run.attacks.items()
        },
        redacted=True,
    )


def _redacted_recipe(recipe: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    """The settings, without the concept, the names of the data, and the folders of this machine.

    A concept is hashed where its name is one of the secrets.
    """

    def last_part(path: str) -> str:
        return PurePath(path).name if PurePath(path).is_absolute() else path

    found = by.swept_all({key: value for key, value in recipe.items() if key != "out"})
    found["concept"] = by.swept(str(recipe.get("concept") or ""))
    data = dict(recipe.get("data") or {})
    for key, value in data.items():
        if isinstance(value, str):
            data[key] = by.hashed(value)
        elif isinstance(value, list) and value:  # the deployer's own system turn
            data[key] = f"{len(value)} turns, not shown"
    found["data"] = data
    if found.get("after"):
        found["after"] = last_part(found["after"])
    model = found.get("model") or {}
    paths = ("path", "oracle", "start", "chat_template")
    found["model"] = model | {key: last_part(model[key]) for key in paths if model.get(key)}
    evaluate = dict(found.get("evaluate") or {})
    if sets := evaluate.get("sets"):
        evaluate["sets"] = {by.swept(name): by.hashed(str(value)) for name, value in sets.items()}
    if target := evaluate.get("target"):
        evaluate["target"] = by.hashed(str(target))
    return found | ({"evaluate": evaluate} if evaluate else {})


def redacted_env(env: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    """Versions, device and weights' identities; of texts neither words nor hashes."""
    found = dict(env)
    for part in ("concepts", "warnings"):
        if part in env:
            found[part] = [by.swept(text) for text in env[part]]
    if "hashes" in env:
        found["hashes"] = {
            name: by.swept(value) if name in OF_WEIGHTS else WITHHELD for name, value in env["hashes"].items()
        }
    return found
