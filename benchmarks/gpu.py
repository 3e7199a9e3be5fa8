"""DUET's step at the shapes of Llama-3.2-3B with random weights: full fine-tuning and LoRA, through the product's loop.

python benchmarks/gpu.py             on a CUDA card
python benchmarks/gpu.py --tiny      a tiny model, on whatever there is: for the tests

Needs torch, transformers, accelerate, peft, safetensors, tokenizers and annotated-types; the package itself may be
on PYTHONPATH (``PYTHONPATH=src``) instead of installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from contenders import machine
from contenders.clock import Clock, Marks, watch
from contenders.floor import body_flops, head_flops
from contenders.setting import Setting, asked, build_tokenizer, llama_config, tiny
from contenders.table import table
from torch import nn

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import DataConfig, LoraConfig, ModelConfig, TrainConfig
from duet_unlearn.data.examples import epochs_source
from duet_unlearn.methods.duet import Duet
from duet_unlearn.models.lora import add_lora
from duet_unlearn.plan import Workload, draw, walk_training
from duet_unlearn.teacher.targets import CachedTargets, build_targets, rows_spec
from duet_unlearn.training.loop import StepLog, peak_memory, train

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors")
LLAMA_3B = Setting(
    "cuda",
    "bfloat16",
    hidden=3072,
    intermediate=8192,
    layers=28,
    heads=24,
    kv_heads=8,
    queries=256,
    batch=16,
)
BATCHES = (16, 128)
"""The product's default, and one that fills the card."""
WARM_UP, TIMED, WATCHED = 3, 10, 4
Result = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """A way of training."""

    name: str
    dtype: Literal["float32", "bfloat16"]
    """Type of the weights, and so of AdamW's moments."""
    precision: Literal["fp32", "bf16"]
    """bf16: autocast."""
    lora: bool


MODES = (
    Mode("full, bf16 weights and moments", "bfloat16", "fp32", lora=False),
    Mode("full, fp32 weights and moments, bf16 autocast", "float32", "bf16", lora=False),
    Mode("LoRA, bf16 base", "bfloat16", "fp32", lora=True),
)


def main() -> int:
    args = parse()
    cuda = torch.cuda.is_available()
    if not (cuda or args.tiny):
        print("error: there is no CUDA card here", file=sys.stderr)
        print("hint: run it where there is one, or --tiny to see that it works", file=sys.stderr)
        return 1
    setting = tiny("cuda" if cuda else "cpu") if args.tiny else LLAMA_3B
    best = machine.describe(setting)
    out = args.out or default_out(best["name"], tiny=args.tiny)
    for result in measure(setting, best, batches=(2, 4) if args.tiny else BATCHES):
        store(out, result)  # after each mode: what was measured stays, whatever comes
    print(render(result))
    say(f"written to {out}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument("--out", type=Path, help="JSON file (default: in results/; with --tiny, a temporary one)")
    return parser.parse_args()


def default_out(name: str, *, tiny: bool) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (Path(tempfile.gettempdir()) if tiny else HERE / "results") / f"gpu-{slug}.json"


def measure(setting: Setting, best: Result, *, batches: tuple[int, ...]) -> Iterator[Result]:
    """The teacher's targets, then every mode at every batch size; the whole result so far after each."""
    model = fresh_model(setting)
    targets, teacher = teach(setting, model, best)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": setting.device,
        "machine": best,
        "versions": machine.versions(PACKAGES),
        "parameters": machine.parameters(model),
        "setting": asdict(setting),
        "targets": teacher,
        "runs": [],
    }
    del model
    for mode in MODES:
        for batch in batches:
            say(f"{mode.name}, batch {batch}")
            result["runs"].append(attempt(replace(setting, batch=batch), mode, targets, best))
            yield result


def fresh_model(setting: Setting) -> nn.Module:
    """The random model, made on the device."""
    from transformers import LlamaForCausalLM

    release()
    torch.manual_seed(setting.seed)
    with torch.device(setting.device):
        return LlamaForCausalLM._from_config(llama_config(setting), dtype=getattr(torch, setting.dtype))


def release() -> None:
    """Give back what earlier models held, and count peaks anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def teach(setting: Setting, model: nn.Module, best: Result) -> tuple[CachedTargets, Result]:
    """Build the targets twice (the first time is a warm-up); tokens a second of the second time, disk included."""
    clock, tokenizer = Clock(), build_tokenizer(setting.vocabulary)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("warm-up", "targets"):
            with clock.phase(name):
                targets = build_targets(
                    model,
                    tokenizer,
                    asked(setting),
                    spec=rows_spec(setting.k),
                    weights="random",
                    directory=Path(scratch) / name,
                )
    tokens = sum(len(example.ids) + setting.prefix for example in targets.examples)
    flops = body_flops(setting, tokens, tokens / setting.queries, machine.parameters(model)["body"])
    rate = (flops + head_flops(setting, setting.queries)) / clock.seconds["targets"]
    return targets, {
        "seconds": clock.seconds["targets"],
        "queries_per_second": setting.queries / clock.seconds["targets"],
        "tokens_per_second": tokens / clock.seconds["targets"],
        "peak_bytes": clock.peak_bytes["targets"],
        **shares(rate, best),
    }


def attempt(setting: Setting, mode: Mode, targets: CachedTargets, best: Result) -> Result:
    """One mode at one batch size; what does not fit is a result, too."""
    named = {"mode": mode.name, "batch": setting.batch}
    try:
        return named | run(setting, mode, targets, best)
    except torch.OutOfMemoryError:
        return named | {"failed": "does not fit into memory"}


def run(setting: Setting, mode: Mode, targets: CachedTargets, best: Result) -> Result:
    """Train: some steps to warm up, some timed, some watched for where their time goes."""
    model = fresh_model(replace(setting, dtype=mode.dtype))
    counted = machine.parameters(model)
    student = add_lora(model, LoraConfig(), seed=setting.seed) if mode.lora else model  # type: ignore[arg-type]
    logs, ends = [], []
    for log in steps(setting, mode, student, targets, WARM_UP + TIMED):
        logs.append(log)
        ends.append(time.perf_counter())  # the loop reads the gradient's norm: the device is done
    peak = peak_memory()
    marks = Marks()
    with watch(student, marks):
        list(steps(setting, mode, student, targets, WATCHED))
    each = [end - start for start, end in pairwise(ends[WARM_UP - 1 :])]
    seconds, tokens = sum(each), sum(log.tokens for log in logs[WARM_UP:])
    trained = machine.parameters(student)["trained"]
    flops = step_flops(setting, counted["body"], trained, tokens / TIMED, mode)
    return {
        "tokens_per_second": tokens / seconds,
        "seconds_per_step": median(each),
        "peak_bytes": peak,
        "planned_bytes": planned(setting, mode),
        "trained_parameters": trained,
        "flops_per_step": flops,
        "losses": [log.loss for log in logs],
        "phases": marks.per_step(),
        **shares(flops * TIMED / seconds, best),
    }


def steps(setting: Setting, mode: Mode, student: nn.Module, targets: CachedTargets, count: int) -> Iterator[StepLog]:
    """`count` steps of the product's loop."""
    source, _ = epochs_source(targets.examples, batch_size=setting.batch, epochs=1, seed=setting.seed)
    return train(
        student,
        source=source,
        num_steps=count,
        loss=Duet(k=setting.k).loss,
        targets=targets.of_batch,
        config=train_config(setting, mode),
        pad_id=2,
    )


def train_config(setting: Setting, mode: Mode) -> TrainConfig:
    return TrainConfig(
        rate=setting.rate, batch_size=setting.batch, precision=mode.precision, checkpoint_every=0, epochs=1
    )


def planned(setting: Setting, mode: Mode) -> int:
    """What `duet plan` says that the training takes, from the config alone; on CUDA it is to be within 15 %."""
    recipe = Recipe(
        name="gpu",
        concept="",
        model=ModelConfig("random", dtype=mode.dtype, lora=LoraConfig() if mode.lora else None),
        data=DataConfig(""),
        method=Duet(k=setting.k),
        train=train_config(setting, mode),
    )
    load = Workload(tokens=setting.prompt[1], prefix=setting.prefix, queries=setting.queries)
    return walk_training(draw("random", llama_config(setting), dtype=mode.dtype), recipe, load).peak


def step_flops(setting: Setting, body: int, trained: int, tokens: float, mode: Mode) -> float:
    """Operations on real tokens. Frozen matrices have one product in the backward pass; trained ones have two."""
    forward = body_flops(setting, tokens, tokens / setting.batch, body) + head_flops(setting, setting.batch)
    return 2 * forward + 3 * 2 * tokens * trained if mode.lora else 3 * forward


def shares(rate: float, best: Result) -> Result:
    """A rate of operations beside the card's: by its data sheet in bf16, and as measured here."""
    peak = best["bf16_peak"]
    return {
        "flops_per_second": rate,
        "share_of_peak": rate / peak if peak else None,
        "share_of_measured": rate / best["matmul_flops"],
    }


def render(result: Result) -> str:
    """A plain table: a row a mode and batch."""
    best, teacher = result["machine"], result["targets"]
    rows = [["", "batch", "tokens/s", "ms a step", "peak, GB", "TFLOP/s", "of peak", "of measured", "planned, GB"]]
    rows.append(["teacher's targets", "", *cells(teacher, teacher["seconds"]), ""])
    for row in result["runs"]:
        if "failed" in row:
            values = [row["failed"], *6 * [""]]
        else:
            values = [*cells(row, row["seconds_per_step"]), f"{row['planned_bytes'] / 1e9:,.1f}"]
        rows.append([row["mode"], str(row["batch"]), *values])
    line = f"{result['date'][:10]}, {best['name']}: {result['parameters']['total']:,} parameters, "
    line += f"best matrix product {best['matmul_flops'] / 1e12:,.1f} TFLOP/s"
    return f"{line}\n\n{table(rows)}"


def cells(row: Result, seconds: float) -> list[str]:
    share = row["share_of_peak"]
    return [
        f"{row['tokens_per_second']:,.0f}",
        f"{1e3 * seconds:,.1f}",
        f"{row['peak_bytes'] / 1e9:,.1f}",
        f"{row['flops_per_second'] / 1e12:,.2f}",
        "" if share is None else f"{100 * share:.1f} %",
        f"{100 * row['share_of_measured']:.1f} %",
    ]


def store(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
