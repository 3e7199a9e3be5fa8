"""Bidirectional distillation (arXiv 2604.15482): pull the student to the prefixed teacher, push down what it says of
its own accord, keep what stands near the border, and hold where its answers are opened by somebody else.

Ways to open an answer are found on the frozen model before training (``find_response_prefixes``); which of them an
epoch meets is searched on the student of that moment (``choose_rows``), the inner search of a min-max problem.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from accelerate import PartialState
from torch import Tensor, nn

from duet_unlearn.config.sections import Amount, Count, Positive
from duet_unlearn.data.examples import Example, Pick, ResponsePrefix, Role, TrainingData, collate, draw, pools
from duet_unlearn.data.files import atomic_write_json, atomic_write_text, read_text
from duet_unlearn.data.prompts import Prefix, answer_ids, render, turn_end, with_prefix
from duet_unlearn.data.query import Query
from duet_unlearn.losses import push_down
from duet_unlearn.methods.base import Context, Method, Need, Split
from duet_unlearn.methods.duet import pull_to_top
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id
from duet_unlearn.teacher.targets import ROWS_AT_ONCE, Dense, TargetSpec, rows_spec
from duet_unlearn.tensors import batches, sum_by_row, token_logps
from duet_unlearn.training.step import LossOut, Part, Step, Term, combine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Attack = Literal["prefill", "reverse"]
"""``prefill``: somebody begins the answer. ``reverse``: an instruction to ignore all others, before the question."""
PLAIN_ROLES: tuple[Role, ...] = ("forget", "retain", "neighbour")
PUSHED: tuple[Role, ...] = ("forget", "attack")


@dataclass(frozen=True)
class Bidirectional(Method):
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

    def select_data(self, data: TrainingData) -> TrainingData:
        """Neighbours are a set of their own."""
        return data

    def longest_prompts(self, data: TrainingData, *, room: int) -> Iterator[tuple[Query, str, int]]:
        """See ``Method``: behind the longest reversal, with the longest response prefix."""
        if not self.attacks:
            yield from super().longest_prompts(data, room=room)
            return
        reversal = max(data.reversals, key=len) if "reverse" in self.attacks else ""
        room = max(room, self.opening_tokens + max(self.forbidden_tokens, self.positions))
        longest_prefix = max(data.response_prefixes, key=len)
        for query in (*data.forget, *data.retain, *data.neighbours):
            yield led_by(query, reversal) if reversal else query, longest_prefix, room

    def prepare_data(
        self,
        data: TrainingData,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        context: Context,
        split: Split,
    ) -> TrainingData:
        """Find ways to open the answer of every query, and keep them in the run folder.

        What is made of them must be the same when a killed run goes on.
        """
        if not self.attacks:
            return data
        path, found = context.run.targets / split / "openings.json", {}
        if path.exists():
            stored = json.loads(read_text(path)).items()
            found = {name: tuple(ResponsePrefix(*map(tuple, way)) for way in pool) for name, pool in stored}
            return replace(data, prefix_pools=found)
        for role in PLAIN_ROLES:
            queries = data.queries(role)
            ways = find_response_prefixes(
                model,
                tokenizer,
                queries,
                texts=data.response_prefixes,
                length=self.opening_tokens,
                # What the model says behind them matters only where it must not be said.
                follow=self.forbidden_tokens if role == "forget" else 0,
                batch_size=context.settings.evaluate.batch_size,
            )
            found |= {f"{role}/{query.id}": way for query, way in zip(queries, ways, strict=True)}
        atomic_write_text(path, json.dumps(found) + "\n")
        return replace(data, prefix_pools=found)

    def build_examples(self, data: TrainingData) -> list[Example]:
        """Every query as it is; then under every attack, those of one query and kind as a pool."""
        plain = [one for role in PLAIN_ROLES for one in data.own_answers(role, data.prefix, positions=self.positions)]
        return plain + [row for one in plain for kind in self.attacks for row in self._attacked(data, one, kind)]

    def _attacked(self, data: TrainingData, one: Example, kind: Attack) -> Iterator[Example]:
        """The pool of one query and one kind of attack; of a query to forget, aligned with its answer unattacked."""
        assert one.query is not None
        attacked = replace(one, pool=f"{one.key}/{kind}")
        bare, *opened = data.prefix_pools[one.key]
        if one.role == "forget":
            attacked = replace(attacked, role="attack", target_key=one.key)
        variants: list[tuple[Query, ResponsePrefix]] = [(one.query, way) for way in opened]
        if kind == "reverse":
            variants = [(led_by(one.query, text), bare) for text in data.reversals]
        searched = self.search == "strongest" and one.role == "forget"
        for number, (query, way) in enumerate(variants):
            yield replace(
                attacked,
                key=f"{attacked.pool}/{number}",
                query=query,
                response_prefix=way.ids,
                forbidden=way.follows if searched else (),
            )

    def target_spec(self, role: Role) -> TargetSpec | None:
        """The top K; whole rows where something is pushed, for the student's own tokens are looked up in them."""
        if role not in (*PLAIN_ROLES, "attack"):
            return None
        return rows_spec(None if role in PUSHED and self.push else self.k)

    def choose_examples(
        self, student: nn.Module, examples: Sequence[Example], context: Context, *, pad_id: int
    ) -> Pick | None:
        """See ``choose_rows``; None where there are no pools."""
        if not pools(examples):
            return None
        settings = context.settings
        scores = partial(forbidden_logps, student, precision=settings.train.precision, pad_id=pad_id)
        return choose_rows(examples, scores=scores, folder=context.run.picks, seed=settings.seed)

    def loss(self, step: Step) -> LossOut:
        """The mean pull over all positions, plus the mean push over those of the forget and attack rows."""
        positions = step.totals.positions
        parts = {role: part for role in (*PLAIN_ROLES, "attack") if (part := step.part(role))}
        pulls = [pull_to_top(part, k=self.k, delta=self.delta) for part in parts.values()]
        pull = Term(torch.cat(pulls).sum(), sum(positions.values()))
        pushes = [self._push(part) for role, part in parts.items() if self.push and role in PUSHED]
        total = sum(positions.get(role, 0) for role in PUSHED)
        return combine(step, pull, Term(torch.cat(pushes).sum(), total, self.push) if pushes else None)

    def _push(self, part: Part) -> Tensor:
        assert isinstance(part.targets, Dense)
        return push_down(part.logits_NV, part.targets.logits_NV, k=self.k, delta=self.delta)


def led_by(query: Query, text: str) -> Query:
    """The question with a text in front of it."""
    return replace(query, messages=tuple(with_prefix(query.messages, Prefix(text))))


# Ways to open an answer ----------------------------------------------------------------------------------------------


def find_response_prefixes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    *,
    texts: Sequence[str],
    length: int,
    follow: int,
    batch_size: int,
) -> list[tuple[ResponsePrefix, ...]]:
    """Each query's ways to open its answer: nothing, then its pool.

    The pool: `texts`; the model's own greedy answer of `length` tokens at most, up to each of its words but the
    first; of a question that lists its choices, each of them (or its letter). Behind each the model goes on greedily
    for `follow` tokens; nobody needs to know the right answer.
    """
    prompts = [render(tokenizer, query.messages) for query in queries]
    decode = {"eos_ids": end_ids(model, tokenizer), "padding_id": pad_id(tokenizer), "batch_size": batch_size}
    responses = greedy(model, prompts, max_new_tokens=length, **decode)
    id_pools = [_pool(tokenizer, *one, texts) for one in zip(queries, responses, strict=True)]
    rows = [[*prompt, *ids] for prompt, pool in zip(prompts, id_pools, strict=True) for ids in pool]
    continued = iter(greedy(model, rows, max_new_tokens=follow, **decode))
    end = turn_end(tokenizer)

    def opened(ids: tuple[int, ...]) -> ResponsePrefix:
        own = next(continued)
        return ResponsePrefix(ids, (*own, end) if len(own) < follow and end is not None else tuple(own))

    return [tuple(opened(ids) for ids in pool) for pool in id_pools]


def _pool(
    tokenizer: PreTrainedTokenizerBase, query: Query, response: Sequence[int], texts: Sequence[str]
) -> list[tuple[int, ...]]:
    """Nothing and all others, each once."""
    given = [tuple(answer_ids(tokenizer, query.messages, text)) for text in (*texts, *_choices(query))]
    return list(dict.fromkeys([(), *given, *_cuts(tokenizer, response)]))


def _choices(query: Query) -> tuple[str, ...]:
    """The choices that a question lists, or their letters; none of an open question."""
    choices = query.choices or ()
    letters = ascii_uppercase[: len(choices)]
    if all(f"{letter}. {choice}" in query.text for letter, choice in zip(letters, choices, strict=False)):
        return tuple(letters)
    return choices if all(choice in query.text for choice in choices) else ()


def _cuts(tokenizer: PreTrainedTokenizerBase, response: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """An answer's ids up to each of its words but the first."""
    texts = [
        str(tokenizer.decode(list(response[:stop]), clean_up_tokenization_spaces=False))
        for stop in range(1, len(response) + 1)
    ]
    for stop in range(1, len(response)):
        if texts[stop][len(texts[stop - 1]) :][:1].isspace() and texts[stop - 1].strip():
            yield tuple(response[:stop])


# Which of its pool an epoch meets -------------------------------------------------------------------------------------

Scores = Callable[[Sequence[Example]], Sequence[float]]
"""How strong each row is."""


def choose_rows(examples: Sequence[Example], *, scores: Scores, folder: Path, seed: int) -> Pick:
    """Of each pool the row whose forbidden continuation scores highest (of equals the first); where rows have none, one
    that is drawn.

    What is chosen depends on the student at an epoch's first step, so it is written to `folder` then, and read from
    there by a run that goes on.
    """
    rows = pools(examples)
    searched = {name: found for name, same in rows.items() if (found := [e for e in same if e.forbidden])}
    others = {name: same for name, same in rows.items() if name not in searched}

    def pick(epoch: int) -> frozenset[str]:
        path = folder / f"epoch-{epoch:04d}.json"
        with PartialState().main_process_first():  # the others read what it chose
            if not path.exists():
                atomic_write_json(path, draw(others, epoch=epoch, seed=seed) | _highest(searched, scores))
        return frozenset(json.loads(read_text(path)).values())

    return pick


def _highest(rows: dict[str, list[Example]], scores: Scores) -> dict[str, str]:
    """Pool -> the key of its highest row."""
    every = [example for same in rows.values() for example in same]
    scored = dict(zip((example.key for example in every), scores(every), strict=True))
    return {name: max(same, key=lambda example: scored[example.key]).key for name, same in rows.items()}


def forbidden_logps(model: nn.Module, examples: Sequence[Example], *, precision: str, pad_id: int) -> list[float]:
    """Mean log-probability, in nats, of each row's forbidden tokens behind its first position."""
    rows, found = [_continued(example) for example in examples], [0.0] * len(examples)
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with evaluating(model), autocast:
        for indices in batches([len(row.ids) for row in rows], batch_size=ROWS_AT_ONCE):
            batch = collate([rows[index] for index in indices], pad_id).to(device)
            assert batch.labels_N is not None
            logits_NV = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
            sums_B = sum_by_row(token_logps(logits_NV, batch.labels_N), batch.rows_N, len(indices))
            for index, value in zip(indices, sums_B.tolist(), strict=True):
                found[index] = value / len(rows[index].positions)
    return found


def _continued(example: Example) -> Example:
    """The row up to its first position, and behind it what is forbidden, as its labels."""
    start, labels = example.positions[0], example.forbidden
    ids = (*example.ids[: start + 1], *labels[:-1])
    return replace(example, ids=ids, positions=tuple(range(start, start + len(labels))), labels=labels)
