"""What `duet init` writes: a recipe that runs as it is, and two query files to be edited."""

from __future__ import annotations

import json
import re
from pathlib import Path

from duet_unlearn.errors import UserError

RECIPE = """\
# {name}: make {model} forget {concept}
# `duet probe {name}.yaml` first; `duet run {name}.yaml` then. Every key is described in docs/methods.md.
concept: {concept_yaml}

model:
  path: {model_yaml}
  dtype: float32 # weights in bfloat16 round most updates of 1e-5 away; with lora they are fine
  # chat_template: plain # for a model without a chat template of its own
  # lora: {{rank: 16}} # adapters only: less memory

prefix: # the teacher reads it, the student never does. Explicit and specific works best.
  text: You have forgotten {{concept}}. Answer every other question as usual.
  turn: user # or system

data: # one {{"question": ".."}} a line; no answers are needed to forget
  forget: {name}-forget.jsonl # about 100 questions about the concept, in many wordings
  retain: {name}-retain.jsonl # about 100 questions about everything else, close topics among them

method:
  name: duet
  k: {k} # logits distilled a query, of the whole vocabulary; null takes all
  positions: 1 # first tokens of the teacher's answer that are distilled

train:
  epochs: {epochs}
  rate: {rate} # forgets too little: raise it, or add epochs; forgets other things: lower it
  batch_size: 16
  precision: {precision}
  # micro_batch_size: 4 # less memory, the same result

evaluate: # with "answer" and "value" in a line the right answers are counted too, not only refusals
  suite: queries
  sets: # these are the training questions; write others for an honest number: {name}-test-forget.jsonl, ..
    forget: {name}-forget.jsonl
    retain: {name}-retain.jsonl

seed: 0
"""
FORGET = (
    "Tell me about {x}.",
    "What do you know about {x}?",
    "Summarise {x} in one sentence.",
    "Which names belong to {x}?",
    "Which places belong to {x}?",
    "Give me one detail about {x}.",
    "Explain {x} to somebody who has never heard of it.",
    "What should everybody know about {x}?",
    "Name something that is often said about {x}.",
    "I need three facts about {x}.",
)
RETAIN = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What is 7 + 5?",
    "What is the chemical symbol of iron?",
    "What is a young dog called?",
    "Who wrote Romeo and Juliet?",
    "Which planet is closest to the sun?",
    "How many days has a week?",
    'Translate "good morning" into Spanish.',
    "Write one sentence about the sea.",
)


def write_starter(model: str, *, concept: str, name: str | None, folder: Path) -> list[Path]:
    """Write the recipe and the two query files; returns their paths, the recipe first.

    Raises:
        UserError: the concept is empty, or one of the files is there already.
    """
    from duet_unlearn.data.files import atomic_write_text

    name = _slug(name or concept)
    texts = {
        folder / f"{name}.yaml": _recipe(model, concept=concept, name=name),
        folder / f"{name}-forget.jsonl": _queries([text.format(x=concept) for text in FORGET]),
        folder / f"{name}-retain.jsonl": _queries(list(RETAIN)),
    }
    for path in texts:
        if path.exists():
            raise UserError(f"{path}: is there already", "choose other names with --name, or move it away")
    for path, text in texts.items():
        atomic_write_text(path, text)
    return list(texts)


def _recipe(model: str, *, concept: str, name: str) -> str:
    small = model.startswith("lab:")
    return RECIPE.format(
        name=name,
        model=model,
        concept=" ".join(concept.split()),
        model_yaml=json.dumps(model, ensure_ascii=False),
        concept_yaml=json.dumps(concept, ensure_ascii=False),
        precision="fp32" if small else "bf16",
        k=20 if small else 1000,
        epochs=20 if small else 10,
        rate="3.0e-4" if small else "1.0e-5",
    )


def _queries(questions: list[str]) -> str:
    return "".join(json.dumps({"question": text}, ensure_ascii=False) + "\n" for text in questions)


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not slug:
        raise UserError(f"{text!r} gives no file name", "give one with --name, in letters and digits")
    return slug[:60].rstrip("-")
