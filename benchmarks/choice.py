"""Multiple choice against lm-eval: the same questions, log-probabilities and time; both in one process, by turns.

DUET_DATA=DIR python benchmarks/choice.py                 MMLU 5-shot at 7 M and 100 M, lab questions 0-shot; on a CPU
DUET_DATA=DIR python benchmarks/choice.py --device cuda   the same on a card
DUET_DATA=DIR python benchmarks/choice.py --only lab      only cases whose names begin so; the rest stays
DUET_DATA=DIR python benchmarks/choice.py --tiny          two subjects of ten questions at 7 M: for the tests

DIR/mmlu has the publisher's dev/*.csv and test/*.csv. Needs the extra lm-eval.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from contenders import machine
from contenders.clock import Seconds, spread, timed
from contenders.questions import (
    SHAPES,
    SUBJECTS,
    Size,
    lab_queries,
    mmlu_queries,
    train_tokenizer,
    write_chat_task,
    write_mmlu_tasks,
    write_model,
)

from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks.lm_eval import hf_model, run_lm_eval
from duet_unlearn.evals.question_sets import letter_logps, text_logps
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.lab.references import model_path
from duet_unlearn.models.load import load_model

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "tokenizers", "lm-eval", "datasets")
OURS_BATCH = 32
"""The product's default."""
THEIR_BATCHES = {"cpu": (1, 8, 64), "cuda": (16, 64, 256)}
"""lm-eval is given the fastest of these."""
CLOSE = 1e-4
"""Log-probabilities may differ by so much, in nats; a choice may differ where its margin is not larger."""
SMALLEST = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
"""A model only to collect lm-eval's requests with, which no model changes."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model and what it is asked."""

    name: str
    model: Path
    queries: Sequence[Query]
    tasks: Sequence[str]
    mode: Literal["letter", "text"]
    settings: dict[str, Any]
    repeats: int


def main() -> int:
    args = parse()
    if "DUET_DATA" not in os.environ:
        print("error: DUET_DATA is not set", file=sys.stderr)
        print("hint: set it to the folder in which mmlu/dev and mmlu/test are", file=sys.stderr)
        return 1
    folder = Path(tempfile.gettempdir()) if args.tiny else HERE / "results"
    out = args.out or folder / f"choice-{args.device}.json"
    data, repeats = Path(os.environ["DUET_DATA"]), args.repeats or (1 if args.tiny else 3)
    for result in measure(args.device, data, tiny=args.tiny, repeats=repeats, only=args.only):
        out.write_text(json.dumps(with_others(result, out, args.only), indent=1) + "\n", encoding="utf-8")
        print(line(result["cases"][-1]))
    print(f"written to {out}", file=sys.stderr)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="few questions, the small model, once")
    parser.add_argument("--only", default="", metavar="NAME", help="cases whose names begin so")
    parser.add_argument("--repeats", type=int, help="timed turns of each (default: 3, tiny: 1; 100 M on a CPU: 1)")
    parser.add_argument("--out", type=Path, help="JSON file (default: in results/; with --tiny, a temporary one)")
    return parser.parse_args()


def with_others(result: Result, out: Path, only: str) -> Result:
    """The result, with the cases of an earlier one that were left out now."""
    if not only or not out.exists():
        return result
    now = {case["case"] for case in result["cases"]}
    before = [case for case in json.loads(out.read_text(encoding="utf-8"))["cases"] if case["case"] not in now]
    return result | {"cases": before + result["cases"]}


def measure(
    device: Literal["cpu", "cuda"], data: Path, *, tiny: bool = False, repeats: int = 3, only: str = ""
) -> Iterator[Result]:
    """The whole result so far, after each case. Also for ``gpu.py``: ``for result in measure("cuda", data)``."""
    result: Result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": {"name": machine.device_name(device), "threads": torch.get_num_threads()},
        "versions": machine.versions(PACKAGES),
        "dtype": "float32",
        "cases": [],
    }
    with tempfile.TemporaryDirectory(prefix="duet-choice-") as scratch:
        os.environ |= {"HF_DATASETS_CACHE": f"{scratch}/datasets", "HF_HUB_OFFLINE": "1"}
        for case in cases(Path(scratch), data, device, tiny=tiny, repeats=repeats):
            if not case.name.startswith(only):
                continue
            result["cases"].append(race(case, device, Path(scratch)))
            yield result


def cases(scratch: Path, data: Path, device: str, *, tiny: bool, repeats: int) -> Iterator[Case]:
    tokenizer = train_tokenizer(data)
    subjects, limit = (SUBJECTS[:2], 10) if tiny else (SUBJECTS, 50)
    tasks = write_mmlu_tasks(scratch, data, subjects, limit=limit)
    queries = mmlu_queries(data, subjects, shots=5, limit=limit)
    write_model(scratch / "smallest-mmlu", tokenizer, SMALLEST)

    def mmlu(size: Size, turns: int) -> Case:
        folder = write_model(scratch / size.replace(" ", ""), tokenizer, SHAPES[size])
        return Case(f"MMLU 5-shot, {size}", folder, queries, tasks, "letter", {"num_fewshot": 5}, turns)

    yield mmlu("7 M", repeats)
    if tiny:
        return
    for mode in ("letter", "text"):
        asked = lab_queries(mode)
        _, lab_tokenizer = load_model(str(model_path("lab:base")))
        task = write_chat_task(scratch, f"lab_{mode}", lab_tokenizer, asked)  # type: ignore[arg-type]
        yield Case(f"lab 0-shot, {mode}", model_path("lab:base"), asked, [task], mode, {"num_fewshot": 0}, repeats)
    yield mmlu("100 M", 1 if device == "cpu" else repeats)


def race(case: Case, device: str, scratch: Path) -> Result:
    """lm-eval's requests are collected once, from its own run of the task files; then both answer by turns."""
    model, tokenizer = load_model(str(case.model), device=torch.device(device))
    requests = collect(case, scratch)
    subject = ModelSubject("random", model, tokenizer)
    ask = letter_logps if case.mode == "letter" else text_logps
    batch = fastest_batch(model, tokenizer, requests, device)
    harness = hf_model(model, tokenizer, {"batch_size": batch})
    seconds: dict[str, list[Seconds]] = {"ours": [], "lm-eval": []}
    ours: list[list[float]] = []
    flat: list[tuple[float, bool]] = []
    for _ in range(case.repeats):
        ours = timed(lambda: ask(subject, case.queries, batch_size=OURS_BATCH), seconds["ours"])
        flat = timed(lambda: harness.loglikelihood(requests, disable_tqdm=True), seconds["lm-eval"])
        say(f"{case.name}: ours {seconds['ours'][-1].wall:.1f} s, lm-eval {seconds['lm-eval'][-1].wall:.1f} s")
    values = iter(value for value, _ in flat)
    theirs = [[next(values) for _ in row] for row in ours]
    return {
        "case": case.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "questions": len(case.queries),
        "longest_prompt": max(len(tokenizer(q.text).input_ids) for q in case.queries),
        "batch_size": {"ours": OURS_BATCH, "lm-eval": batch},
        **compare(ours, theirs),
        "seconds": {name: [one.wall for one in found] for name, found in seconds.items()},
        "processor_seconds": {name: [one.processor for one in found] for name, found in seconds.items()},
        "ratio": spread(them.wall / us.wall for us, them in zip(*seconds.values(), strict=True)),
        "processor_ratio": spread(them.processor / us.processor for us, them in zip(*seconds.values(), strict=True)),
    }


def compare(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Result:
    """How far the log-probabilities are apart, and in how many questions the choice differs."""
    pairs = list(zip(ours, theirs, strict=True))
    margins = [sorted(them)[-1] - sorted(them)[-2] for _, them in pairs]
    picked = [(list(us).index(max(us)), list(them).index(max(them))) for us, them in pairs]
    clear = [us == them for (us, them), margin in zip(picked, margins, strict=True) if margin > CLOSE]
    return {
        "max_logp_difference": max(abs(a - b) for us, them in pairs for a, b in zip(us, them, strict=True)),
        "choices": {"clear": len(clear), "equal": sum(clear), "within_margin": len(pairs) - len(clear)},
        "median_margin": median(margins),
    }


def collect(case: Case, scratch: Path) -> list[Any]:
    """The requests that lm-eval makes of the task files, question by question."""
    from lm_eval.api.instance import Instance

    small = scratch / "smallest-mmlu" if case.name.startswith("MMLU") else case.model
    found = run_lm_eval(*load_model(str(small)), case.tasks, case.settings | {"bootstrap_iters": 0}, include=scratch)
    samples = [sample for task in case.tasks for sample in sorted(found.samples[task], key=lambda s: s["doc_id"])]
    pairs = [tuple(pair) for sample in samples for pair in sample["arguments"]]
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]  # type: ignore[arg-type]


def fastest_batch(model: Any, tokenizer: Any, requests: list[Any], device: str) -> int:
    """lm-eval's best batch size, on some of the requests."""
    few, sizes = requests[: max(64, len(requests) // 20)], THEIR_BATCHES[device]
    found: dict[int, list[Seconds]] = {size: [] for size in sizes}
    for size in sizes:
        harness = hf_model(model, tokenizer, {"batch_size": size})
        timed(lambda harness=harness: harness.loglikelihood(few, disable_tqdm=True), found[size])
    return min(found, key=lambda size: found[size][0].processor if device == "cpu" else found[size][0].wall)


def line(case: Result) -> str:
    chosen = case["choices"]
    return (
        f"{case['case']} ({case['parameters']:,} parameters, {case['questions']} questions): "
        f"max |dlogp| {case['max_logp_difference']:.1e}, same choice {chosen['equal']} of {chosen['clear']}, "
        f"{median(case['seconds']['ours']):.1f} s against {median(case['seconds']['lm-eval']):.1f} s, "
        f"{case['ratio']['median']:.1f} times lm-eval's speed "
        f"({case['processor_ratio']['median']:.1f} by processor time)"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
