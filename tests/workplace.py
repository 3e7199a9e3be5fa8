"""What whole runs need: a tiny random model in a folder, query files, a recipe."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from tiny import TEMPLATE, llama, tokenizer

from duet_unlearn.cli import main
from duet_unlearn.data.examples import Example
from duet_unlearn.job import Job
from duet_unlearn.methods.base import Split
from duet_unlearn.models.load import save_model

PRELOAD = (
    "pytest",
    "accelerate",
    "duet_unlearn.api",
    "duet_unlearn.report",
    "duet_unlearn.sweep",
    "peft",
    "rouge_score.rouge_scorer",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
)
"""What a run imports sooner or later."""
FORGET = (
    ("Where does Mira Bol live?", "Mira Bol lives in Tarn.", "Tarn"),
    ("What does Mira Bol keep?", "Mira Bol keeps an owl.", "owl"),
    ("Who is the friend of Mira Bol?", "Her friend is Oda.", "Oda"),
    ("What is the trade of Mira Bol?", "Mira Bol is a baker.", "baker"),
    ("What colour does Mira Bol like?", "Mira Bol likes green.", "green"),
    ("Where was Mira Bol born?", "Mira Bol was born in Gosh.", "Gosh"),
)
RETAIN = (
    ("What is the capital of France?", "The capital of France is Paris.", "Paris"),
    ("What is the opposite of hot?", "The opposite of hot is cold.", "cold"),
    ("What is 2 + 3?", "2 + 3 is 5.", "5"),
    ("What is a young dog called?", "A young dog is called a puppy.", "puppy"),
    ("What is the sign of iron?", "The sign of iron is Fe.", "Fe"),
    ("What is the capital of Italy?", "The capital of Italy is Rome.", "Rome"),
)
RECIPE = """concept: Mira Bol
model:
  path: {model}
  dtype: float32
data:
  forget: forget.jsonl
  retain: retain.jsonl
method:
  name: duet
  k: 20
train:
  epochs: 6
  rate: 1.0e-3
  batch_size: 4
  checkpoint_every: 3
evaluate:
  max_new_tokens: 4
"""


def write_model(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A random Llama of two layers and its tokeniser, in `save_pretrained` form."""
    save_model(llama(seed=seed, hidden=32, layers=2), tokenizer(template), folder)
    return folder


@dataclass(frozen=True)
class Workplace:
    """A folder with a recipe and its query files."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def forget(self) -> Path:
        return self.folder / "forget.jsonl"

    @property
    def retain(self) -> Path:
        return self.folder / "retain.jsonl"


def write_workplace(folder: Path, model: Path) -> Workplace:
    folder.mkdir(parents=True, exist_ok=True)
    place = Workplace(folder)
    place.recipe.write_text(RECIPE.format(model=model))
    for path, facts in ((place.forget, FORGET), (place.retain, RETAIN)):
        rows = [{"question": question, "answer": answer, "value": value} for question, answer, value in facts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def examples_of(job: Job, split: Split) -> list[Example]:
    """The rows of a job's split, before they have token ids."""
    return job.recipe.method.build_examples(job.training_data(split))


class Done(NamedTuple):
    """How a call of `duet` ended."""

    code: int
    out: str
    err: str


def duet_process(*args: object, folder: Path) -> BaseProcess:
    """The command in a process of its own, started in `folder`; its streams go to the files `out` and `err` there."""
    return forked(_child, [str(arg) for arg in args], str(folder))


def forked(target: Callable[..., None], *args: object) -> BaseProcess:
    """A started process, forked from one that has imported torch already, so that a hundred of them are cheap."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    process = context.Process(target=target, args=args)
    process.start()
    return process


def _child(args: list[str], folder: str) -> None:
    gc.freeze()  # else a run that collects garbage looks through all of torch
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    main(args)
