"""What `duet plan` foretells beside what training takes: peak memory of real runs at 300 M parameters and more.

python benchmarks/plan.py                  long; 10 GB of memory
python benchmarks/plan.py --only lora      the cases whose names begin so
python benchmarks/plan.py --tiny           tiny models: does it work? (their peaks are mostly not tensors)

Each case is a process of its own: a random model in `save_pretrained` form is loaded, its teacher asked and some steps
trained, all by the product's own code. Memory counts from the moment when everything is imported and nothing loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contenders.setting import Setting, asked, build_tokenizer
from contenders.table import table

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import DataConfig, LoraConfig, ModelConfig, TrainConfig
from duet_unlearn.methods.duet import Duet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors")
PREFIX, STEPS = 32, 2
"""The second step is the first that meets the optimiser's state and gradients at once."""
Family = Literal["llama", "gpt_neox", "qwen3_moe"]
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model and a way of training it."""

    name: str
    family: Family = "llama"
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    lora: bool = False
    gradient_checkpointing: bool = False
    micro_batch_size: int | None = None
    batch: int = 4
    """Queries of a step; twice as many are asked."""
    tokens: int = 96
    """Length of every question."""
    keeps_nothing: bool = False
    """Run where glibc's malloc maps each block by itself, so that what is freed is given back at once: memory is then
    that of the tensors, without the holes between them."""


CASES = (
    Case("full"),
    Case("full, gradient checkpointing", gradient_checkpointing=True),
    Case("full, micro-batches of 2", micro_batch_size=2),
    Case("full, bf16 autocast", precision="bf16", batch=2, tokens=32),  # short: most CPUs are slow at bf16
    Case("lora", lora=True),
    Case("lora, bf16 weights", dtype="bfloat16", lora=True, batch=2, tokens=32),
    Case("without holes: lora", lora=True, keeps_nothing=True),
    Case("without holes: full", keeps_nothing=True),
    Case("neox, full", "gpt_neox"),
    Case("mixture, full", "qwen3_moe"),
)


def main() -> None:
    args = parse()
    if args.child:
        print(json.dumps(measure(CASES[int(args.child[0])], Path(args.child[1]))))
        return
    folder = Path(tempfile.gettempdir()) if args.tiny else HERE / "results"
    out = args.out or folder / "plan-cpu.json"
    chosen = [case for case in CASES if case.name.startswith(args.only)]
    for result in check(chosen, tiny=args.tiny):
        store(out, with_others(result, out))
    print(render(json.loads(out.read_text(encoding="utf-8"))))
    print(f"written to {out}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models: for the tests")
    parser.add_argument("--only", default="", metavar="NAME", help="only the cases whose names begin so")
    parser.add_argument("--out", type=Path, help="JSON file (default: in results/; with --tiny, a temporary one)")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def check(cases: list[Case], *, tiny: bool) -> Iterator[Result]:
    """Every case in turn; the whole result so far after each."""
    from contenders import machine

    result: Result = {
        "machine": {"name": machine.device_name("cpu"), "threads": os.environ.get("OMP_NUM_THREADS", "default")},
        "versions": machine.versions(PACKAGES),
        "prefix": PREFIX,
        "steps": STEPS,
        "cases": [],
    }
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="duet-plan-") as folder:
            build(case, Path(folder), tiny=tiny)
            foretold = foretell(case, Path(folder))
            measured = child(case, Path(folder))
        ratios = {phase: foretold[phase] / measured[phase] for phase in ("asking", "training", "total")}
        date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        result["cases"].append({**asdict(case), **date, "foretold": foretold, "measured": measured, "ratios": ratios})
        print(f"{case.name}: {ratios}", file=sys.stderr, flush=True)
        yield result


def with_others(result: Result, out: Path) -> Result:
    """The cases of an earlier call that this one did not measure stay, each with its own date."""
    before = json.loads(out.read_text(encoding="utf-8"))["cases"] if out.exists() else []
    new = {case["name"]: case for case in result["cases"]}
    every = {case["name"]: case for case in before} | new
    return {**result, "cases": [every[case.name] for case in CASES if case.name in every]}


def setting(case: Case, vocabulary: int) -> Setting:
    """What the queries are drawn from: all as long as the longest."""
    return Setting(
        "cpu",
        "float32",
        vocabulary=vocabulary,
        queries=2 * case.batch,
        batch=case.batch,
        prompt=(case.tokens, case.tokens),
        prefix=PREFIX,
    )


def config_of(family: Family, *, tiny: bool) -> PreTrainedConfig:
    """320 M parameters as a Llama of 128,256 tokens with a tied head, 355 M and 380 M as the others."""
    from transformers import GPTNeoXConfig, LlamaConfig, Qwen3MoeConfig

    hidden, layers, heads = (64, 2, 4) if tiny else (1024, 16, 16)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    shape: dict[str, Any] = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, **ends}
    if family == "gpt_neox":
        shape |= {"vocab_size": 2048 if tiny else 50_304, "num_hidden_layers": layers * 5 // 4}
        return GPTNeoXConfig(**shape, intermediate_size=4 * hidden)
    shape |= {"vocab_size": 2048 if tiny else 128_256, "num_key_value_heads": heads // 2, "tie_word_embeddings": True}
    if family == "qwen3_moe":
        experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": hidden // 2}
        return Qwen3MoeConfig(**shape, **experts, head_dim=hidden // heads)
    return LlamaConfig(**shape, intermediate_size=hidden * 11 // 4)


def build(case: Case, folder: Path, *, tiny: bool) -> None:
    """Write a random model, in the type that it is loaded in, and a tokeniser."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = config_of(case.family, tiny=tiny)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    model.save_pretrained(folder)
    build_tokenizer(config.vocab_size).save_pretrained(folder)


def recipe_of(case: Case, folder: Path) -> Recipe:
    return Recipe(
        name=case.name,
        concept="",
        model=ModelConfig(str(folder), dtype=case.dtype, lora=LoraConfig() if case.lora else None),
        data=DataConfig(""),
        method=Duet(),
        train=TrainConfig(
            batch_size=case.batch,
            micro_batch_size=case.micro_batch_size,
            precision=case.precision,
            gradient_checkpointing=case.gradient_checkpointing,
            checkpoint_every=0,
        ),
    )


def foretell(case: Case, folder: Path) -> Result:
    from duet_unlearn.plan import Workload, draw, read_config, walk_teacher, walk_training

    config, recipe = read_config(str(folder)), recipe_of(case, folder)
    load = Workload(tokens=case.tokens, prefix=PREFIX, queries=2 * case.batch)
    asking = walk_teacher(draw(str(folder), config, dtype=case.dtype), recipe, load)
    training = walk_training(draw(str(folder), config, dtype=case.dtype), recipe, load)
    return {
        "asking": asking.peak,
        "training": training.peak,
        "total": max(asking.peak, training.peak),
        "parts": asdict(training),
    }


def child(case: Case, folder: Path) -> Result:
    """Measure in a process of its own.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    settings = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if case.keeps_nothing:
        settings["MALLOC_MMAP_THRESHOLD_"] = str(128 << 10)
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(CASES.index(case)), str(folder)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, folder: Path) -> Result:
    """Peaks of loading, asking and training above what the imports hold."""
    import importlib

    for module in ("accelerate", "peft", "torch._dynamo", "duet_unlearn.teacher.targets", "duet_unlearn.training.loop"):
        importlib.import_module(module)
    importlib.import_module(f"transformers.models.{case.family}.modeling_{case.family}")
    from duet_unlearn.data.examples import epochs_source
    from duet_unlearn.models.load import load_model
    from duet_unlearn.models.lora import add_lora, save_gradient_memory
    from duet_unlearn.teacher.targets import build_targets
    from duet_unlearn.training.loop import train

    recipe, start, peaks = recipe_of(case, folder), memory("VmRSS"), {}
    reset_peak()
    model, tokenizer = load_model(str(folder), dtype=case.dtype)
    peaks["loading"] = memory("VmHWM") - start
    peaks["loaded"] = memory("VmRSS") - start
    reset_peak()
    targets = build_targets(
        model,
        tokenizer,
        asked(setting(case, len(tokenizer))),
        spec=recipe.method.target_spec,
        weights="random",
        directory=folder / "targets",
    )
    peaks["asking"] = memory("VmHWM") - start
    reset_peak()
    student = add_lora(model, recipe.model.lora, seed=0) if recipe.model.lora else model
    if case.gradient_checkpointing:
        save_gradient_memory(model)
    source, _ = epochs_source(targets.examples, batch_size=case.batch, epochs=1, seed=0)
    logs = list(
        train(
            student,
            source=source,
            num_steps=STEPS,
            loss=recipe.method.loss,
            targets=targets.of_batch,
            config=recipe.train,
            pad_id=2,
        )
    )
    peaks["training"] = memory("VmHWM") - start
    peaks["total"] = max(peaks.values())
    seconds = [log.seconds for log in logs]
    return {**peaks, "imports": start, "step_seconds": seconds}


def memory(name: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes that this process has in memory now, or had at most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def render(result: Result) -> str:
    """A row a case: foretold and measured in GB, and their ratio."""
    rows = [["", "asking", "measured", "ratio", "training", "measured", "ratio", "peak", "measured", "ratio"]]
    for case in result["cases"]:
        cells = [
            cell
            for phase in ("asking", "training", "total")
            for cell in (
                f"{case['foretold'][phase] / 1e9:.2f}",
                f"{case['measured'][phase] / 1e9:.2f}",
                f"{case['ratios'][phase]:.2f}",
            )
        ]
        rows.append([case["name"], *cells])
    return table(rows)


def store(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
