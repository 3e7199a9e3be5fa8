"""What each trained method costs: an epoch and its peak memory against DUET's, on the 100 M random Llama of `step.py`.

python benchmarks/methods.py             about 20 minutes on one core
python benchmarks/methods.py --tiny      seconds, for the tests
python benchmarks/methods.py --render    the table of docs/methods.md again, from results/methods-cpu.json

Every method trains on the same queries by the product's own path (`pipeline.train_student`), each in its own process:
targets, then one epoch, with the defaults of its dataclass. Seconds are processor seconds of one thread, so that other
work on the machine counts little; the first step, which warms up, is left out. Beside each stands the ratio of the
operations that `duet plan` counts for a step: a method whose time is not explained by it does something needless.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from contenders.setting import SPECIAL, Setting, build_model, full, read_setting, tiny, write_setting
from pages import between

HERE = Path(__file__).resolve().parent
ANSWER = (12, 20)
"""Shortest and longest answer, in tokens, without its end token."""
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for the tests")
    parser.add_argument("--only", nargs="+", help="these methods alone, and duet")
    parser.add_argument("--rounds", type=int, default=1, help="how often each method runs; the median counts (1)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/methods-cpu.json)")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one(args.child[0], Path(args.child[1]))))
        return
    if args.render:
        write_page(json.loads((HERE / "results" / "methods-cpu.json").read_text(encoding="utf-8")))
        return
    setting = replace(tiny("cpu"), queries=16) if args.tiny else full("cpu")
    names = [name for name in every() if not args.only or name in ("duet", *args.only)]
    out = args.out or (Path(tempfile.gettempdir()) if args.tiny else HERE / "results") / "methods-cpu.json"
    with tempfile.TemporaryDirectory(prefix="duet-methods-") as folder:
        write_data(setting, Path(folder))
        runs = {name: [child(name, Path(folder)) for _ in range(args.rounds)] for name in names}
    found = summary(setting, runs)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    if not args.tiny:
        write_page(found)
    print(f"written to {out}", file=sys.stderr)


def every() -> list[str]:
    """Names of the variants that are timed: DUET first, then every trained method with its defaults."""
    return list(variants())


def variants() -> dict[str, dict[str, Any]]:
    """Name -> the recipe's method section."""

    from duet_unlearn.config.recipe import METHODS
    from duet_unlearn.methods.reinforced import TaskVector

    # A task vector trains nothing but its reinforced model, which `whp` trains too.
    plain = {kind().name: {"name": kind().name} for kind in METHODS if kind.changes_weights and kind is not TaskVector}
    more = {
        "ga + ce (GradDiff)": {"name": "ga", "retain": "ce"},
        "ga + kl": {"name": "ga", "retain": "kl"},
        "npo + kl": {"name": "npo", "retain": "kl"},
    }
    return {"duet": plain.pop("duet")} | plain | more


def write_data(setting: Setting, folder: Path) -> None:
    """The model, and query files of random words with answers."""
    write_setting(setting, folder)
    build_model(setting, folder / "model")
    rng = random.Random(setting.seed)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{rng.randrange(len(SPECIAL), setting.vocabulary)}" for _ in range(rng.randint(low, high)))

    for role in ("forget", "retain", "neighbours", "distil"):
        rows = [
            {"id": f"{role}{n}", "question": text(*setting.prompt), "answer": text(*ANSWER), "wrong": [text(*ANSWER)]}
            for n in range(setting.queries // 2)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{role}.jsonl").write_text(lines, encoding="utf-8")


def child(name: str, folder: Path) -> Result:
    """One method in a process of its own.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    quiet = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, str(folder)],
        cwd=HERE,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: Result = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: a step in {found['step']:.2f} s, peak {found['peak'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return found


def one(name: str, folder: Path) -> Result:
    """Targets and one epoch of a method; processor seconds, and bytes at the worst moment."""
    from duet_unlearn.api import open_run
    from duet_unlearn.events import Event
    from duet_unlearn.job import load_job
    from duet_unlearn.pipeline import train_student
    from duet_unlearn.plan import Workload, draw, read_config, walk_training

    recipe, ticks = recipe_of(name, folder), [time.process_time()]
    job = load_job(recipe)
    model, tokenizer = job.load()
    asked = [0.0]

    def tick(event: Event) -> None:
        if event.phase == "train":
            ticks.append(time.process_time())
        else:
            asked.append(time.process_time())
            ticks[:] = [time.process_time()]

    with tempfile.TemporaryDirectory(dir=folder) as out:
        run, start = open_run(Path(out) / "run", recipe), time.process_time()
        train_student(run, job, model, tokenizer, tick)
        peak = max(phase["peak_memory"] for phase in json.loads(run.timings.read_text(encoding="utf-8")).values())
    steps = [later - earlier for earlier, later in pairwise(ticks)][1:]
    setting = read_setting(folder)
    load = Workload(tokens=sum(setting.prompt) // 2, prefix=16, queries=setting.queries, answer=sum(ANSWER) // 2 + 1)
    flops = walk_training(draw(str(folder), read_config(str(folder / "model")), dtype="float32"), recipe, load).flops
    return {
        "step": median(steps),
        "steps": len(steps) + 1,
        "once": max(0.0, asked[-1] - start),
        "peak": peak,
        "flops": flops,
    }


def recipe_of(name: str, folder: Path) -> Any:
    """The recipe of a variant: its method's defaults, all weights, one epoch."""
    from duet_unlearn.config.reading import load_recipe

    path = folder / f"{name.split()[0]}-{len(name)}.yaml"
    setting = read_setting(folder)
    needs = {"bidirectional": {"neighbours": "neighbours.jsonl"}, "undo": {"distil": "distil.jsonl"}}.get(name, {})
    start = {"start": "model"} if name == "undo" else {}
    own = {"stop_at": None} if name == "undo" else {}
    text = {
        "concept": "w7 w8",
        "model": {"path": "model"} | start,
        "data": {"forget": "forget.jsonl", "retain": "retain.jsonl"} | needs,
        "method": variants()[name] | own,
        "train": {"epochs": 1, "rate": setting.rate, "batch_size": setting.batch, "checkpoint_every": 0},
    }
    path.write_text(json.dumps(text), encoding="utf-8")
    return load_recipe(path)


def summary(setting: Setting, runs: dict[str, list[Result]]) -> Result:
    """Medians, and ratios to DUET."""
    from contenders import machine

    rows = {name: {key: median(run[key] for run in every) for key in every[0]} for name, every in runs.items()}
    ours = rows["duet"]
    for row in rows.values():
        row["epoch"] = row["step"] * row["steps"]
        row |= {
            f"{key}_ratio": row[key] / (ours["step"] * ours["steps"] if key == "epoch" else ours[key])
            for key in ("epoch", "peak")
        }
        row["flops_ratio"] = row["flops"] * row["steps"] / (ours["flops"] * ours["steps"])
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(setting),
        "setting": asdict(setting) | {"answer": ANSWER},
        "methods": rows,
    }


def write_page(found: Result) -> None:
    """Put the table into docs/methods.md."""
    page = HERE.parent / "docs" / "methods.md"
    note = (
        f"An epoch of {found['setting']['queries']} queries and the worst memory of a run, each divided by DUET's of"
        f" the same day; operations as `duet plan` counts them. {found['date'][:10]}, {found['machine']['name']}, one"
        " thread; `python benchmarks/methods.py`."
    )
    page.write_text(between(page.read_text(encoding="utf-8"), f"{table(found)}\n\n{note}", "cost"), encoding="utf-8")


def table(found: Result) -> str:
    """The ratios as Markdown."""
    head = [
        "| method | epoch / DUET's | operations / DUET's | peak memory / DUET's | epoch, s | before training, s |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = [
        f"| {name} | {row['epoch_ratio']:.2f} | {row['flops_ratio']:.2f} | {row['peak_ratio']:.2f}"
        f" | {row['epoch']:.1f} | {row['once']:.1f} |"
        for name, row in found["methods"].items()
    ]
    return "\n".join([*head, *rows])


if __name__ == "__main__":
    main()
