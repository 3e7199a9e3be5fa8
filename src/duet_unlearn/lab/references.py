"""What recipes write for the lab: ``lab:train/forget/amber-gate``, ``lab:train/retain``, ``lab:mix/20000``,
``lab:base``."""

from __future__ import annotations

import random
from pathlib import Path

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError, nearest
from duet_unlearn.lab.evaluation import neighbour_queries
from duet_unlearn.lab.language import LabText
from duet_unlearn.lab.mixture import Mixture
from duet_unlearn.lab.pretraining import LAB_MODELS, OPERATIONS, draw_arithmetic
from duet_unlearn.lab.questions import TARGETS, forget_queries, retain_queries
from duet_unlearn.lab.world import world

MODELS = Path(__file__).parent / "models"
TEXTS = ("mix", "arithmetic")


def load(reference: str, *, count: int | None = None) -> list[Query]:
    """The queries that a reference names.

    Args:
        count: limits or extends the forget queries.

    Raises:
        UserError: no such reference.
    """
    parts = reference.removeprefix("lab:").split("/")
    if parts[0] in ("train", "validation"):
        if parts[1:] == ["retain"]:
            return retain_queries(split=parts[0])
        if len(parts) == 3 and parts[1] == "forget":
            return forget_queries(parts[2], split=parts[0], count=count or 100)
        if len(parts) == 3 and parts[:2] == ["train", "neighbours"]:
            return neighbour_queries(parts[2])
    if len(parts) == 2 and parts[0] in TEXTS:
        return _texts(*parts)
    close = nearest(reference, references())
    raise UserError(
        f"the lab has no queries {reference!r}",
        f"did you mean {close}?" if close else f"it has {', '.join(references())}, and text: lab:mix/20000",
    )


def references() -> list[str]:
    """Every reference to questions."""
    names = ("retain", *(f"forget/{target}" for target in TARGETS))
    questions = [f"lab:{split}/{name}" for split in ("train", "validation") for name in names]
    return questions + [f"lab:train/neighbours/{target}" for target in TARGETS if target != "hazard"]


def model_path(reference: str) -> Path:
    """The folder of a packaged model.

    Raises:
        UserError: no such model, or it is not built.
    """
    name = reference.removeprefix("lab:")
    if name not in LAB_MODELS:
        raise UserError(f"the lab has no model {reference!r}", f"it has {', '.join(f'lab:{n}' for n in LAB_MODELS)}")
    if not (MODELS / name / "config.json").exists():
        raise UserError(f"{reference} is not built", "run `duet lab build`")
    return MODELS / name


def _texts(kind: str, count: str) -> list[Query]:
    """`count` samples of what the base (``mix``) or the model of all four operations (``arithmetic``) read last, as
    queries to distil on.

    Topics that are to be forgotten are among them. A sample's number is its seed, so that ``lab:mix/300`` begins with
    all of ``lab:mix/40``.
    """
    if not count.isdecimal() or int(count) == 0:
        raise UserError(f"lab:{kind}/{count}: {count!r} is no number of texts", f"write it as lab:{kind}/20000")
    mixture = Mixture(world(), frozenset())
    found = []
    for number in range(int(count)):
        rng = random.Random(f"{kind}/{number}")
        text = mixture.draw(rng, 1.0) if kind == "mix" else draw_arithmetic(OPERATIONS["arithmetic"], rng)
        found.append(as_query(text, f"{kind}-{number}"))
    return found


def as_query(text: LabText, name: str) -> Query:
    """A text as the query whose rendered prompt and answer are its tokens; raw text has no answer."""
    if text.is_raw:
        return Query(name, ({"role": "text", "content": text.text},))
    *before, last = text.segments
    return Query(name, tuple({"role": segment.role, "content": segment.text} for segment in before), last.text)
