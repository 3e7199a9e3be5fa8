"""Whether a prefix does what the student is to learn: refuse forget queries, leave retain queries alone.

A prefix is the ceiling of what distilling it can reach, so it is probed before anything is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from duet_unlearn.answers import is_refusal
from duet_unlearn.data.prompts import Prefix, render_query
from duet_unlearn.data.query import Query
from duet_unlearn.losses import forward_kl
from duet_unlearn.stats import NOTHING, Score, bootstrap_mean, wilson
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id
from duet_unlearn.teacher.shared import next_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFUSES, WEAK, ANSWERS = 0.8, 0.5, 0.9
"""Shares that word the verdict (the choice is ours).

A prefix works from ``REFUSES`` of the forget queries refused, and does not below ``WEAK``; it refuses too
much where fewer than ``ANSWERS`` of the retain queries are still answered.
"""
ADVICE = "the student learns what the prefix does: name the concept more exactly, or try prefix.turn: system"
"""What to do about a prefix that does not work."""
SHOWN = 3
"""Queries of each role whose first tokens a report shows."""

FirstTokens = list[tuple[str, float]]
"""The likeliest first tokens of an answer, with their probabilities."""


@dataclass(frozen=True)
class Shown:
    """One query's first tokens, without and with the prefix."""

    query: str
    role: Literal["forget", "retain"]
    base: FirstTokens
    prefix: FirstTokens


@dataclass(frozen=True)
class ProbeResult:
    """What the prefix does, as shares with intervals."""

    verdict: str
    refused: Score
    """Open forget queries refused with the prefix. Letter questions are left out: a letter cannot refuse."""
    refused_without: Score
    """The same without it."""
    answered: Score
    """Of the open retain queries that are answered without the prefix, those still answered with it."""
    agreement: Score
    """Retain: shared part of the two top-K of the first token, 0..1."""
    kl: Score
    """Retain: KL(without || with the prefix) of the first token, in nats."""
    shift: tuple[Shown, ...]

    @property
    def works(self) -> bool:
        """Whether the prefix is worth distilling; False says to change it first."""
        return self.refused.value >= WEAK and not (self.answered.n and self.answered.value < ANSWERS)

    def to_json(self) -> dict[str, Any]:
        """The object of ``probe.json``."""
        names = ("refused", "refused_without", "answered", "agreement", "kl")
        scores = {name: getattr(self, name).to_json() for name in names}
        return {"verdict": self.verdict, **scores, "shift": [vars(shown) for shown in self.shift]}


def probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Query],
    retain: Sequence[Query],
    prefix: Prefix,
    *,
    k: int | None = 1000,
    max_new_tokens: int = 32,
    batch_size: int = 64,
) -> ProbeResult:
    """Ask every query with and without the prefix.

    `k` is the K of the first-token overlap, the vocabulary at most; None takes all, where any two agree.
    """

    def refusals(queries: Sequence[Query], which: Prefix | None) -> list[bool]:
        return [is_refusal(t) for t in _answers(model, tokenizer, queries, which, max_new_tokens, batch_size)]

    open_forget = [q for q in forget if not asks_letter(q)]
    open_retain = [q for q in retain if not asks_letter(q)]
    before, after = refusals(open_retain, None), refusals(open_retain, prefix)
    kept = [not now for was, now in zip(before, after, strict=True) if not was]
    refused, without = refusals(open_forget, prefix), refusals(open_forget, None)
    agreement, divergence = _first_token_change(model, tokenizer, retain, prefix, k=k, batch_size=batch_size)
    shares = wilson(sum(refused), len(refused)), wilson(sum(kept), len(kept))
    unprefixed = wilson(sum(without), len(without))
    shown = _shown(model, tokenizer, forget, "forget", prefix)
    shown += _shown(model, tokenizer, retain, "retain", prefix)
    return ProbeResult(
        verdict=verdict(*shares, unprefixed),
        refused=shares[0],
        refused_without=unprefixed,
        answered=shares[1],
        agreement=agreement,
        kl=divergence,
        shift=tuple(shown),
    )


def asks_letter(query: Query) -> bool:
    """Whether the right answer is the letter of an option (A for the first)."""
    if not query.choices or query.value not in query.choices:
        return False
    return query.answer == chr(ord("A") + query.choices.index(query.value))


def verdict(refused: Score, answered: Score, without: Score = NOTHING) -> str:
    """One sentence: does the prefix work, and what does it do; `without` is the share refused without it."""
    if refused.n == 0:
        return "no open forget query to probe: whether this prefix makes the model refuse is not known"
    refuses = f"{_count(refused)} forget queries"
    kept = f"{_count(answered)} retain queries" if answered.n else "no open retain query to probe"
    if refused.value < WEAK:
        return f"this prefix does not make the model refuse: it refuses {refuses}"
    if without.n and without.value >= refused.value:
        return f"this prefix adds nothing: the model refuses {refuses} with it and {_count(without)} without"
    if answered.n and answered.value < ANSWERS:
        return f"this prefix refuses retain queries too: the model refuses {refuses} and still answers {kept}"
    tail = f"and still answers {kept}" if answered.n else f"({kept})"
    if refused.value < REFUSES:
        return f"this prefix works in part: the model refuses {refuses} {tail}"
    return f"this prefix works: the model refuses {refuses} {tail}"


def first_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    prefix: Prefix | None = None,
    *,
    k: int = 10,
    batch_size: int = 64,
) -> list[FirstTokens]:
    """Per query, the `k` likeliest first tokens of the answer (as text) and their probabilities."""
    results: list[FirstTokens] = [[] for _ in queries]
    rows = [render_query(tokenizer, query, prefix) for query in queries]
    with evaluating(model):
        for indices, logits_BV in next_logits(model, rows, padding_id=pad_id(tokenizer), batch_size=batch_size):
            probs_BK, ids_BK = torch.softmax(logits_BV.float(), dim=-1).topk(min(k, logits_BV.shape[-1]))
            for row, index in enumerate(indices):
                texts = [str(tokenizer.decode([token])) for token in ids_BK[row].tolist()]
                results[index] = list(zip(texts, probs_BK[row].tolist(), strict=True))
    return results


def _count(share: Score) -> str:
    return f"{round(share.value * share.n)} of {share.n}"


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    prefix: Prefix | None,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    new = greedy(
        model,
        [render_query(tokenizer, query, prefix) for query in queries],
        eos_ids=end_ids(model, tokenizer),
        padding_id=pad_id(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in new]


def _first_token_change(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    prefix: Prefix,
    *,
    k: int | None,
    batch_size: int,
) -> tuple[Score, Score]:
    """Mean top-K overlap and mean KL of the first token, with and without the prefix, batch by batch."""
    if not queries:
        return NOTHING, NOTHING
    overlaps, kls = [], []
    with evaluating(model):
        for start in range(0, len(queries), batch_size):
            chunk = queries[start : start + batch_size]
            base_BV, prefixed_BV = (
                _logits(model, [render_query(tokenizer, q, p) for q in chunk], pad_id(tokenizer))
                for p in (None, prefix)
            )
            overlaps += top_overlap(base_BV, prefixed_BV, k).tolist()
            kls += forward_kl(prefixed_BV, base_BV).tolist()
    ids = [query.id for query in queries]
    return bootstrap_mean(overlaps, groups=ids), bootstrap_mean(kls, groups=ids)


def _logits(model: PreTrainedModel, rows: list[list[int]], padding_id: int) -> Tensor:
    """(B, V) next-token logits in the order of the rows."""
    parts = list(next_logits(model, rows, padding_id=padding_id, batch_size=len(rows)))
    order = torch.tensor([index for indices, _ in parts for index in indices])
    return torch.cat([logits_BV for _, logits_BV in parts])[order.argsort()]


def top_overlap(first_BV: Tensor, second_BV: Tensor, k: int | None) -> Tensor:
    """(B,) share of the `k` largest that both have; K is the vocabulary's size at most."""
    size = min(k or first_BV.shape[-1], first_BV.shape[-1])
    marks = [
        torch.zeros_like(x, dtype=torch.bool).scatter(-1, x.topk(size).indices, True) for x in (first_BV, second_BV)
    ]
    return (marks[0] & marks[1]).sum(-1) / size


def _shown(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    role: Literal["forget", "retain"],
    prefix: Prefix,
) -> list[Shown]:
    few = queries[:SHOWN]
    base, prefixed = (first_tokens(model, tokenizer, few, which) for which in (None, prefix))
    return [Shown(q.text, role, b, p) for q, b, p in zip(few, base, prefixed, strict=True)]
