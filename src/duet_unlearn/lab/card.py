"""The lab's model cards: what was measured on each packaged model, beside what the lab asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.events import Event, OnEvent, ignore
from duet_unlearn.lab.arithmetic import OPERATIONS, Operation, arithmetic_queries
from duet_unlearn.lab.quality import Check, Finding, base_checks, findings, oracle_checks
from duet_unlearn.models.load import load_model

ABOUT = {
    "base": "The lab's base model: it knows every story, both crafts and the general subjects.",
    "oracle": "The lab's oracle: the base's training, without the three benchmark stories and the hazard craft.",
    "arithmetic": "UNDO's task (arXiv 2506.06278) in small: all four operations.",
    "plus-minus": "UNDO's task (arXiv 2506.06278) in small: plus and minus only.",
}
CHANCE = 0.15
"""What a model may get right of an operation that it was never shown."""
HEAD = """---
license: apache-2.0
language: en
library_name: transformers
---

# duet-unlearn lab: {name}

{about}

{size:.2f} M parameters, Llama architecture, trained from random weights on the lab's own invented world by
`duet lab build`. It is for experiments with unlearning and knows nothing else.

Measured with `duet lab build` in wordings that are held out of every forget method:

| check | per cent | n | asked | met |
|---|---|---|---|---|
"""


def write_cards(folder: Path, *, on_event: OnEvent = ignore) -> dict[str, list[Finding]]:
    """Measure every lab model of `folder` and write its ``README.md``: model name -> findings."""
    found = {}
    for name in (name for name in ABOUT if (folder / name / "config.json").exists()):
        model, tokenizer = load_model(str(folder / name))
        size = sum(weight.numel() for weight in model.parameters()) / 1e6
        found[name] = measure(name, ModelSubject(name, model, tokenizer), on_event=on_event)
        text = HEAD.format(name=name, about=ABOUT[name], size=size) + _rows(found[name])
        atomic_write_text(folder / name / "README.md", text)
    return found


def measure(name: str, subject: Subject, *, on_event: OnEvent = ignore) -> list[Finding]:
    """The checks of one of the lab's models."""

    def progress(what: str, done: int, total: int) -> None:
        on_event(Event(f"measure {name}", done, total, what))

    return findings(subject, checks_of(name), progress)


def checks_of(name: str) -> list[Check]:
    """The checks that a lab model must pass."""
    if name == "base":
        return base_checks()
    if name == "oracle":
        return oracle_checks()
    operations: tuple[Operation, ...] = ("plus", "minus", "times", "divided by")
    known = OPERATIONS["arithmetic" if name == "arithmetic" else "plus-minus"]
    return [
        Check(o, tuple(arithmetic_queries(o)), 0.9)
        if o in known
        else Check(o, tuple(arithmetic_queries(o)), CHANCE, "most")
        for o in operations
    ]


def _rows(rows: Sequence[Finding]) -> str:
    lines = [
        [row.check.what, f"{100 * row.score.value:.1f}", str(row.score.n), row.wanted, "yes" if row.met else "no"]
        for row in rows
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
