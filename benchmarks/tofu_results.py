"""DUET on TOFU's forget10 against the model retrained without it; models by benchmarks/tofu.py, recipe in tofu.yaml.

python benchmarks/tofu_results.py tune    settings, on 20 other authors; writes results/tofu-tuning.json
python benchmarks/tofu_results.py run     forget10, three seeds; writes results/tofu.json and docs/tofu.md

The rule of `tune`, fixed beforehand: of the settings that lose 0.05 of ROUGE-L recall at most on authors to keep, the
one with the lowest recall on the authors to forget. Those are 20 that both models have read and that no test asks
about.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tofu import FIRST, SETTINGS, WORK, Row, Tofu, check

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.data.query import Query, write_queries
from duet_unlearn.runs import Run

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "tofu.yaml"
PAGE = HERE.parent / "docs" / "tofu.md"
DEVELOPMENT = slice(40, 60)
"""Authors, by their place among the 100 that are read."""
TRIED = tuple(
    {"train.rate": rate, "model.lora": lora, "method.positions": positions}
    for lora, rate in (("{rank: 8}", 2e-3), ("{rank: 8}", 5e-3), ("null", 3e-4))
    for positions in (1, 8)
)
DEAR = 0.05
SEEDS = (0, 1, 2)
METRICS = {
    "forget, ROUGE-L recall": ("tofu_forget", "rouge_l"),
    "forget, probability": ("tofu_forget_likelihood", "probability"),
    "forget, truth ratio": ("tofu_forget_likelihood", "truth_ratio"),
    "forget, extraction strength": ("tofu_forget_likelihood", "extraction_strength"),
    "forget, exact memorisation": ("tofu_forget_likelihood", "exact_memorisation"),
    "forget quality, p": ("tofu_forget_quality", "forget_quality"),
    "model utility": ("tofu_utility", "model_utility"),
    "retain, ROUGE-L recall": ("tofu_retain", "rouge_l"),
    "retain, probability": ("tofu_retain_likelihood", "probability"),
    "retain, truth ratio": ("tofu_retain_likelihood", "truth_ratio"),
    "real authors, ROUGE-L recall": ("tofu_real_authors", "rouge_l"),
    "world facts, ROUGE-L recall": ("tofu_world_facts", "rouge_l"),
}


def queries(rows: Sequence[Row], name: str, *, forget: bool = False) -> list[Query]:
    """Rows as queries; those to be forgotten name their author."""
    return [
        Query(
            id=f"{name}/{place}",
            messages=({"role": "user", "content": row.question},),
            answer=row.answer,
            request=str(row.author) if forget else "",
            concept=f"the author {row.author}" if forget else None,
        )
        for place, row in enumerate(rows)
    ]


def write_data() -> None:
    """The query files of the recipe and of its tuning. Whom the tests ask about, no training query names."""
    kept, rng = Tofu("retrained"), random.Random("retain")
    development = kept.everyone[DEVELOPMENT]
    tested = kept.everyone[:FIRST]
    others = [row for row in kept.rows if row.author not in development and row.author not in tested]
    retain = rng.sample(others, 400)
    held_out = rng.sample([row for row in others if row not in retain], 150) + rng.sample(kept.plain, 50)
    write_queries(WORK / "retain.jsonl", queries(retain, "retain"))
    forget = [row for row in kept.rows if row.author in development]
    write_queries(WORK / "development.jsonl", queries(forget, "development", forget=True))
    write_queries(WORK / "held_out.jsonl", queries(held_out, "held_out"))


def tune() -> None:
    """Try the settings on the development authors and write down what they did."""
    tried = []
    for number, settings in enumerate(TRIED):
        fixed = {
            "model.oracle": "null",
            "data.forget": WORK / "development.jsonl",
            "evaluate.benchmarks": "[]",
            "evaluate.sets": f"{{forget: {WORK / 'development.jsonl'}, held_out: {WORK / 'held_out.jsonl'}}}",
            "evaluate.max_new_tokens": 100,
        }
        recipe = load_recipe(RECIPE, [f"{key}={value}" for key, value in (fixed | settings).items()])
        run = unlearn(recipe, out=WORK / "tune" / str(number))
        base, student = (scores(run, name) for name in ("base", "student"))
        one = {
            "settings": settings,
            "forget": student["forget"]["rouge_l"]["value"],
            "base_forget": base["forget"]["rouge_l"]["value"],
            "fall": base["held_out"]["rouge_l"]["value"] - student["held_out"]["rouge_l"]["value"],
        }
        tried.append(one)
        print(json.dumps(one), flush=True)
    allowed = [one for one in tried if one["fall"] <= DEAR]
    chosen = min(allowed, key=lambda one: one["forget"]) if allowed else None
    write(HERE / "results" / "tofu-tuning.json", {"tried": tried, "chosen": chosen})


def scores(run: Run, name: str) -> dict[str, Any]:
    return json.loads((run.evals / f"{name}.json").read_text(encoding="utf-8"))["scores"]


def run_all() -> None:
    """forget10 with every seed, and what became of it."""
    runs = [unlearn(load_recipe(RECIPE, [f"seed={seed}"]), out=WORK / "runs" / str(seed)) for seed in SEEDS]
    subjects = {
        name: [{title: scores(run, name)[key][metric] for title, (key, metric) in METRICS.items()} for run in runs]
        for name in ("base", "prefix", "oracle", "student")
    }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "versions": {name: version(name) for name in ("duet-unlearn", "torch", "transformers")},
        "settings": {"hidden": SETTINGS.hidden, "layers": SETTINGS.layers, "steps": SETTINGS.num_steps},
        "models": {kind: check(kind, WORK / kind) for kind in ("full", "retrained")},
        "probe": json.loads(runs[0].probe.read_text(encoding="utf-8"))["verdict"],
        "subjects": subjects,
    }
    write(HERE / "results" / "tofu.json", result)
    render(result)


def render(result: Mapping[str, Any]) -> None:
    """The table on the page that explains it."""
    head, begin, rest = PAGE.read_text(encoding="utf-8").partition("<!-- tofu:begin -->\n")
    end = "<!-- tofu:end -->\n"
    day = result["date"][:10]
    by = f"By `python benchmarks/tofu_results.py run`, {day}; {len(SEEDS)} seeds, ± standard deviation.\n"
    PAGE.write_text(f"{head}{begin}{table(result['subjects'])}\n{by}{end}{rest.partition(end)[2]}", encoding="utf-8")
    print(table(result["subjects"]))


def table(subjects: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The metrics of the four subjects; the student's with its spread over seeds."""
    lines = ["| | full | full + prefix | retrained | DUET |", "| :--- | ---: | ---: | ---: | ---: |"]
    for title in METRICS:
        cells = [cell(subjects[name], title) for name in ("base", "prefix", "oracle")]
        lines.append(f"| {title} | " + " | ".join([*cells, cell(subjects["student"], title, spread=True)]) + " |")
    return "\n".join(lines) + "\n"


def cell(runs: Sequence[Mapping[str, Any]], title: str, *, spread: bool = False) -> str:
    """Mean over the runs, and for the student the standard deviation over seeds; a dash where it is not defined."""
    values = [one[title]["value"] for one in runs if one[title]["value"] is not None]
    if not values:
        return "\N{EN DASH}"
    number = f"{fmean(values):.1e}" if 0 < fmean(values) < 1e-3 else f"{fmean(values):.3f}"
    return number + (f" ± {stdev(values):.3f}" if spread and len(values) > 1 else "")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("tune", "run"))
    asked = parser.parse_args()
    write_data()
    tune() if asked.verb == "tune" else run_all()


if __name__ == "__main__":
    main()
