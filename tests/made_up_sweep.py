"""A sweep's results.json with made-up numbers, for the tests of its report: no number in it was measured.

Thirty-one rows in the shape that `duet sweep` writes: a method of which every trial failed, one with a failed test
run, three that train nothing (which cannot be relearned), and a set that one method was not asked.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from duet_unlearn.report.sweep_data import SweepData, parse_sweep

TARGETS, SEEDS = ("amber-gate", "silver-mill", "hollow-clock"), (0, 1, 2)
SETS = {
    "forget": ("Forget", "forget", "low", 70),
    "forget_held_out": ("Forget, new wordings", "forget", "low", 70),
    "forget_unseen": ("Forget, unseen facts", "forget", "low", 50),
    "near": ("Near neighbours", "neighbour", "high", 60),
    "far": ("Far stories", "neighbour", "high", 60),
    "retain": ("Retain", "retain", "high", 120),
    "general": ("General", "retain", "high", 60),
    "choice": ("Choice (general)", "choice", "high", 120),
    "reverse_prompt": ("Reverse prompt", "robustness", "low", 60),
    "prefill": ("Prefilling", "robustness", "low", 60),
    "continuation": ("Continuation", "robustness", "low", 60),
    "deployer_forget": ("Forget under a deployer", "deployer", "low", 60),
    "deployer_near": ("Near under a deployer", "deployer", "high", 30),
}
BASE = dict.fromkeys(SETS, 1.0) | {"choice": 0.983}
PREFIX = BASE | {"forget": 0.01, "forget_held_out": 0.01, "forget_unseen": 0.007, "continuation": 0.06}
ORACLE = BASE | dict.fromkeys([name for name, (_, _, better, _) in SETS.items() if better == "low"], 0.02)
ORACLE = ORACLE | {"choice": 0.942}


class Made(NamedTuple):
    """A row: its name, the method's name, what is left of forgetting (trained, unseen), what is kept (near, the rest),
    what comes back (reverse, prefill, continuation, relearned), seconds, needs."""

    name: str
    method: str
    forget: tuple[float, float]
    keep: tuple[float, float]
    back: tuple[float, float, float, float | None]
    seconds: float
    needs: tuple[str, ...]
    after: tuple[str, ...] = ()


P, A, R, F = ("teacher", "retain"), ("answers",), ("answers", "retain"), ("refusals",)
MADE = (
    Made("duet", "duet", (0.027, 0.36), (0.944, 0.99), (0.59, 0.83, 0.79, 0.93), 5.4, P),
    Made("bidirectional", "bidirectional", (0.01, 0.06), (0.935, 0.985), (0.04, 0.12, 0.31, 0.78), 14.2, P),
    Made("bild", "duet", (0.05, 0.41), (0.94, 0.99), (0.63, 0.88, 0.81, 0.95), 7.9, P),
    Made("gkd", "duet", (0.03, 0.29), (0.93, 0.985), (0.52, 0.86, 0.80, 0.94), 9.1, P),
    Made("multi-teacher", "duet", (0.02, 0.31), (0.95, 0.99), (0.42, 0.80, 0.75, 0.92), 8.8, P),
    Made("refusal", "refusal", (0.11, 0.47), (0.90, 0.98), (0.72, 0.97, 0.95, 0.97), 4.1, F),
    Made("refusal-retain", "refusal", (0.13, 0.55), (0.97, 0.99), (0.75, 0.98, 0.96, 0.98), 6.0, (*F, "retain")),
    Made("ga", "ga", (0.0, 0.0), (0.02, 0.06), (0.0, 0.01, 0.02, 0.55), 2.2, A),
    Made("graddiff", "ga", (0.01, 0.05), (0.55, 0.81), (0.05, 0.22, 0.24, 0.81), 4.4, R),
    Made("kl", "ga", (0.02, 0.07), (0.61, 0.84), (0.09, 0.25, 0.27, 0.84), 5.0, R),
    Made("npo", "npo", (0.08, 0.23), (0.62, 0.79), (0.21, 0.38, 0.41, 0.86), 3.4, (*A, "reference")),
    Made("npo-retain", "npo", (0.09, 0.28), (0.83, 0.95), (0.26, 0.45, 0.44, 0.88), 5.5, (*R, "reference")),
    Made("simnpo", "simnpo", (0.06, 0.21), (0.71, 0.88), (0.19, 0.35, 0.39, 0.85), 3.1, A),
    Made("simnpo-retain", "simnpo", (0.07, 0.24), (0.86, 0.96), (0.23, 0.42, 0.43, 0.87), 5.1, R),
    Made("dpo", "dpo", (0.12, 0.33), (0.88, 0.97), (0.41, 0.52, 0.71, 0.9), 6.7, (*A, *F, "reference")),
    Made("altpo", "altpo", (0.05, 0.19), (0.84, 0.96), (0.11, 0.2, 0.36, 0.83), 7.2, (*A, "alternatives", "reference")),
    Made("flat", "flat", (0.04, 0.16), (0.74, 0.91), (0.18, 0.31, 0.45, 0.85), 4.9, (*A, *F)),
    Made("rmu", "rmu", (0.02, 0.09), (0.79, 0.93), (0.05, 0.11, 0.15, 0.79), 6.2, ("texts", "retain")),
    Made("undial", "undial", (0.31, 0.52), (0.96, 0.99), (0.44, 0.62, 0.58, 0.94), 4.0, A),
    Made("whp", "whp", (0.14, 0.31), (0.91, 0.97), (0.3, 0.48, 0.33, 0.87), 11.5, ("texts",)),
    Made("rkld", "rkld", (0.11, 0.26), (0.92, 0.98), (0.26, 0.41, 0.3, 0.86), 12.1, ("texts",)),
    Made("maxent", "maxent", (0.01, 0.04), (0.88, 0.97), (0.03, 0.05, 0.1, 0.72), 4.7, R),
    Made("wga", "wga", (0.02, 0.08), (0.51, 0.72), (0.06, 0.15, 0.18, 0.76), 3.0, A),
    Made("satimp", "satimp", (0.05, 0.15), (0.66, 0.83), (0.12, 0.26, 0.28, 0.81), 3.2, A),
    Made("ceu", "ceu", (0.04, 0.12), (0.72, 0.87), (0.1, 0.21, 0.25, 0.8), 3.3, A),
    Made("shred", "shred", (0.02, 0.11), (0.93, 0.98), (0.07, 0.14, 0.22, 0.8), 5.7, A),
    Made(
        "undo", "undo", (0.01, 0.03), (0.91, 0.96), (0.03, 0.04, 0.08, 0.33), 61.0, ("texts",), ("lab/methods/maxent",)
    ),
    Made("task-vector", "task-vector", (0.09, 0.18), (0.72, 0.85), (0.2, 0.33, 0.24, 0.83), 2.4, ("texts",)),
    Made("ngdiff", "ngdiff", (0.0, 0.0), (0.0, 0.0), (0.0, 0.0, 0.0, 0.0), 0.0, R),
    Made("prefix", "prefix", (0.01, 0.007), (1.0, 1.0), (1.0, 1.0, 0.06, None), 0.0, ("teacher",)),
    Made("guard", "guard", (0.04, 0.13), (0.98, 0.995), (0.12, 0.08, 0.97, None), 0.0, ()),
    Made("eco", "eco", (0.06, 0.17), (0.97, 0.99), (0.15, 0.11, 0.99, None), 0.0, ()),
)
NO_WEIGHTS = "there are no weights of its own to fine-tune"


def score(value: float | None, n: int) -> dict[str, Any]:
    """A share of n questions, as evaluation writes it (the interval is not Wilson's: nothing reads it here)."""
    if value is None:
        return {"value": None, "n": 0, "low": None, "high": None}
    exact = round(value * n) / n
    return {"value": exact, "n": n, "low": max(0.0, exact - 0.1), "high": min(1.0, exact + 0.1)}


def shift(right: dict[str, Any]) -> dict[str, Any]:
    """The lab's Performance Shift against the made-up base, in points."""
    fell = sum(BASE[name] - right[name]["right"]["value"] for name in ("forget_held_out", "forget_unseen"))
    rose = sum(right[name]["right"]["value"] - BASE[name] for name in ("retain", "choice"))
    value = round(100 * (fell + rose), 6)
    return {"value": value, "n": 360, "low": value - 5, "high": value + 5}


def relearned(share: float) -> dict[str, Any]:
    rates = {"0.0003": score(0.6 * share, 35), "0.001": score(share, 35), "0.003": score(0.9 * share, 35)}
    return {"steps": 60, "worst": rates["0.001"], "rate": 1e-3, "before": score(0.03, 35), "rates": rates}


def jitter(rng: random.Random, share: float) -> float:
    """A share moved most in the middle of the scale."""
    return min(1.0, max(0.0, share + 0.22 * share * (1 - share) * rng.gauss(0, 1)))


def test_run(made: Made, target: str, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{made.name}/{target}/{seed}")
    shares = {
        "forget": made.forget[0] * 0.8,
        "forget_held_out": made.forget[0],
        "forget_unseen": made.forget[1],
        "near": made.keep[0],
        **dict.fromkeys(("far", "retain", "general"), made.keep[1]),
        "choice": 0.25 + 0.733 * made.keep[1],
        **dict(zip(("reverse_prompt", "prefill", "continuation"), made.back[:3], strict=True)),
        "deployer_forget": made.forget[0] * 1.2,
        "deployer_near": made.keep[0],
    }
    scores = {name: {"right": score(jitter(rng, share), SETS[name][3])} for name, share in shares.items()}
    scores["shift"] = {"points": shift(scores)}
    if made.name == "whp":
        del scores["deployer_near"]
    back, trained = made.back[3], made.seconds > 0
    seconds = {"targets": 0.1 * made.seconds, "train": 0.9 * made.seconds} if trained else {}
    return {
        **head("test", made, target, seed),
        "failed": None,
        "scores": scores,
        "shift": scores["shift"]["points"],
        "score": None,
        "forget": None,
        "keep": None,
        "relearned": {"not_applicable": NO_WEIGHTS} if back is None else relearned(jitter(rng, back)),
        "steps": 130 if trained else 0,
        "tokens": round(7000 * made.seconds),
        "seconds": {"total": made.seconds + 9.0 + rng.random(), "evaluate": 9.0, **seconds},
        "peak_memory": 680_000_000 + round(5_000_000 * made.seconds),
    }


def head(kind: str, made: Made, target: str, seed: int, trial: int | None = 1) -> dict[str, Any]:
    return {
        "kind": kind,
        "method": made.name,
        "target": target,
        "seed": seed,
        "trial": trial,
        "settings": settings(made, trial or 0),
        "folder": f"{kind}/{made.name}/{trial if kind == 'tune' else f'{target}-{seed}'}",
    }


def settings(made: Made, trial: int) -> dict[str, Any]:
    if made.method == "undo":
        return {"train.rate": 1e-3 * 3 ** (trial % 3), "method.alpha": (0.6, 0.9)[trial // 3]}
    return {"train.rate": 1e-3 * 3 ** (trial % 3), "train.epochs": (5, 10)[trial // 3]}


def method(made: Made) -> dict[str, Any]:
    """A methods entry, with six trials of which the second was chosen; `ngdiff` failed in all."""
    trials = []
    for trial in range(6):
        forget, keep = min(1.0, made.forget[0] + 0.08 * abs(trial - 1)), max(0.0, made.keep[0] - 0.05 * abs(trial - 1))
        mark = 2 * (1 - forget) * keep / (1 - forget + keep) if keep else 0.0
        row = {"trial": trial, "settings": settings(made, trial), "score": mark, "forget": forget, "keep": keep}
        trials.append(row | {"failed": None})
    if made.name == "simnpo":
        trials[5] |= {"score": None, "forget": None, "keep": None, "failed": "the loss is not finite at step 12"}
    if made.name == "ngdiff":
        nothing = {"score": None, "forget": None, "keep": None, "failed": "the loss is not finite at step 1"}
        trials = [trial | nothing for trial in trials]
    failed, untuned = made.name == "ngdiff", made.name == "prefix"
    return {
        "name": made.name,
        "recipe": f"lab/methods/{made.name}",
        "method": made.method,
        "about": f"{made.name}: a made-up row.",
        "needs": sorted(made.needs),
        "after": list(made.after),
        "untuned": "no setting: the prefix is the recipe's" if untuned else None,
        "trials": [] if untuned else trials,
        "chosen": None if failed or untuned else 1,
        "settings": None
        if failed
        else {}
        if untuned
        else settings(made, 1) | ({"method.alpha": 0.6} if made.method == "undo" else {}),
        "failed": "every trial failed" if failed else None,
    }


def results(made: tuple[Made, ...] = MADE) -> dict[str, Any]:
    """The whole file."""
    runs = []
    for one in made:
        for trial in method(one)["trials"]:
            run = {**head("tune", one, "tune", 0, trial["trial"]), **trial, "scores": {}}
            runs.append(run)
        if not method(one)["failed"]:
            trial = method(one)["chosen"]
            runs += [test_run(one, target, seed) | {"trial": trial} for target in TARGETS for seed in SEEDS]
    for run in runs:
        if (run["kind"], run["method"], run["target"], run["seed"]) == ("test", "wga", "silver-mill", 2):
            failed = {"failed": "the loss is not finite at step 40"}
            run_head = {key: run[key] for key in ("kind", "method", "target", "seed", "trial", "settings", "folder")}
            runs[runs.index(run)] = run_head | failed
            break
    tests = [run for run in runs if run["kind"] == "test"]
    return {
        "schema": 1,
        "name": "made-up",
        "finished": True,
        "date": "2026-01-02",
        "commits": ["0123456789abcdef"],
        "packages": {"torch": "2.0", "duet-unlearn": "0.1.0"},
        "python": "3.11.7",
        "platform": "Linux",
        "device": "cpu",
        "threads": 1,
        "model": "ab" * 32,
        "protocol": {
            "trials": 6,
            "tune": {"seed": 0, "forget": ["forget", "forget_train"], "keep": ["near", "far", "choice"]},
            "test": {"targets": list(TARGETS), "seeds": list(SEEDS)},
            "relearn": {"steps": 60, "rates": [3e-4, 1e-3, 3e-3]},
        },
        "counts": {
            kind: {
                "done": sum(not r["failed"] for r in rows),
                "failed": sum(bool(r["failed"]) for r in rows),
                "total": len(rows),
            }
            for kind, rows in (("tune", [run for run in runs if run["kind"] == "tune"]), ("test", tests))
        },
        "seconds": 5400.0,
        "sets": {
            name: {"title": title, "group": group, "better": better, "about": f"made-up: {title.lower()}"}
            for name, (title, group, better, _) in SETS.items()
        }
        | {"shift": {"title": "Performance Shift", "group": "summary", "better": "high", "about": "in points"}},
        "tune_sets": {},
        "baselines": {target: baselines() for target in TARGETS},
        "methods": [method(one) for one in made],
        "runs": runs,
        "summary": {},
    }


def baselines() -> dict[str, Any]:
    def subject(shares: dict[str, float], back: float | None) -> dict[str, Any]:
        scores = {name: {"right": score(share, SETS[name][3])} for name, share in shares.items()}
        if shares is not BASE:
            scores["shift"] = {"points": shift(scores)}
        return {"scores": scores, "relearned": None if back is None else relearned(back)}

    return {"base": subject(BASE, 1.0), "prefix": subject(PREFIX, None), "oracle": subject(ORACLE, 0.17)}


def write(folder: Path, found: dict[str, Any] | None = None) -> Path:
    """A sweep folder with these results and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found or results(), allow_nan=False)
    (folder / "results.json").write_text(text)
    return folder


ROWS = {made.name: made for made in MADE}
"""Name -> the row of that name."""


def sweep_of(*rows: Made, change: Callable[[dict[str, Any]], None] = lambda found: None) -> SweepData:
    """Some rows of it as the report reads them, after a change of what is stored."""
    found = results(rows)
    change(found)
    return parse_sweep(found)
