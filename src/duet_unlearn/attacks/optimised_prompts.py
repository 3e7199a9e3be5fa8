"""Attacks that optimise what stands behind the question by the model's gradients: tokens (GCG), or vectors in tokens'
places (soft prompts).

Both look for something that makes the model give the answers that the attacker knows, and then ask for the others
behind it. The place where it stands is a ``Slot``; inside ``vectors`` a model reads ids beyond its vocabulary as
vectors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.attack_base import (
    QUESTION_TOKENS,
    Attack,
    AttackGoal,
    AttackPrompt,
    ask,
    judge,
    plain_prompts,
    require_own_weights,
)
from duet_unlearn.attacks.result import Instance, NotApplicable, OnProgress, no_progress
from duet_unlearn.attacks.rewording import question_of, reworded
from duet_unlearn.attacks.weights import merged_subject
from duet_unlearn.config.sections import Count, Positive
from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.generate import as_text
from duet_unlearn.evals.question_sets import expected_answer
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.blocks import logits_at, num_embeddings
from duet_unlearn.models.load import is_quantised
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id
from duet_unlearn.teacher.shared import answer_logits
from duet_unlearn.tensors import pad, sum_by_row, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# GCG -----------------------------------------------------------------------------------------------------------------

CANDIDATE_BATCH = 64
"""Rows of one pass over candidates."""


@dataclass(frozen=True)
class Gcg(Attack):
    """Greedy coordinate gradient (arXiv 2307.15043): swap one token of a suffix at a time, by the gradient on known
    answers, and keep the best of many swaps. The suffix is then put behind every target's question.

    No token of a value that a target fact could have, or of an answer as short as one, is used. In raw text that ends
    with "Answer:" the suffix stands in front of that. Other than in the paper each step draws its questions
    anew, a suffix is only replaced by one that is better on them, and the first is the best of many random ones.
    """

    name: Literal["gcg"] = "gcg"
    length: Count = 2
    """Tokens of the suffix; ours, for small models, which lose the question before longer ones: the paper's are 20."""
    steps: Count = 10
    """The paper's are 500."""
    candidates: Count = 24
    """Swaps tried in a step; the paper's are 512."""
    top: Count = 64
    """A swap is drawn from so many tokens at its place; the paper's are 256."""
    questions: Count = 12
    """Known questions of a step; the paper's are up to 25, always the same."""
    answer: Count = 16
    """Of an answer so many tokens are optimised for."""
    restarts: Count = 2
    """Each is an instance."""
    title = "Optimised suffix (GCG)"
    access = "weights"

    def num_tokens(self, goal: AttackGoal) -> int:
        tried = self.steps * (self.candidates + 3) * min(self.questions, len(goal.auxiliary_facts))
        return self.restarts * (tried + len(goal.target_facts)) * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Raises:
        NotApplicable: nothing is known to optimise for, or there are no weights of its own.
        """
        attacked = open_to_gradients(subject)
        if not goal.auxiliary_facts:
            raise NotApplicable("the attacker knows no other answer to optimise for")
        # A suffix with the answer's own tokens in it would show the fact instead of bringing it back.
        values = {text for q in goal.target_facts for text in (q.value, expected_answer(q), *(q.choices or ())) if text}
        usable = usable_ids(attacked.tokenizer, without=sorted(values))
        slots = [slot_of(attacked.tokenizer, query, usable, length=self.answer) for query in goal.auxiliary_facts]
        search, suffixes = SuffixSearch(attacked, goal.auxiliary_facts[0], slots, usable, self), []
        for restart in range(self.restarts):
            draw = random.Random(f"gcg/{goal.seed}/{restart}")
            suffix = search.start(draw)
            for step in range(self.steps):
                on_progress(restart * self.steps + step, self.restarts * self.steps)
                suffix = search.better(suffix.ids, draw)
            suffixes.append(suffix)
        prompts = []
        for restart, suffix in enumerate(suffixes, start=1):
            text = text_of(attacked.tokenizer, suffix.ids)
            for number, query in enumerate(goal.target_facts):
                prompts.append(AttackPrompt(f"restart {restart}", number, behind_question(query, text)))
        pairs = zip(ask(attacked, prompts, goal), suffixes, strict=True)
        return [replace(one, numbers={"loss": suffix.loss}) for one, suffix in pairs]


class Suffix(NamedTuple):
    """What stands behind the questions."""

    ids: tuple[int, ...]
    loss: float
    """Mean cross entropy of the known answers behind it, in nats a token."""


@dataclass(frozen=True)
class SuffixSearch:
    """A model, the known questions, and how a suffix is improved."""

    subject: ModelSubject
    query: Query
    """The question of the first slot, behind which suffixes are read back: those that read otherwise are left out."""
    slots: Sequence[Slot]
    usable: Sequence[int]
    """The tokens that a suffix is made of."""
    config: Gcg

    def start(self, draw: random.Random) -> Suffix:
        """The best of many random suffixes.

        Raises:
            NotApplicable: none of them reads back as itself.
        """
        drawn = [tuple(draw.choices(self.usable, k=self.config.length)) for _ in range(self.config.candidates)]
        return self.best(drawn, self.draw_slots(draw))

    def better(self, ids: tuple[int, ...], draw: random.Random) -> Suffix:
        """The best of a suffix and many that differ from it by one token."""
        slots = self.draw_slots(draw)
        # The suffix itself is among the tried: its loss on the step's own questions is not the last step's.
        return self.best([ids, *self.swaps(ids, slots, draw)], slots)

    def draw_slots(self, draw: random.Random) -> list[Slot]:
        """The slots of a step."""
        return draw.sample(self.slots, min(self.config.questions, len(self.slots)))

    def best(self, tried: Sequence[tuple[int, ...]], slots: Sequence[Slot]) -> Suffix:
        """The one of the lowest loss; of equal ones the first."""
        sound = [one for one in tried if self.reads_back(one)]
        if not sound:
            raise NotApplicable("no suffix of so many tokens reads back as itself")
        found = zip(sound, self.losses(sound, slots), strict=True)
        return min((Suffix(*one) for one in found), key=lambda one: one.loss)

    def swaps(self, ids: tuple[int, ...], slots: Sequence[Slot], draw: random.Random) -> list[tuple[int, ...]]:
        """Suffixes with one token swapped for one of the `top` that the gradient promises most of."""
        slope_LU = self.gradient(ids, slots)
        best_LK = (-slope_LU).topk(min(self.config.top, len(self.usable)), dim=-1).indices.tolist()
        tried: dict[tuple[int, ...], None] = {}
        for _ in range(self.config.candidates):
            place = draw.randrange(len(ids))
            tried[(*ids[:place], self.usable[draw.choice(best_LK[place])], *ids[place + 1 :])] = None
        return [one for one in tried if one != ids]

    def gradient(self, ids: Sequence[int], slots: Sequence[Slot]) -> Tensor:
        """(L, U) slope of the loss along each usable token's one-hot coordinate at each place."""
        model = self.subject.model
        soft_LD = embedded(model, ids).float().requires_grad_()
        rows = [slot.row(vector_ids(model, len(ids))) for slot in slots]
        with evaluating(model), torch.enable_grad(), vectors(model, soft_LD):
            loss = answer_loss(model, rows, padding_id=pad_id(self.subject.tokenizer))
            # Not ``backward``: the model's own gradients stay as they are.
            (slope_LD,) = torch.autograd.grad(loss, [soft_LD])
        table_UD = embedded(model, self.usable)
        return (slope_LD.to(table_UD.dtype) @ table_UD.T).float()

    def losses(self, suffixes: Sequence[Sequence[int]], slots: Sequence[Slot]) -> list[float]:
        """Of each suffix the loss that ``answer_loss`` gives; what rows begin alike with is computed once."""
        model, padding, size = self.subject.model, pad_id(self.subject.tokenizer), len(slots)
        rows = [slot.row(ids) for ids in suffixes for slot in slots]
        means = [0.0] * len(rows)
        with evaluating(model):
            for indices, at in answer_logits(model, rows, padding_id=padding, batch_size=CANDIDATE_BATCH):
                sums_B = sum_by_row(token_logps(at.logits_NV, at.labels_N), at.rows_N, len(indices))
                for index, total in zip(indices, sums_B.tolist(), strict=True):
                    means[index] = -total / len(slots[index % size].answer)
        return [sum(means[start : start + size]) / size for start in range(0, len(means), size)]

    def reads_back(self, ids: Sequence[int]) -> bool:
        """Whether the text of these tokens, behind a question, is tokenised into them again."""
        tokenizer = self.subject.tokenizer
        written = render(tokenizer, behind_question(self.query, text_of(tokenizer, ids)).messages)
        slot = self.slots[0]
        return written == [*slot.head, *ids, *slot.tail]


# Soft prompts --------------------------------------------------------------------------------------------------------

START_TOKENS = 4096
"""Tokens from whose vectors is started, and which tell how large vectors are."""


@dataclass(frozen=True)
class SoftPrompt(Attack):
    """Train vectors behind the question, the model frozen, until it gives the answers that the attacker knows; then
    ask for the others (arXiv 2402.09063, there for one question at a time). In raw text that ends with "Answer:" they
    stand in front of that. No text stands for them: this is the upper bound of what a prompt can do."""

    name: Literal["soft-prompt"] = "soft-prompt"
    lengths: tuple[Count, ...] = (1, 2)
    """How many vectors, each number tried for itself; ours: small models lose the question behind many. The paper
    attacks the vectors of a whole prompt."""
    steps: Count = 30
    """Of Adam; ours."""
    points: Count = 2
    """After how many equal parts of the steps the facts are asked for; each is an instance."""
    rate: Positive = 0.1
    """A step's size, as a multiple of the root mean square of the tokens' own vectors; ours."""
    batch: Count = 16
    """Known questions of a step."""
    answer: Count = 24
    """Of an answer so many tokens are trained for."""
    restarts: Count = 1
    """From so many starts; each is instances of its own."""
    title = "Soft prompt"
    access = "weights"
    not_empty = ("lengths",)

    def num_tokens(self, goal: AttackGoal) -> int:
        trained = 3 * self.steps * min(self.batch, len(goal.auxiliary_facts)) + self.points * len(goal.target_facts)
        return len(self.lengths) * self.restarts * trained * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Raises:
        NotApplicable: nothing is known to train on, or there are no weights of its own.
        """
        attacked = open_to_gradients(subject)
        if not goal.auxiliary_facts:
            raise NotApplicable("the attacker knows no other answer to train on")
        usable = usable_ids(attacked.tokenizer, most=START_TOKENS)
        slots = [slot_of(attacked.tokenizer, query, usable, length=self.answer) for query in goal.auxiliary_facts]
        asked = [slot_of(attacked.tokenizer, query, usable, length=0) for query in goal.target_facts]
        found, tries = [], [(length, restart) for length in self.lengths for restart in range(self.restarts)]
        for number, (length, restart) in enumerate(tries):
            curve = self._train(attacked, slots, usable, length, random.Random(f"soft/{goal.seed}/{restart}"))
            for step, (loss, soft_LD) in enumerate(curve, start=1):
                on_progress(number * self.steps + step, len(tries) * self.steps)
                if step * self.points % self.steps < self.points:
                    name = f"{length} vectors, {step} steps" if length > 1 else f"1 vector, {step} steps"
                    name += f", restart {restart + 1}" if self.restarts > 1 else ""
                    outputs = answers_behind(attacked, asked, soft_LD, goal)
                    (one,) = judge(plain_prompts(goal, name), outputs, goal)
                    found.append(replace(one, numbers={"loss": loss}))
        return found

    def _train(
        self, subject: ModelSubject, slots: Sequence[Slot], usable: Sequence[int], length: int, draw: random.Random
    ) -> Iterator[tuple[float, Tensor]]:
        """The loss and the vectors after each step."""
        model, padding = subject.model, pad_id(subject.tokenizer)
        soft_LD = embedded(model, draw.choices(usable, k=length)).float().requires_grad_()
        scale = float(embedded(model, usable).float().square().mean().sqrt())
        optimizer = torch.optim.Adam([soft_LD], lr=self.rate * scale)
        inserted = vector_ids(model, length)
        for _ in range(self.steps):
            rows = [slot.row(inserted) for slot in draw.sample(slots, min(self.batch, len(slots)))]
            with evaluating(model), torch.enable_grad(), vectors(model, soft_LD):
                loss = answer_loss(model, rows, padding_id=padding)
                # Not ``backward``: the model's own gradients stay as they are.
                (soft_LD.grad,) = torch.autograd.grad(loss, [soft_LD])
            optimizer.step()
            yield float(loss.detach()), soft_LD.detach()


def answers_behind(subject: ModelSubject, slots: Sequence[Slot], soft_LD: Tensor, goal: AttackGoal) -> list[str]:
    """Greedy answers to the target facts' questions, with the vectors in their slots."""
    inserted = vector_ids(subject.model, len(soft_LD))
    with vectors(subject.model, soft_LD):
        new = greedy(
            subject.model,
            [[*slot.head, *inserted, *slot.tail] for slot in slots],
            eos_ids=end_ids(subject.model, subject.tokenizer),
            padding_id=pad_id(subject.tokenizer),
            max_new_tokens=goal.max_new_tokens,
            batch_size=goal.batch_size,
        )
    return as_text(subject.tokenizer, new, [query.messages for query in goal.target_facts])


# The slot behind a question ------------------------------------------------------------------------------------------

MARKS_TRIED = 256
"""How many tokens are tried to find a question's slot."""


class Slot(NamedTuple):
    """A rendered question, parted where its text ends (see ``behind_question``), and the answer that is to come."""

    head: tuple[int, ...]
    tail: tuple[int, ...]
    answer: tuple[int, ...]

    def row(self, inserted: Sequence[int]) -> tuple[list[int], int]:
        """The ids with something in the slot, and where the answer starts."""
        prompt = [*self.head, *inserted, *self.tail]
        return [*prompt, *self.answer], len(prompt)


def open_to_gradients(subject: Subject) -> ModelSubject:
    """The subject to optimise against: adapters merged into a copy, which is faster; packed weights as they are.

    Raises:
        NotApplicable: what it forgot is not in its weights, or another program holds them.
    """
    own = require_own_weights(subject)
    return own if is_quantised(own.model) else merged_subject(own)


def slot_of(tokenizer: PreTrainedTokenizerBase, query: Query, usable: Sequence[int], *, length: int) -> Slot:
    """Where a query's question ends, with the first `length` tokens of its answer.

    Raises:
        NotApplicable: whatever stands there, the tokeniser joins it with the question.
    """
    answer = tuple(answer_ids(tokenizer, query.messages, query.answer or "")[:length])
    plain = render(tokenizer, query.messages)
    for mark in usable[:MARKS_TRIED]:
        marked = render(tokenizer, behind_question(query, text_of(tokenizer, [mark])).messages)
        place = next((i for i, (a, b) in enumerate(zip(plain, marked, strict=False)) if a != b), len(plain))
        if marked == [*plain[:place], mark, *plain[place:]]:
            return Slot(tuple(plain[:place]), tuple(plain[place:]), answer)
    raise NotApplicable("the tokeniser joins whatever stands behind a question with it")


def behind_question(query: Query, text: str) -> Query:
    """The query with a text behind its question: the last turn's text; in raw text that ends with "Question: ..
    Answer:" in front of "Answer:", in any other at its end."""
    return reworded(query, question_of(query) + text)


def answer_loss(model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], int]], *, padding_id: int) -> Tensor:
    """Mean over rows (ids, where the answer starts) of the mean cross entropy of the answer's tokens, in nats."""
    padded = pad([ids for ids, _ in rows], padding_id, side="right")
    spots = [(row, col) for row, (ids, start) in enumerate(rows) for col in range(start - 1, len(ids) - 1)]
    rows_N, cols_N = torch.tensor(spots, device=model.device).unbind(-1)
    ids_BT = padded.ids_BT.to(model.device)
    logits_NV = logits_at(model, ids_BT, padded.mask_BT.to(model.device), rows_N, cols_N)
    lengths_B = torch.bincount(rows_N, minlength=len(rows))
    return -(sum_by_row(token_logps(logits_NV, ids_BT[rows_N, cols_N + 1]), rows_N, len(rows)) / lengths_B).mean()


# Tokens that may stand there -----------------------------------------------------------------------------------------

ANCHOR = "?"
"""What texts of single tokens are read behind: a text's first token may be written otherwise."""
CHUNK = 8192
"""Tokens that are read back in one call of the tokeniser."""


def usable_ids(
    tokenizer: PreTrainedTokenizerBase, *, without: Sequence[str] = (), most: int | None = None
) -> list[int]:
    """Tokens of printable ASCII that read back as themselves, none of them special; the first `most` of these, and of
    them no token of the texts `without`."""
    size = len(_read(tokenizer, [ANCHOR])[0])
    texts = [f"{ANCHOR}{space}{text}" for text in without for space in ("", " ")]
    banned = {i for ids in _read(tokenizer, texts) for i in ids[size:]}
    return [i for i in readable_ids(tokenizer, len(tokenizer), most) if i not in banned]


@lru_cache(maxsize=8)
def readable_ids(tokenizer: PreTrainedTokenizerBase, size: int, most: int | None = None) -> tuple[int, ...]:
    """The first `most` of the tokens below `size` of printable ASCII that read back as themselves, none of them
    special. Found once a tokeniser: vocabularies of 256 k take seconds."""
    # The borders of chat turns are special tokens too, and only this dictionary lists all of them.
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special, anchor, found = added | {*tokenizer.all_special_ids}, _read(tokenizer, [ANCHOR])[0], list[int]()
    for start in range(0, size, CHUNK):
        ids = [i for i in range(start, min(start + CHUNK, size)) if i not in special]
        texts = zip(ids, _texts_of(tokenizer, [[i] for i in ids]), strict=True)
        plain = {i: text for i, text in texts if text.isascii() and text.isprintable() and text.strip()}
        read = _read(tokenizer, [ANCHOR + text for text in plain.values()])
        found += [i for i, back in zip(plain, read, strict=True) if back == [*anchor, i]]
        if most is not None and len(found) >= most:
            break
    return tuple(found[:most])


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Tokens as they read behind other text."""
    return _texts_of(tokenizer, [ids])[0]


def _texts_of(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    anchor = _read(tokenizer, [ANCHOR])[0]
    plain, *joint = tokenizer.batch_decode(
        [anchor, *([*anchor, *ids] for ids in rows)], clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(plain) for text in joint]


def _read(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []


# Vectors in tokens' places -------------------------------------------------------------------------------------------


@torch.no_grad()
def embedded(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(L, D) the model's vectors of tokens, as its first block gets them (Gemma 3 scales them)."""
    return model.get_input_embeddings()(torch.tensor([*ids], device=model.device))


def vector_ids(model: PreTrainedModel, count: int) -> range:
    """The ids that stand for so many vectors."""
    return range(num_embeddings(model), num_embeddings(model) + count)


@contextmanager
def vectors(model: PreTrainedModel, soft_LD: Tensor) -> Iterator[None]:
    """Inside, ids from the vocabulary's size on stand for the rows of `soft_LD`, through which gradients flow.

    Hooks on the embedding, so that batching, caches and decoding are those of any ids.
    """
    table, size = model.get_input_embeddings(), num_embeddings(model)
    call: dict[str, Tensor] = {}

    def read(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        call["ids_BT"] = inputs[0]
        return (inputs[0].clamp_max(size - 1), *inputs[1:])

    def put(_module: nn.Module, _inputs: Any, embedded_BTD: Tensor) -> Tensor:
        places_BT = call["ids_BT"] - size
        own_BTD = soft_LD.to(embedded_BTD.dtype)[places_BT.clamp_min(0)]
        return torch.where((places_BT >= 0)[..., None], own_BTD, embedded_BTD)

    handles = [table.register_forward_pre_hook(read), table.register_forward_hook(put)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
