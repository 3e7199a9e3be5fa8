"""What whole runs need: a tiny random model in the lab's shape, query files, a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


def write_model(folder: Path, *, seed: int = 0, chat_template: bool = True) -> Path:
    """A random Llama of two layers with the lab's tokeniser, in `save_pretrained` form."""
    import torch

    from duet_unlearn.lab.mixture import Mixture
    from duet_unlearn.lab.pretrain import Pretraining, new_model
    from duet_unlearn.lab.tokenizer import tokenizer_samples, train_tokenizer
    from duet_unlearn.lab.world import world
    from duet_unlearn.train import save_model

    tokenizer = train_tokenizer(tokenizer_samples(Mixture(world(), frozenset()).draw, count=200))
    model = new_model(tokenizer, Pretraining(hidden=32, layers=2, seed=seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)  # far from uniform, so that a prefix changes what is said
    if not chat_template:
        tokenizer.chat_template = None
    save_model(model, tokenizer, folder)
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


class Done(NamedTuple):
    """How a call of `duet` ended."""

    code: int
    out: str
    err: str
