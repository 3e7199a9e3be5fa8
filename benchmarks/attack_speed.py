"""Attacks by prompt, batched and with shared beginnings, against one by one: the same answers, and the time, by turns.

python benchmarks/attack_speed.py                 the lab's base; on a CPU
python benchmarks/attack_speed.py --device cuda   the same on a card, where weights in fp32 compute in bf16
python benchmarks/attack_speed.py --tiny          few facts and wordings: for the tests
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from contenders import machine
from contenders.clock import Seconds, spread, timed

from duet_unlearn.attacks import Attack, AttackGoal, AttackResult, draw_goal, run_attack
from duet_unlearn.attacks.contexts import FewShot, FormatShift, InContextRelearn, ManyTurn, NeighbourHops
from duet_unlearn.attacks.rewording import Worded
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.job import load_job
from duet_unlearn.lab.questions import lab_forms
from duet_unlearn.lab.references import model_path
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher import decoding

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "tokenizers")
BATCH = 64
"""The product's default."""
WAYS: Mapping[str, tuple[int, bool]] = {
    "batched, beginnings shared": (BATCH, True),
    "batched": (BATCH, False),
    "one by one": (1, False),
}
"""Rows of a batch, and whether what they open with is computed once."""
SUITE = (
    Worded("reverse", per_family=2),
    Worded("system-override", per_family=2),
    FewShot(),
    InContextRelearn(),
    ManyTurn(),
    NeighbourHops(),
    FormatShift(),
)
TINY = (Worded("reverse", per_family=1), FewShot(shots=(2,)))
Result = dict[str, Any]


def main() -> int:
    args = parse()
    folder = Path(tempfile.gettempdir()) if args.tiny else HERE / "results"
    out = args.out or folder / f"attack-speed-{args.device}.json"
    for result in measure(args.device, tiny=args.tiny, repeats=1 if args.tiny else 3):
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(line(result["cases"][-1]))
    print(f"written to {out}", file=sys.stderr)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="few questions, once")
    parser.add_argument("--out", type=Path, help="JSON file (default: in results/; with --tiny, a temporary one)")
    return parser.parse_args()


def measure(device: Literal["cpu", "cuda"], *, tiny: bool = False, repeats: int = 3) -> Iterator[Result]:
    """The whole result so far, after each attack, the sum of all behind them."""
    result: Result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": {"name": machine.device_name(device), "threads": torch.get_num_threads()},
        "versions": machine.versions(PACKAGES),
        "arithmetic": "float32" if device == "cpu" else "bfloat16 (autocast)",
        "model": "lab:base",
        "batch_size": BATCH,
        "cases": [],
    }
    subject = ModelSubject("base", *load_model(str(model_path("lab:base")), device=torch.device(device)))
    goal = lab_goal(4 if tiny else None)
    for config in TINY if tiny else SUITE:
        result["cases"].append(race(subject, config, goal, repeats))
        yield result | {"all": total(result["cases"])}


def lab_goal(limit: int | None) -> AttackGoal:
    """The goal of attacks on the lab's first story."""
    recipe = load_recipe("lab/duet")
    job = load_job(recipe)
    goal = draw_goal(recipe.concept, job.train.forget, job.suite(), batch_size=BATCH)
    goal = replace(goal, target_facts=goal.target_facts[:limit])
    return replace(goal, forms=lab_forms(goal.target_facts))


def race(subject: ModelSubject, config: Attack, goal: AttackGoal, repeats: int) -> Result:
    """All ways by turns."""
    seconds: dict[str, list[Seconds]] = {way: [] for way in WAYS}
    found: dict[str, AttackResult] = {}
    for _ in range(repeats):
        for way, (size, shared) in WAYS.items():
            with nullcontext() if shared else unshared():
                mine = replace(goal, batch_size=size)
                found[way] = timed(lambda g=mine: run_attack(subject, config, g), seconds[way])
    said = {way: [one.output for each in got.instances for one in each.answers] for way, got in found.items()}
    alone = said["one by one"]
    return {
        "case": config.name,
        "instances": len(found["batched"].instances),
        "answers": len(alone),
        "equal_answers": {way: sum(a == b for a, b in zip(texts, alone, strict=True)) for way, texts in said.items()},
        "tokens": {way: got.cost.tokens for way, got in found.items()},
        "seconds": {way: [one.wall for one in taken] for way, taken in seconds.items()},
        "processor_seconds": {way: [one.processor for one in taken] for way, taken in seconds.items()},
        **ratios({way: [one.wall for one in taken] for way, taken in seconds.items()}, "ratio"),
        **ratios({way: [one.processor for one in taken] for way, taken in seconds.items()}, "processor_ratio"),
    }


def ratios(seconds: Mapping[str, Sequence[float]], name: str) -> Result:
    """How many times as fast the first way is as each other, turn by turn."""
    first, *others = WAYS
    pairs = {way: zip(seconds[way], seconds[first], strict=True) for way in others}
    return {name: {way: spread(slow / fast for slow, fast in each) for way, each in pairs.items()}}


def total(cases: Sequence[Result]) -> Result:
    """All attacks together."""
    found: Result = {"answers": sum(case["answers"] for case in cases)}
    for key, name in (("seconds", "ratio"), ("processor_seconds", "processor_ratio")):
        turns = {way: [sum(turn) for turn in zip(*(case[key][way] for case in cases), strict=True)] for way in WAYS}
        found |= {key: turns, **ratios(turns, name)}
    return found


@contextmanager
def unshared() -> Iterator[None]:
    """Inside, no beginning is computed once for several rows."""
    saves, decoding.PREFIX_SAVES = decoding.PREFIX_SAVES, sys.maxsize
    try:
        yield
    finally:
        decoding.PREFIX_SAVES = saves


def line(case: Result) -> str:
    first, second, alone = WAYS
    same, ratio, processor = case["equal_answers"][first], case["ratio"], case["processor_ratio"]
    return (
        f"{case['case']}: {same} of {case['answers']} answers the same, "
        f"{ratio[alone]['median']:.1f} times the speed of one by one ({processor[alone]['median']:.1f} by processor "
        f"time), {ratio[second]['median']:.2f} times that of batches without shared beginnings "
        f"({processor[second]['median']:.2f})"
    )


if __name__ == "__main__":
    sys.exit(main())
