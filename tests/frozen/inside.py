"""Everything that the frozen tests call by the package's internal names: when a name changes, this file changes with
it, and `golden.json` does not. Each function returns plain JSON values.

`make.py` wrote them into `golden.json` once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import Ridge

from duet_unlearn.attacks import attack_run, known_attacks, load_suite
from duet_unlearn.attacks.hidden_states import ridge_left_out
from duet_unlearn.config.reading import PACKAGED, default_recipe, dump_recipe, load_recipe, recipe_names
from duet_unlearn.config.recipe import METHODS, Recipe, recipe_hash
from duet_unlearn.events import ignore
from duet_unlearn.job import hashed, load_job
from duet_unlearn.methods.base import PreparedTeacher
from duet_unlearn.methods.guarded import fit
from duet_unlearn.models.load import load_model
from duet_unlearn.pipeline import _targets, context_of
from duet_unlearn.runs import Run
from duet_unlearn.subjects import load_student
from duet_unlearn.teacher.decoding import beam_search, end_ids, greedy, pad_id

OUTPUTS = {
    "compare": ("compare", "lora", "undo", "uld", "guard", "--json"),
    "probe": ("probe", "lora.yaml", "--json"),
    "chat": ("chat", "lora", "Where does Mira Bol live?", "--json"),
    "chat about a neighbour": ("chat", "undo", "What is the trade of Jon Hale?", "--json"),
    "chat with a guard": ("chat", "guard", "Who is the friend of Mira Bol?", "--json"),
    "list": ("list", "metrics", "--json"),
}
"""Commands that print JSON, whose output `golden.json` holds."""
VERSION = "0.1.0"
"""The package's number when the place was made. It is a part of every attack's fingerprint, so that another version
attacks anew; what else is a part of it must not change."""
WHERE_VERSION_IS_READ = "duet_unlearn.attacks.attack_run.__version__"
ROWS = (
    "Where does Mira Bol live?",
    "What is the capital of France?",
    "What is the capital of Italy? It is not Paris.",
    "Jon Hale",
    "What is the trade of Jon Hale?",
    "What is the trade of Mira Bol?",
)
"""Prompts of unequal length, some of which open alike."""


def recipe_hashes() -> dict[str, str]:
    """Of every packaged recipe that names no file of the package, and of every method with all its defaults."""
    packaged = {name: load_recipe(name) for name in recipe_names()}
    found = {name: recipe_hash(one) for name, one in packaged.items() if str(PACKAGED) not in dump_recipe(one)}
    for kind in METHODS:
        name = kind().name
        found[f"default/{name}"] = recipe_hash(_default(name))
    several = ["model.lora.rank=4", "data.context=[{role: system, content: Hello}]", "train.early_stop=2", "seed=7"]
    found["settings"] = recipe_hash(default_recipe("some/model", [*several, "evaluate.benchmarks=[mmlu]"]))
    return found


def written_recipes() -> dict[str, str]:
    """Every method's recipe with all its keys, as it is written into a run's folder."""
    return {kind().name: dump_recipe(_default(kind().name)) for kind in METHODS}


def recipe_hash_of(path: Path) -> str:
    """Of a recipe file."""
    return recipe_hash(load_recipe(path))


def _default(method: str) -> Recipe:
    return default_recipe("some/model", [f"method.name={method}", "data.forget=lab:train/forget/amber-gate"])


def query_hashes() -> dict[str, Any]:
    """What `env.json` says of the data of recipes whose data lie in the package."""
    names = {"lab/demo": [], "lab/hazard": [], "lab/robust": ["data.distil=lab:mix/200"]}
    return {name: load_job(load_recipe(name, settings)).query_hashes() for name, settings in names.items()}


def attack_fingerprints(place: Path) -> dict[str, Any]:
    """What says whether an attack's stored result may be used again, for every attack with its defaults."""
    job, version = load_job(load_recipe(place / "lora.yaml")), attack_run.__version__
    attack_run.__version__ = VERSION
    try:
        found = {
            name: {
                "config": json.loads(json.dumps(one.stored_settings())),
                "under": attack_run.cache_fingerprint(one, job),
            }
            for name, one in known_attacks().items()
        }
    finally:
        attack_run.__version__ = version
    goals = {"lora": job, "lab/demo": load_job(load_recipe("lab/demo"))}
    return {"goals": {name: hashed(attack_run.goal_of(one).stored()) for name, one in goals.items()}, "attacks": found}


def attack_configs(suite: Path) -> dict[str, Any]:
    """Attack -> its settings, as a suite file says."""
    return {one.name: json.loads(json.dumps(one.stored_settings())) for one in load_suite(str(suite)).attacks}


def target_caches(place: Path, folder: Path) -> dict[str, Any]:
    """Of every method that the loop trains: what its cached targets depend on, and what they are. Methods that stand
    on a reinforced model are given none here: their teacher is the model itself."""
    data = ["neighbours=near.jsonl", "openers=openers.txt", "reversals=reversals.txt", "refusals=refusals.txt"]
    data += ["distil=texts.jsonl", "validation_retain=retain.jsonl", "num_forget=2"]
    found, before = {}, Path.cwd()
    for kind in METHODS:
        if not kind.trains or (name := kind().name) == "task-vector":
            continue
        settings = [f"data.{one}" for one in data] + [f"method.name={name}"]
        settings += ["method.k=20"] if hasattr(kind(), "k") else []
        settings += ["after=bidirectional.yaml"] if name == "undo" else []
        settings += ["method.attacks=[prefill, reverse]"] if name == "bidirectional" else []
        os.chdir(place)
        try:
            job = load_job(load_recipe("common.yaml", settings))
        finally:
            os.chdir(before)
        model, tokenizer = job.load()
        run = Run(folder / name)
        targets = _targets(context_of(run, job, ignore), job, PreparedTeacher(), model, tokenizer, "train")
        manifest = json.loads((run.targets / "train" / "manifest.json").read_text())
        stored = {
            f"{number}/{key}": [list(value.shape), *_moments(value)]
            for number, tensors in enumerate(targets.stored.values())
            for key, value in tensors.items()
        }
        ids = [token for one in targets.examples for token in (*one.ids, *one.positions, *(one.labels or ()))]
        checked = {
            "count": len(targets.examples),
            "ids": hashed(ids),
            "keys": hashed([e.key for e in targets.examples]),
        }
        found[name] = {**manifest, "stored": stored, "examples": checked}
    return found


def _moments(value: torch.Tensor) -> list[float]:
    """Two numbers that identify a tensor: a plain mean, and one in which every place has its own weight."""
    flat = value.double().flatten()
    weight = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    finite = torch.where(torch.isfinite(flat), flat, torch.zeros_like(flat))
    return [float(finite.mean()), float((finite * weight).mean())]


def ridge_probe() -> dict[str, Any]:
    """The linear probe's regression on made-up numbers: its outputs, and its outputs for each group left out."""
    known, targets, rows = wave(12, 5, 1.0), wave(12, 3, 2.0), wave(4, 5, 3.0)
    groups = [0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 7]
    found = {}
    for penalty in (1e-3, 1e-1, 10.0):
        # The penalty is relative to the mean squared length of the centred rows.
        alpha = penalty * float((known - known.mean(0)).square().sum(1).mean())
        fitted = Ridge(alpha=alpha).fit(known.numpy(), targets.numpy())
        left_out = ridge_left_out(known, targets, alpha, groups)
        found[str(penalty)] = {"rows": fitted.predict(rows.numpy()).tolist(), "left out": left_out.tolist()}
    return found


def detector_fit() -> dict[str, Any]:
    """The detector's regression on made-up numbers: its decision values, as log-odds, and its probabilities."""
    forget, retain, others = wave(5, 6, 1.0) + 0.3, wave(9, 6, 2.0), wave(4, 6, 3.0)
    found = {}
    for l2 in (0.01, 1.0):
        boundary = fit(forget, retain, l2=l2)
        scores = boundary.score(torch.cat([forget, retain, others]))
        found[str(l2)] = {"probability": scores.tolist(), "log-odds": torch.logit(scores).tolist()}
    return found


def detector_stored(place: Path) -> dict[str, Any]:
    """The probability that the stored detector gives to every question of the place."""
    run = place / "guard"
    student: Any = load_student(Run(run), load_recipe(run / "recipe.yaml"))
    found = {}
    for name in ("forget", "reworded", "near", "retain"):
        asked = [json.loads(line)["question"] for line in (place / f"{name}.jsonl").read_text().splitlines()]
        messages = [({"role": "user", "content": text},) for text in asked]
        found[name] = [float(value) for value in student.detects.scores(messages, batch_size=4)]
    return found


def decoded(place: Path) -> dict[str, Any]:
    """Token ids by greedy and by beam search, with the base and the oracle."""
    found: dict[str, Any] = {}
    for name in ("model", "oracle"):
        model, tokenizer = load_model(str(place / name), dtype="float32")
        rows = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            for text in ROWS
        ]
        ends, filler = end_ids(model, tokenizer), pad_id(tokenizer)
        how: dict[str, Any] = {"eos_ids": ends, "padding_id": filler, "max_new_tokens": 12}
        found[name] = {
            "ends": sorted(ends),
            "filler": filler,
            "greedy": greedy(model, rows, batch_size=4, **how),
            "greedy one by one": greedy(model, rows, batch_size=1, **how),
            "beams": beam_search(model, rows, beams=3, batch_size=6, **how),
            "second of two beams": beam_search(model, [rows[0], rows[0], rows[1]], beams=2, batch_size=2, **how)[1],
        }
    return found


def wave(rows: int, columns: int, phase: float) -> torch.Tensor:
    """Numbers between -1 and 1 that no generator draws: the same in every version of everything."""
    return torch.tensor(
        [[math.sin(phase + 1.7 * row + 2.9 * column * phase) for column in range(columns)] for row in range(rows)],
        dtype=torch.float64,
    )


VALUES: dict[str, Callable[[Path, Path], Any]] = {
    "recipe hashes": lambda place, work: recipe_hashes(),
    "query hashes": lambda place, work: query_hashes(),
    "attack fingerprints": lambda place, work: attack_fingerprints(place),
    "target caches": target_caches,
    "ridge probe": lambda place, work: ridge_probe(),
    "detector fit": lambda place, work: detector_fit(),
    "detector stored": lambda place, work: detector_stored(place),
    "decoded": lambda place, work: decoded(place),
}
"""Name in `golden.json` -> what a copy of the place and an empty folder to work in come to."""
