"""Time and peak memory of one DUET epoch against two other ways of doing it; see README.md beside this file.

python benchmarks/step.py            about 100 M parameters: minutes
python benchmarks/step.py --tiny     seconds, for the tests
python benchmarks/step.py --render   put the stored results into README.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from contenders.floor import compare, memory_floor, step_flops
from contenders.setting import Setting, full, tiny, write_setting
from contenders.table import render, write_readme

HERE = Path(__file__).resolve().parent
CONTENDERS = ("ours", "two_model", "sdft")
EPOCHS = 10
"""Epochs of a whole training, as the product's default: targets are built once for all of them."""
QUIET = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
Result = dict[str, Any]


def main() -> None:
    args = parse(sys.argv[1:])
    if args.render:
        write_readme(HERE / "README.md", HERE / "results")
        return
    setting = (tiny if args.tiny else full)(args.device)
    if args.queries:
        setting = replace(setting, queries=args.queries)
    folder = Path(tempfile.gettempdir()) if args.tiny else HERE / "results"
    out = args.out or folder / f"step-{args.device}.json"
    names = tuple(name for name in CONTENDERS if name == "ours" or name not in args.without)
    result = race(setting, names, rounds=args.rounds or (1 if args.tiny else 3), watched=args.watched, out=out)
    print(render(result))
    say(f"written to {out}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, one round: for the tests")
    parser.add_argument("--rounds", type=int, help="how often each contender runs (default: 3; tiny: 1)")
    parser.add_argument("--queries", type=int, help="queries of the epoch: a multiple of the batch")
    parser.add_argument("--watched", type=int, default=4, help="extra steps whose phases are measured (at least 2)")
    parser.add_argument("--without", nargs="+", choices=CONTENDERS[1:], default=[], help="leave these out")
    parser.add_argument("--out", type=Path, help="JSON file (default: in results/; with --tiny, a temporary one)")
    parser.add_argument("--render", action="store_true", help="put the stored results into README.md")
    return parser.parse_args(argv)


def race(setting: Setting, names: tuple[str, ...], *, rounds: int, watched: int, out: Path) -> Result:
    """Every contender `rounds` times, the order turned each round; the file is rewritten after each round."""
    with tempfile.TemporaryDirectory(prefix="duet-step-") as folder:
        write_setting(setting, Path(folder))
        prepared = child("prepare", Path(folder), device=setting.device, watched=0)
        runs: dict[str, list[Result]] = {name: [] for name in names}
        result: Result = {}
        for number in range(rounds):
            last = number + 1 == rounds
            for name in order(names, number):
                measured = child(name, Path(folder), device=setting.device, watched=watched if last else 0)
                runs[name].append(measured)
                say(f"round {number + 1} of {rounds}: {name}: an epoch in {measured['seconds']['epoch']:.1f} s")
            result = summarise(setting, prepared, runs)
            store(out, result)
    return result


def order(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The contenders of a round: there, and back again, so that none always comes first."""
    return names if number % 2 == 0 else names[::-1]


def child(name: str, folder: Path, *, device: str, watched: int) -> Result:
    """Run one contender in a process of its own, and read what it measured.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "contenders", name, str(folder), "--watched", str(watched)],
        cwd=HERE,
        env=os.environ | QUIET | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    say(f"{name}: {time.perf_counter() - start:.0f} s in all")
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def summarise(setting: Setting, prepared: Result, runs: dict[str, list[Result]]) -> Result:
    """Medians with spread, ratios, phases and floor of the rounds so far."""
    for every in runs.values():
        for run in every:
            run["seconds"] |= totals(run["seconds"])
    last, shape = runs["ours"][-1], runs["ours"][-1]["shape"]
    parameters = prepared["parameters"]
    flops = step_flops(setting, parameters, shape)
    phases = {name: every[-1]["phases"] for name, every in runs.items()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": setting.device,
        **{key: prepared[key] for key in ("machine", "versions", "parameters")},
        "setting": asdict(setting),
        "rounds": len(runs["ours"]),
        "parity": prepared["parity"] | loss_difference(last, runs),
        "contenders": {name: contender(every) for name, every in runs.items()},
        "ratios": {name: ratios(runs[name], runs["ours"]) for name in runs if name != "ours"},
        "shape": shape,
        "phases": phases,
        "flops": flops,
        "targets": targets(runs["ours"], flops["targets of ours"] * shape["steps"], prepared["machine"]),
        "memory_floor_bytes": memory_floor(setting, parameters["total"]),
        "floor": compare(setting, parameters, shape, prepared["machine"], phases["ours"]) if phases["ours"] else {},
    }


def totals(seconds: dict[str, float]) -> dict[str, float]:
    """One epoch with all that it needs, and a whole training; loading is nobody's merit and counts for none."""
    once = seconds.get("hash of the weights", 0.0) + seconds.get("targets", 0.0)
    return {"total": once + seconds["epoch"], f"{EPOCHS} epochs": once + EPOCHS * seconds["epoch"]}


def contender(runs: Sequence[Result]) -> Result:
    return {
        "seconds": {name: spread([run["seconds"][name] for run in runs]) for name in runs[0]["seconds"]},
        "peak_bytes": {name: spread([run["peak_bytes"][name] for run in runs]) for name in runs[0]["peak_bytes"]},
        "losses": runs[-1]["losses"],
    }


def targets(runs: Sequence[Result], flops: float, machine: Result) -> Result:
    """The teacher's part of ours: operations, and the share of the machine's best rate that is reached."""
    seconds = median(run["seconds"]["targets"] for run in runs)
    return {"seconds": seconds, "flops": flops, "share": flops / machine["matmul_flops"] / seconds}


def ratios(others: Sequence[Result], ours: Sequence[Result]) -> Result:
    """How many times ours they take, round by round."""

    def ratio(key: Literal["seconds", "peak_bytes"], name: str) -> dict[str, float]:
        return spread([other[key][name] / own[key][name] for other, own in zip(others, ours, strict=True)])

    seconds = {name: ratio("seconds", name) for name in ("epoch", "total", f"{EPOCHS} epochs")}
    return {**seconds, "peak memory": ratio("peak_bytes", "epoch")}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def loss_difference(ours: Result, runs: dict[str, list[Result]]) -> dict[str, float]:
    """The largest relative difference between the losses of an epoch's steps, if the two models ran."""
    if "two_model" not in runs:
        return {}
    pairs = zip(ours["losses"], runs["two_model"][-1]["losses"], strict=True)
    return {"epoch_loss_difference": max(abs(a - b) / abs(b) for a, b in pairs)}


def store(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
