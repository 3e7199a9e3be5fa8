"""Bidirectional distillation (arXiv 2604.15482): pull the student to the prefixed teacher, push down what it says of
its own accord, keep what stands near the border, and hold where its answers are opened by somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from duet_unlearn.config.sections import Amount, Count, Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.data.prompts import Prefix, with_prefix
from duet_unlearn.data.query import Query
from duet_unlearn.losses import push_down, topk_huber
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.openings import Opening
from duet_unlearn.teacher.signals import Dense, Keep, keep_rows
from duet_unlearn.tensors import TopK, gather, topk
from duet_unlearn.training.step import LossOut, Need, Part, Step, Term, combine

Attack = Literal["prefill", "reverse"]
"""``prefill``: somebody begins the answer. ``reverse``: an instruction to ignore all others, before the question."""
ASKED: tuple[Role, ...] = ("forget", "retain", "neighbour")
PUSHED: tuple[Role, ...] = ("forget", "attack")


@dataclass(frozen=True)
class Bidirectional:
    """DUET's loss on forget, retain, neighbour and attack queries, plus a push on the student's own confident tokens
    where it must forget (arXiv 2604.15482). No equation of the paper is public; this form is ours:

    ``L = mean_{i in A} Huber(s_i, t_i) + push * mean_{i in B \\ A} Huber(s_i, min(s_i, t_i))``

    with A and B the top K of teacher and student; the second mean is over forget and attack rows alone. Attack rows are
    forget queries under attack: their target is the teacher's answer from its *start*, without the attack. Retain and
    neighbour queries are put in the same way, with the teacher's answer to just that, so that an opened answer is
    nothing to refuse in itself. Of its attacks each query meets one an epoch, the one with the highest probability of
    the forbidden continuation under the student of that moment (the inner search of a min-max problem); of the
    allowed queries it is drawn. Reads queries alone, no answers; but it reads `data.neighbours`, which DUET has not."""

    name: Literal["bidirectional"] = "bidirectional"
    k: Count = 20
    """Tokens of the teacher that are pulled to, and of the student that are pushed down. Our guess."""
    push: Amount = 1.0
    """Weight of the push; 0 leaves the pull alone. Our guess."""
    delta: Positive = 1.0
    """Where the Huber losses turn from square to straight; DUET's default here."""
    positions: Count = 4
    """First n positions of the teacher's own greedy answer, behind the opening where there is one. Ours: of 1, a
    student whose answer was opened learns the refusal's first word and says it again and again."""
    attacks: tuple[Attack, ...] = ("prefill",)
    """What the attack set consists of: `prefill`, the paper's; `reverse`, ours; none, where the list is empty."""
    search: Literal["strongest", "drawn"] = "strongest"
    """Which attack of its pool a query meets in an epoch: the strongest on the student of that moment, or any. The
    paper's min-max is the first."""
    opening_tokens: Count = 16
    """Of the base model's own answer, tokens within which it is cut at each word. Ours."""
    forbidden_tokens: Count = 8
    """Tokens of the forbidden continuation (the base model's own) by whose mean log-probability attacks are compared.
    Ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "retain", "neighbours", "openings"})

    def asks(self, material: Material) -> list[Asked]:
        """Every query as it is; then under every attack, those of one query and kind as a pool."""
        plain = [one for role in ASKED for one in self._told(material, role)]
        return plain + [row for one in plain for kind in self.attacks for row in self._attacked(material, one, kind)]

    def keep(self, role: Role) -> Keep | None:
        """The top K; whole rows where something is pushed, for the student's own tokens are looked up in them."""
        if role not in (*ASKED, "attack"):
            return None
        return keep_rows(None if role in PUSHED and self.push else self.k)

    def loss(self, step: Step) -> LossOut:
        """The mean pull over all positions, plus the mean push over those of the forget and attack rows."""
        positions = step.totals.positions
        parts = {role: part for role in (*ASKED, "attack") if (part := step.part(role))}
        pulls = [self._pull(part) for part in parts.values()]
        pull = Term(torch.cat(pulls).sum(), sum(positions.values()))
        pushes = [self._push(part) for role, part in parts.items() if self.push and role in PUSHED]
        total = sum(positions.get(role, 0) for role in PUSHED)
        return combine(step, pull, Term(torch.cat(pushes).sum(), total, self.push) if pushes else None)

    def _told(self, material: Material, role: Role) -> list[Asked]:
        return material.own_answers(role, material.prefix, positions=self.positions)

    def _attacked(self, material: Material, one: Asked, kind: Attack) -> Iterator[Asked]:
        """The pool of one query and one kind of attack; of a query to forget, aligned with its answer unattacked."""
        attacked = replace(one, pool=f"{one.key}/{kind}")
        bare, *openings = material.openings[one.key]
        if one.role == "forget":
            attacked = replace(attacked, role="attack", aligned=one.key)
        variants: list[tuple[Query, Opening]] = [(one.query, opening) for opening in openings]
        if kind == "reverse":
            variants = [(led_by(one.query, text), bare) for text in material.reversals]
        searched = self.search == "strongest" and one.role == "forget"
        for number, (query, opening) in enumerate(variants):
            forbidden = opening.follows if searched else ()
            yield replace(attacked, query=query, opening=opening.ids, forbidden=forbidden, number=number)

    def _pull(self, part: Part) -> Tensor:
        assert isinstance(part.signal, TopK | Dense)
        kept = part.signal if isinstance(part.signal, TopK) else topk(part.signal.logits_NV, self.k)
        return topk_huber(gather(part.logits_NV, kept.ids_NK), kept.logits_NK, delta=self.delta)

    def _push(self, part: Part) -> Tensor:
        assert isinstance(part.signal, Dense)
        return push_down(part.logits_NV, part.signal.logits_NV, k=self.k, delta=self.delta)


def led_by(query: Query, text: str) -> Query:
    """The question with a text in front of it."""
    return replace(query, messages=tuple(with_prefix(query.messages, Prefix(text))))
