"""Settings of the lab's DUET recipes, chosen on the validation split: every rate with every number of epochs.

python benchmarks/tune.py    some minutes on 2 cores; writes results/tuning.json and prints the table

The rule, fixed beforehand: of the settings that keep right answers on the retain validation queries within 1 point of
the best, those within 1 point of the fewest right answers on the forget validation queries; of these the one with the
fewest steps, then the smallest rate. No test question is asked. Stories at seed 0; means over the three.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TARGETS = {"lab/duet": "amber-gate", "lab/silver-mill": "silver-mill", "lab/hollow-clock": "hollow-clock"}
RATES = (1e-4, 3e-4, 1e-3)
EPOCHS = (5, 10, 20)
POINT = 0.01


class Tried(NamedTuple):
    """A setting, and the share right on the validation queries, mean over the stories."""

    rate: float
    epochs: int
    forget: float
    retain: float


def choose(tried: Sequence[Tried]) -> Tried:
    """The setting that the rule takes."""
    kept = max(one.retain for one in tried)
    allowed = [one for one in tried if one.retain >= kept - POINT - 1e-9]
    fewest = min(one.forget for one in allowed)
    return min((one for one in allowed if one.forget <= fewest + POINT + 1e-9), key=lambda one: (one.epochs, one.rate))


def run_one(recipe: str, rate: float, epochs: int, runs: Path) -> Path:
    """`duet run` on the validation queries, in a process of its own."""
    folder = runs / f"{TARGETS[recipe]}-{rate:g}-{epochs}"
    settings = {
        "train.rate": rate,
        "train.epochs": epochs,
        "train.checkpoint_every": 0,
        "model.oracle": "null",
        "evaluate.suite": "queries",
        "evaluate.sets": json.dumps(
            {"forget": f"lab:validation/forget/{TARGETS[recipe]}", "retain": "lab:validation/retain"}
        ),
    }
    command = [sys.executable, "-m", "duet_unlearn", "run", recipe, "--out", str(folder)]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return folder


def right(folder: Path, set_name: str) -> float:
    scores = json.loads((folder / "evals" / "student.json").read_text(encoding="utf-8"))["scores"]
    return float(scores[set_name]["right"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "tuning", help="where the run folders lie")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "tuning.json")
    args = parser.parse_args()
    settings = list(product(RATES, EPOCHS))
    tried = []
    with ThreadPoolExecutor(2) as pool:
        jobs = {s: [pool.submit(run_one, recipe, *s, args.runs) for recipe in TARGETS] for s in settings}
        for (rate, epochs), futures in jobs.items():
            folders = [future.result() for future in futures]
            shares = [fmean(right(folder, name) for folder in folders) for name in ("forget", "retain")]
            tried.append(Tried(rate, epochs, *shares))
            print(f"rate {rate:g}, {epochs} epochs: forget {shares[0]:.3f}, retain {shares[1]:.3f}", file=sys.stderr)
    chosen = choose(tried)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    found = {"tried": [one._asdict() for one in tried], "chosen": chosen._asdict()}
    args.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"chosen: rate {chosen.rate:g}, {chosen.epochs} epochs")


if __name__ == "__main__":
    main()
