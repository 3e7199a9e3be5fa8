"""Batched greedy answers against one by one: the same texts, and the time of both, by turns.

DUET_DATA=DIR python benchmarks/generate.py                 the lab's base and a random model of 7 M; on a CPU
DUET_DATA=DIR python benchmarks/generate.py --device cuda   the same on a card, where weights in fp32 compute in bf16
python benchmarks/generate.py --tiny                        a few questions of the lab's base: for the tests

The time with finished rows kept in the batch stands beside the one in which they leave.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from contenders import machine
from contenders.clock import Seconds, spread, timed
from contenders.questions import SHAPES, rows, train_tokenizer, write_model

from duet_unlearn.data.prompts import render
from duet_unlearn.lab.questions import general_facts, held_out_queries
from duet_unlearn.lab.references import model_path
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher import decoding

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "tokenizers")
BATCH = 32
"""The product's default."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, its prompts as ids, and what ends an answer."""

    name: str
    model: Path
    prompts: list[list[int]]
    eos_ids: frozenset[int]
    max_new_tokens: int


def main() -> int:
    args = parse()
    data = Path(os.environ["DUET_DATA"]) if "DUET_DATA" in os.environ else None
    if not (data or args.tiny):
        print("error: DUET_DATA is not set", file=sys.stderr)
        print("hint: set it to the folder in which mmlu/dev and mmlu/test are", file=sys.stderr)
        return 1
    folder = Path(tempfile.gettempdir()) if args.tiny else HERE / "results"
    out = args.out or folder / f"generate-{args.device}.json"
    for result in measure(args.device, data, tiny=args.tiny, repeats=1 if args.tiny else 3):
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


def measure(
    device: Literal["cpu", "cuda"], data: Path | None, *, tiny: bool = False, repeats: int = 3
) -> Iterator[Result]:
    """The whole result so far, after each case. Also for ``gpu.py``: ``for result in measure("cuda", data)``."""
    result: Result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": {"name": machine.device_name(device), "threads": torch.get_num_threads()},
        "versions": machine.versions(PACKAGES),
        "arithmetic": "float32" if device == "cpu" else "bfloat16 (autocast)",
        "batch_size": BATCH,
        "cases": [],
    }
    with tempfile.TemporaryDirectory(prefix="duet-generate-") as scratch:
        for case in cases(Path(scratch), data, tiny=tiny):
            result["cases"].append(race(case, device, repeats))
            yield result


def cases(scratch: Path, data: Path | None, *, tiny: bool) -> Iterator[Case]:
    model, tokenizer = load_model(str(model_path("lab:base")))
    asked = held_out_queries(general_facts(), limit=8 if tiny else 128)
    prompts = [render(tokenizer, query.messages) for query in asked]
    yield Case("lab:base, open questions", model_path("lab:base"), prompts, decoding.end_ids(model, tokenizer), 32)
    if tiny or data is None:
        return
    bpe = train_tokenizer(data)
    folder = write_model(scratch / "7M", bpe, SHAPES["7 M"])
    prompts = [bpe(row[0]).input_ids for row in rows(data, "test", "anatomy")[:128]]
    # A random model never says its end: any of these tokens ends an answer, after 20 on average.
    eos_ids = frozenset(random.Random(0).sample(range(len(bpe)), len(bpe) // 20))
    yield Case("random 7 M, MMLU questions", folder, prompts, eos_ids, 64)


def race(case: Case, device: str, repeats: int) -> Result:
    """All three ways by turns."""
    model, tokenizer = load_model(str(case.model), device=torch.device(device))
    settings = {
        "eos_ids": case.eos_ids,
        "padding_id": decoding.pad_id(tokenizer),
        "max_new_tokens": case.max_new_tokens,
    }
    seconds: dict[str, list[Seconds]] = {"batched": [], "batched, finished rows stay": [], "one by one": []}
    said: dict[str, list[list[int]]] = {}
    for _ in range(repeats):
        for way, measured in seconds.items():
            size = 1 if way == "one by one" else BATCH
            with finished_stay() if "stay" in way else nullcontext():
                said[way] = timed(
                    lambda s=size: decoding.greedy(model, case.prompts, batch_size=s, **settings), measured
                )
    alone = said["one by one"]
    batched, stay, single = seconds.values()
    return {
        "case": case.name,
        "prompts": len(case.prompts),
        "prompt_tokens": [min(map(len, case.prompts)), max(map(len, case.prompts))],
        "answer_tokens": {"mean": sum(map(len, alone)) / len(alone), "longest": max(map(len, alone))},
        "equal_answers": {way: sum(a == b for a, b in zip(ids, alone, strict=True)) for way, ids in said.items()},
        "seconds": {way: [one.wall for one in found] for way, found in seconds.items()},
        "processor_seconds": {way: [one.processor for one in found] for way, found in seconds.items()},
        "ratio": spread(a.wall / b.wall for a, b in zip(single, batched, strict=True)),
        "processor_ratio": spread(a.processor / b.processor for a, b in zip(single, batched, strict=True)),
        "gain_of_leaving": spread(a.processor / b.processor for a, b in zip(stay, batched, strict=True)),
    }


@contextmanager
def finished_stay() -> Iterator[None]:
    """Inside, no row leaves its batch before all are finished."""
    leaves, decoding._selects = decoding._selects, lambda _cache: False
    try:
        yield
    finally:
        decoding._selects = leaves


def line(case: Result) -> str:
    return (
        f"{case['case']}: {case['equal_answers']['batched']} of {case['prompts']} answers the same, "
        f"{case['ratio']['median']:.1f} times the speed of one by one "
        f"({case['processor_ratio']['median']:.1f} by processor time); "
        f"leaving the batch gains a factor of {case['gain_of_leaving']['median']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
