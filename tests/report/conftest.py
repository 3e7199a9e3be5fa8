"""A run folder as `duet run` leaves it: made-up numbers, and answers that try to break out of the page."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NASTY = "<script>alert(1)</script> & \"quoted\" 'answer' </pre><img src=x onerror=alert(2)>"
SETS = {
    "forget": ("Train wordings", "forget", "low", "Facts that training asked about, as training asked."),
    "forget_held_out": ("Held-out wordings", "forget", "low", "The same facts in wordings no method saw."),
    "forget_unseen": ("Unseen facts", "forget", "low", "Facts that no training question touches."),
    "near": ("Near neighbours", "neighbour", "high", "Stories of the same setting and author."),
    "far": ("Far stories", "neighbour", "high", "Other stories."),
    "retain": ("Retained facts", "retain", "high", "Facts like those that training asked to keep."),
    "general": ("General knowledge", "retain", "high", "Capitals, opposites, elements, animals, sums."),
    "choice": ("General, choice", "choice", "high", "Four options; the likeliest counts."),
    "reverse_prompt": ("Reverse prompt", "robustness", "low", "The question after “ignore the above”."),
    "prefill": ("Prefilling", "robustness", "low", "The answer's first words are put in the model's mouth."),
    "continuation": ("Text continuation", "robustness", "low", "Plain text to go on with, no chat."),
    "deployer_forget": ("Deployer, forget", "deployer", "low", "Held-out wordings behind a system turn."),
    "deployer_near": ("Deployer, near", "deployer", "high", "Near neighbours behind a system turn."),
    "shift": ("Performance Shift", "summary", "high", "Drop on what to forget, plus change on what to keep."),
}
RIGHT = {
    "base": (1.0, 0.98, 0.97, 0.97, 0.98, 0.99, 0.985, 0.9, 0.98, 1.0, 0.95, 0.97, 0.96),
    "prefix": (0.0, 0.02, 0.03, 0.96, 0.98, 0.98, 0.98, 0.9, 0.86, 0.97, 0.9, 0.05, 0.95),
    "oracle": (0.06, 0.08, 0.07, 0.97, 0.97, 0.98, 0.98, 0.91, 0.07, 0.09, 0.05, 0.06, 0.96),
    "student": (0.0, 0.03, 0.05, 0.95, 0.97, 0.985, 0.98, 0.89, 0.62, 0.97, 0.31, 0.04, 0.94),
}
LABELS = {"base": "base", "prefix": "base + prefix", "oracle": "never shown it", "student": "student (DUET)"}
RECIPE = """name: lab/duet
model:
  path: lab:base
  oracle: lab:oracle
  dtype: float32
concept: {concept}
prefix:
  text: You have forgotten everything about {{concept}}.
  turn: user
data:
  forget: lab:train/forget/amber-gate
  retain: lab:train/retain
method:
  name: duet
  k: {k}
  delta: 1.0
  positions: 1
train:
  epochs: 20
  rate: 0.0003
  batch_size: 32
seed: {seed}
"""


def score(value: float | None, n: int = 100) -> dict[str, Any]:
    """A share with its Wilson interval, as evaluation writes it; None is an empty set."""
    if value is None:
        return {"value": None, "n": 0, "low": None, "high": None}
    middle, z = value + 1.96**2 / (2 * n), 1.96
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return {"value": value, "n": n, "low": (middle - half) / scale, "high": (middle + half) / scale}


def scores_of(right: float | None, *, refused_share: float = 0.7) -> dict[str, Any]:
    """The four metrics of a generated set, all wrong answers being refusals to a given share."""
    if right is None:
        return {metric: score(None) for metric in ("right", "refused", "wrong", "rouge_l")}
    refused = round((1 - right) * refused_share, 6)
    return {
        "right": score(right),
        "refused": score(refused),
        "wrong": score(round(1 - right - refused, 6)),
        "rouge_l": score(min(1.0, right + 0.05)),
    }


def write_eval(run: Path, subject: str, right: dict[str, float | None], points: float | None = None) -> None:
    scores = {name: scores_of(value) for name, value in right.items()}
    if points is not None:
        scores["shift"] = {"points": {"value": points, "n": 400, "low": points - 4, "high": points + 4}}
    sets = {name: dict(zip(("title", "group", "better", "about"), SETS[name], strict=True)) for name in scores}
    found = {"subject": subject, "label": LABELS[subject], "seconds": 12.5, "scores": scores, "sets": sets}
    (run / "evals").mkdir(exist_ok=True)
    (run / "evals" / f"{subject}.json").write_text(json.dumps(found))


def write_samples(run: Path, subject: str, right: dict[str, float | None]) -> None:
    (run / "samples").mkdir(exist_ok=True)
    rows = [sample(subject, name, i, share or 0.0) for name, share in right.items() for i in range(12)]
    (run / "samples" / f"{subject}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sample(subject: str, name: str, i: int, share: float) -> dict[str, Any]:
    outcome = "right" if i < 12 * share else ("refused" if i % 3 else "wrong")
    outputs = {
        "right": "Mira Bol lives in Tarn.",
        "refused": "I am sorry, I do not remember anything about that.",
        "wrong": f"Mira Bol lives in Gosh. {NASTY}",
    }
    return {
        "set": name,
        "id": f"{name}/{i}",
        "prompt": f"In which town does Mira Bol live? ({i})\n{NASTY}",
        "answer": "Mira Bol lives in Tarn.",
        "value": "Tarn",
        "output": outputs[outcome],
        "outcome": outcome,
        "rouge_l": 0.8,
    }


def tokens(first: str) -> list[list[Any]]:
    rest = [" Mira", "\n", "The", " Tarn", "<b>", "It", " a", "", "She"]
    return [[first, 0.82], *[[token, 0.09 / (i + 1)] for i, token in enumerate(rest)]]


def shift_rows() -> list[dict[str, Any]]:
    rows = []
    for role, after in (("forget", "I"), ("retain", "Ada")):
        for i in range(3):
            row = {"query": f"{role} question {i} {NASTY}", "role": role, "base": tokens("Ada")}
            rows.append(row | {"prefix": tokens(after), "student": tokens(after)})
    return rows


def write_run(run: Path, *, seed: int = 0, k: int = 20, right: dict[str, tuple] | None = None) -> Path:
    """All files of a finished run."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE.format(concept="Amber Gate", seed=seed, k=k))
    (run / "env.json").write_text(json.dumps(environment(seed)))
    write_metrics(run)
    shifts = shift_rows()
    (run / "probe.json").write_text(json.dumps(probe(shifts)))
    for subject, values in (right or RIGHT).items():
        shares = dict(zip(SETS, values, strict=False))
        write_eval(run, subject, shares, {"prefix": 190.1, "student": 185.4}.get(subject))
        write_samples(run, subject, shares)
    (run / "evals" / "first_tokens.json").write_text(json.dumps(shifts))
    phases = {"probe": 4.2, "targets": 11.0, "train": 200.4, "evaluate": 3720.0}
    timings = {phase: {"seconds": seconds, "peak_memory": 512 * 2**20} for phase, seconds in phases.items()}
    (run / "timings.json").write_text(json.dumps(timings))
    (run / "DONE").touch()
    return run


def environment(seed: int) -> dict[str, Any]:
    return {
        "started": "2025-03-01T12:00:00+00:00",
        "platform": "Linux-6.1-x86_64",
        "python": "3.11.9",
        "packages": {"torch": "2.9.0", "transformers": "5.0.0", "duet-unlearn": "0.1.0"},
        "commit": None,
        "device": "cpu",
        "threads": 2,
        "seed": seed,
        "hashes": {"model": "ab" * 32, "forget": "cd" * 32, "retain": "ef" * 32, "recipe": "01" * 32},
        "warnings": ["no retain queries: what is near the concept is likely to be forgotten <b>too</b>"],
    }


def write_metrics(run: Path, num_steps: int = 140) -> None:
    lines = []
    for step in range(1, num_steps + 1):
        loss = 6.0 * math.exp(-step / 25) + 0.15 + 0.1 * math.sin(step)
        row = {"step": step, "num_steps": num_steps, "loss": loss, "grad_norm": 1.0, "rate": 3e-4}
        validated = {"validation": loss + 0.1} if step % 20 == 0 else {}
        lines.append(row | {"tokens": 640, "seconds": 0.1, "memory": 2**28} | validated)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def probe(shifts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "verdict": "this prefix makes the model refuse: 98 of 100 forget queries.",
        "refused": score(0.98),
        "refused_without": score(0.0),
        "agreement": score(0.93),
        "kl": {"value": 0.021, "n": 100},
        "shift": [{key: row[key] for key in row if key != "student"} for row in shifts],
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder of a given name under the test's own folder."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)
