"""Requests one after the other (MUSE's sustainability, arXiv 2407.06460): five stories forgotten on one model in turn.

python benchmarks/sequential.py           a quarter of an hour on one core; goes on where it was stopped
python benchmarks/sequential.py --show    the tables again, from results/sequential.json
python benchmarks/sequential.py --tiny    two requests of an epoch, for the tests

The stories are of five settings, so that no one's neighbour is another. Each run is `lab/duet` with `model.start` set
to the run before; its teacher is the model as it stands, under the prefix that names the new story. Four ways: `alone`
trains on the new request's queries; `plain retain` does, and its teacher is told no prefix on retain queries;
`cumulative` keeps all earlier requests' queries among the forget queries, each under its own prefix; `afresh` does so
from the base each time. After every request all five stories are asked, in wordings that no training saw, beside their
neighbours, far stories, general facts and choice questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from pages import between

from duet_unlearn.api import unlearn
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.data.query import Query, write_queries
from duet_unlearn.evals.question_sets import EvalSet, run_suite
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.lab import language
from duet_unlearn.lab.questions import (
    general_facts,
    held_out_choices,
    held_out_queries,
    mixed,
    open_query,
    retain_facts,
    retain_queries,
    split_facts,
)
from duet_unlearn.lab.references import model_path
from duet_unlearn.lab.world import world
from duet_unlearn.models.load import load_model
from duet_unlearn.subjects import load_start

HERE = Path(__file__).resolve().parent
STORIES = ("Amber Gate", "Silver Mill", "Hollow Clock", "Winter Feast", "Velvet Castle")
"""In the order of the requests."""
Way = Literal["alone", "plain retain", "cumulative", "afresh"]
WAYS: tuple[Way, ...] = ("alone", "plain retain", "cumulative", "afresh")
KEPT = ("near", "far", "general", "choice")
SEEDS = (0, 1, 2)
Result = dict[str, Any]


def forget_of(story: str) -> list[Query]:
    """100 questions about a story's train facts, in train wordings; they name it as their concept."""
    asked = [
        open_query(fact, wording, split="train")
        for fact in split_facts(story)["train"]
        for wording in language.QUESTIONS[fact.attribute].train
    ]
    return [replace(query, concept=f"the story {story}", request=_slug(story)) for query in asked[:100]]


def retain() -> list[Query]:
    """The lab's retain queries, without those about a story of a request."""
    return [query for query in retain_queries(split="train") if query.source not in STORIES]


def sets() -> list[EvalSet]:
    """What is asked after every request."""
    near = [f for story in STORIES for other in world().near(story) for f in world().stories[other]]
    far = [f for f in retain_facts("test") if f.topic in world().stories and f.topic not in STORIES and f not in near]
    asked: dict[str, Sequence[Query]] = {}
    for story in STORIES:
        facts = split_facts(story)
        asked[f"{story}: trained on"] = held_out_queries([*facts["train"], *facts["validation"]])
        asked[f"{story}: unseen"] = held_out_queries(facts["unseen"])
    asked["near"] = held_out_queries(mixed(near)[:120])
    asked["far"] = held_out_queries(mixed(far)[:60])
    asked["general"] = held_out_queries(mixed(general_facts())[:60])
    open_ = [EvalSet(name, name, "retain", "high", "", tuple(queries)) for name, queries in asked.items()]
    return [*open_, EvalSet("choice", "", "choice", "high", "", held_out_choices("choice", general_facts()), "text")]


def recipe_of(way: Way, number: int, start: Path | None, seed: int, data: Path, *, epochs: int) -> Recipe:
    """The recipe of a request (from 0)."""
    told = STORIES[0 if way in ("cumulative", "afresh") else number : number + 1]
    queries = [query for story in told for query in forget_of(story)]
    write_queries(data / "forget.jsonl", queries)
    write_queries(data / "retain.jsonl", retain())
    write_queries(data / "few.jsonl", queries[:5])
    settings = {
        "concept": f"the story {told[-1]}",
        "data.forget": data / "forget.jsonl",
        "data.retain": data / "retain.jsonl",
        "data.validation_forget": "null",
        "data.validation_retain": "null",
        "model.oracle": "null",
        "model.start": start or "null",
        "evaluate.suite": "queries",
        "evaluate.sets": f"{{forget: {data / 'few.jsonl'}}}",
        "train.epochs": epochs,
        "train.checkpoint_every": 0,
        "method.retain_prefix": "none" if way == "plain retain" else "same",
        "seed": seed,
    }
    return load_recipe("lab/duet", [f"{key}={value}" for key, value in settings.items()])


def request(way: Way, number: int, start: Path | None, seed: int, folder: Path, *, epochs: int) -> Result:
    """One request: its run lies in `folder`; what the model knows after it."""
    recipe = recipe_of(way, number, start, seed, folder.with_name(f"{folder.name}-data"), epochs=epochs)
    done = unlearn(recipe, out=folder)
    steps = len(done.metrics.read_text(encoding="utf-8").splitlines())
    _, tokenizer = load_model(str(model_path("lab:base")))
    return {"steps": steps} | knowledge(ModelSubject("student", load_start(str(folder), recipe), tokenizer))


def knowledge(subject: ModelSubject) -> Result:
    """Share right of every set."""
    scores = run_suite(subject, sets(), batch_size=128).scores
    return {"right": {name: score["right"].value for name, score in scores.items()}}


def run(work: Path, *, seeds: Sequence[int], requests: int, epochs: int) -> Result:
    """Every request of every way and seed; what is there already is read."""
    base = _kept(work / "base.json", lambda: knowledge(ModelSubject("base", *load_model(str(model_path("lab:base"))))))
    found: dict[str, list[list[Result]]] = {way: [] for way in WAYS}
    for seed in seeds:
        for way in WAYS:
            start, steps = None, []
            for number in range(requests):
                # The first request is the same in the other three.
                name = way.replace(" ", "-") if number or way == "plain retain" else "alone"
                folder = work / f"seed-{seed}" / name / f"request-{number + 1}"
                one = _kept(
                    folder.with_suffix(".json"),
                    lambda *given: request(*given, epochs=epochs),
                    way,
                    number,
                    start,
                    seed,
                    folder,
                )
                steps.append(one)
                start = None if way == "afresh" else folder
                print(f"seed {seed} {way} {number + 1}: {_line(one, number)}", file=sys.stderr, flush=True)
            found[way].append(steps)
    return {"stories": STORIES[:requests], "seeds": seeds, "epochs": epochs, "base": base, "ways": found}


def _kept(file: Path, make: Any, *given: Any) -> Result:
    if not file.exists():
        atomic_write_json(file, make(*given))
    return json.loads(file.read_text(encoding="utf-8"))


def _line(one: Result, number: int) -> str:
    shares = [f"{100 * story_right(one, story):.0f}" for story in STORIES]
    return f"{one['steps']} steps, stories {' '.join(shares)}, " + ", ".join(
        f"{name} {100 * one['right'][name]:.0f}" for name in KEPT
    )


def story_right(one: Result, story: str) -> float:
    """Mean of a story's two sets."""
    return fmean(one["right"][f"{story}: {kind}"] for kind in ("trained on", "unseen"))


def _slug(story: str) -> str:
    return story.lower().replace(" ", "-")


# Tables --------------------------------------------------------------------------------------------------------------


def groups(found: Result, one: Result, number: int) -> Iterator[tuple[str, float | None]]:
    """What a table shows after a request: the new story, the earlier ones, those to come, and what is kept."""
    stories = found["stories"]
    parts = {
        "new": stories[number : number + 1] if number >= 0 else [],
        "earlier": stories[: max(0, number)],
        "to come": stories[number + 1 :],
    }
    for name, these in parts.items():
        yield name, fmean(story_right(one, story) for story in these) if these else None
    yield from ((name, one["right"][name]) for name in KEPT)


def tables(found: Result) -> str:
    """A table a way, in per cent right: means over the seeds, with the smallest and the largest."""
    head = ["after request", "steps", "the new story", "earlier stories", "stories to come", *KEPT]
    base = {"steps": 0} | found["base"]
    texts = []
    for way, seeds in found["ways"].items():
        rows = [head, ["---"] * len(head)]
        rows.append(["none (base)", "0", *_cells([[value for _, value in groups(found, base, -1)]])])
        for number, same in enumerate(zip(*seeds, strict=True)):
            cells = _cells([[value for _, value in groups(found, one, number)] for one in same])
            rows.append([f"{number + 1}. {found['stories'][number]}", str(same[0]["steps"]), *cells])
        texts.append(f"{way}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(texts)


def _cells(seeds: Sequence[Sequence[float | None]]) -> list[str]:
    return [
        "" if None in values else _spread([v for v in values if v is not None]) for values in zip(*seeds, strict=True)
    ]


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (round(100 * one) for one in (min(values), fmean(values), max(values)))
    return f"{middle}" if low == high else f"{middle} ({low} to {high})"


def write_page(found: Result, page: Path) -> None:
    """Put the tables between the marks of a page."""
    page.write_text(between(page.read_text(encoding="utf-8"), tables(found), "sequential"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="two requests of one epoch, for the tests")
    parser.add_argument("--show", action="store_true", help="run nothing; the tables from the results")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "sequential", help="where the runs lie")
    parser.add_argument(
        "--page", type=Path, default=HERE.parent / "docs" / "sequential.md", help="page with the tables"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sequential.json", help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.show:
        some = {"seeds": SEEDS[:1], "requests": 2, "epochs": 1}
        every = {"seeds": SEEDS, "requests": len(STORIES), "epochs": 10}
        atomic_write_json(args.out, run(args.work, **(some if args.tiny else every)))  # type: ignore[arg-type]
    found = json.loads(args.out.read_text(encoding="utf-8"))
    write_page(found, args.page)
    print(tables(found))


if __name__ == "__main__":
    main()
