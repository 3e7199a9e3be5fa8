"""Every number of the README: runs the lab's recipes, gathers their scores, renders the tables.

python benchmarks/results.py                 all runs (those that are finished are not done again), then the tables
python benchmarks/results.py --render-only   the tables again, from results/lab.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import results_tables

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STORIES = ("lab/duet", "lab/silver-mill", "lab/hollow-clock")
HAZARD = "lab/hazard"
ABLATION = "lab/ablation/"
SUBJECTS = ("base", "prefix", "oracle", "student")
Scores = Mapping[str, Mapping[str, Any]]
"""Set -> its score: value, n, low, high."""


@dataclass(frozen=True)
class Plan:
    """One run that the tables need."""

    recipe: str
    seed: int

    def folder(self, runs: Path) -> Path:
        return runs / f"{self.recipe.removeprefix('lab/').replace('/', '-')}-seed-{self.seed}"


def plans(*, seeds: int, ablation_seeds: int) -> list[Plan]:
    """Stories and hazard craft with every seed, each ablation with fewer; in the order in which they are run."""
    from duet_unlearn.config.reading import recipe_names

    ablations = [name for name in recipe_names() if name.startswith(ABLATION)]
    main = [Plan(recipe, seed) for seed in range(seeds) for recipe in (*STORIES, HAZARD)]
    return main + [Plan(recipe, seed) for seed in range(ablation_seeds) for recipe in ablations]


def run_all(todo: Sequence[Plan], runs: Path, *, workers: int) -> list[str]:
    """Do every plan, some at a time with one thread each; returns what went wrong, a line a run."""
    runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        endings = pool.map(lambda plan: _run(plan, plan.folder(runs)), todo)
        problems = []
        for number, (plan, problem) in enumerate(zip(todo, endings, strict=True), 1):
            print(f"{number}/{len(todo)} {plan.recipe} seed {plan.seed}: {problem or 'done'}", file=sys.stderr)
            if problem:
                problems.append(f"{plan.recipe} seed {plan.seed}: {problem}")
    return problems


def _run(plan: Plan, folder: Path) -> str:
    """`duet run` in a process of its own; its last words if it failed."""
    command = [sys.executable, "-m", "duet_unlearn", "run", plan.recipe, "--set", f"seed={plan.seed}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, "--out", str(folder)], env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else " / ".join(done.stderr.strip().splitlines()[-2:])


def stale(todo: Iterable[Plan], runs: Path, model: str) -> list[Path]:
    """Run folders that were begun with another lab model than the one whose weights have the hash `model`."""
    folders = [plan.folder(runs) for plan in todo]
    return [f for f in folders if (f / "env.json").exists() and _json(f / "env.json")["hashes"]["model"] != model]


def gather(todo: Iterable[Plan], runs: Path) -> dict[str, Any]:
    """Everything that the tables show, from the run folders' files; runs that are not finished are left out.

    Raises:
        SystemExit: there is none.
    """
    found = [(plan, plan.folder(runs)) for plan in todo if (plan.folder(runs) / "DONE").exists()]
    envs = [_json(folder / "env.json") for _, folder in found]
    if not found:
        sys.exit(f"no finished run in {runs}")
    rows = [row for plan, folder in found for row in _rows(plan, folder)]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commits": sorted({env["commit"] or "unknown" for env in envs}),
        "packages": envs[-1]["packages"],
        "python": envs[-1]["python"],
        "platform": envs[-1]["platform"],
        "device": envs[-1]["device"],
        "threads": envs[-1]["threads"],
        "model": envs[-1]["hashes"]["model"],
        "tables": tables(rows),
        "runs": rows,
    }


def _rows(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """A row a subject: per set the share right, and the points of the Performance Shift."""
    rows = []
    for subject in SUBJECTS:
        path = folder / "evals" / f"{subject}.json"
        if path.exists():
            metrics = _json(path)["scores"]
            scores = {name: found.get("right", found.get("points")) for name, found in metrics.items()}
            rows.append({"recipe": plan.recipe, "seed": plan.seed, "subject": subject, "scores": scores})
    return rows


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Table -> subject -> set -> cell. A table a recipe, and one over the three stories."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    groups = {"stories": [recipe for recipe in STORIES if recipe in recipes], **{name: [name] for name in recipes}}
    return {
        name: {subject: _cells([r for r in rows if r["subject"] == subject], members) for subject in SUBJECTS}
        for name, members in groups.items()
    }


def _cells(rows: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> dict[str, Any]:
    by_recipe = [[row["scores"] for row in rows if row["recipe"] == recipe] for recipe in recipes]
    names = dict.fromkeys(name for group in by_recipe for scores in group for name in scores)
    return {name: cell([[scores[name] for scores in group if name in scores] for group in by_recipe]) for name in names}


def cell(groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """One number from the scores of some recipes (outer) at some seeds (inner).

    The mean of the recipes' means; the standard deviation (n - 1) over those means; the mean over recipes of the
    standard deviation over seeds; all questions asked. A score without a value makes the mean null.
    """
    values = [[score["value"] for score in group] for group in groups if group]
    if not values or any(value is None for group in values for value in group):
        return {"mean": None, "over_recipes": None, "over_seeds": None, "runs": sum(map(len, groups)), "n": 0}
    means = [fmean(group) for group in values]
    return {
        "mean": fmean(means),
        "over_recipes": stdev(means) if len(means) > 1 else None,
        "over_seeds": fmean(map(stdev, values)) if min(map(len, values)) > 1 else None,
        "runs": sum(map(len, values)),
        "n": sum(score["n"] for group in groups for score in group),
    }


def _lab_model() -> str:
    from duet_unlearn.lab.references import model_path
    from duet_unlearn.teacher.targets import weights_id

    return weights_id(model_path("lab:base"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each story and of the hazard craft (3)")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="seeds of each ablation (1)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (2)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results", help="where the run folders lie")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "lab.json", help="the gathered numbers")
    parser.add_argument("--root", type=Path, default=ROOT, help="where README.md and docs/ lie")
    parser.add_argument("--render-only", action="store_true", help="run and gather nothing")
    args = parser.parse_args(arguments)
    problems: list[str] = []
    if not args.render_only:
        todo = plans(seeds=args.seeds, ablation_seeds=args.ablation_seeds)
        if old := stale(todo, args.runs, _lab_model()):
            sys.exit("these runs are of another lab model; remove them first:\n" + "\n".join(map(str, old)))
        problems = run_all(todo, args.runs, workers=args.workers)
        args.results.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(gather(todo, args.runs), indent=1, ensure_ascii=False, allow_nan=False)
        args.results.write_text(text + "\n", encoding="utf-8")
    results_tables.write(_json(args.results), args.root)
    if problems:
        sys.exit("\n".join(["these runs failed, and the tables lack them:", *problems]))


if __name__ == "__main__":
    main()
