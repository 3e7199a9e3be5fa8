"""Attacks on hidden states: whether the value can be read from them, whatever the model says."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.asking import shown
from duet_unlearn.attacks.copies import bare
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.logits import candidates, rank_of
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Said, Watch, instance, unwatched
from duet_unlearn.config.sections import Count, named
from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.question_sets import fact
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.blocks import blocks_of, head_at, logits_at
from duet_unlearn.teacher.decoding import evaluating, pad_id
from duet_unlearn.tensors import batches, pad, position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Place = Literal["prompt", "value"]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to choose from, relative to a state's mean square length; ours."""
FEWEST = 8
"""Facts from which a probe is fitted; ours."""


@dataclass(frozen=True)
class LogitLens:
    """Open the right answer up to its value, and read every block's output as if it were the last: final norm and head
    (nostalgebraist 2020; arXiv 2303.08112). The fact is out if, of the first tokens of all values that it could take,
    its own is the likeliest.

    A positive says that the value stands in the hidden state in the head's own code, even if later blocks take it out
    again. A value in another code is not seen (``probe`` may). A fact is left out whose value is not in its answer or
    among its choices, or begins with the same token as another choice. The numbers: the mean ``rank`` of the value's
    token, and ``chance``, a choice drawn blindly.
    """

    name: Literal["logit-lens"] = "logit-lens"
    layers: Count | None = None
    """How many blocks are read, evenly spaced, the last among them; null: all."""
    title: ClassVar[str] = "Logit lens"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return (self.layers or 8) * len(goal.wanted) * ASK_TOKENS // 2

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: no wanted fact has choices of which one is in its answer.
        """
        held = bare(subject)
        found = {number: one for number, q in enumerate(goal.wanted) if (one := opened(held.tokenizer, q))}
        if not found:
            raise NotApplicable("no fact has choices that could stand in its answer and differ in their first token")
        depth = len(blocks_of(held.model))
        stops = spread(depth, self.layers)
        instances = []
        for number, stop in enumerate(stops):
            with first_blocks(held.model, stop):
                logits_NV = logits_behind(held, [one.ids for one in found.values()], goal.batch_size)
            instances.append(_lens(f"block {stop} of {depth}", found, logits_NV, goal))
            watch(number + 1, len(stops))
        return instances


@dataclass(frozen=True)
class Probe:
    """Read the value from hidden states with a linear map that was fitted on facts that the attacker knows.

    One ridge regression a block, from the hidden state to the head's vector of the value's first token. It is fitted on
    questions with answers about other facts of the concept, neighbours and anything else, with the penalty that does
    best on each fact left out, in all its wordings. Of a wanted fact's choices the one is told whose vector is nearest
    to what comes out, by cosine. Vectors take the place of classes since no value has more than a few questions.
    ``prompt``: read at the prompt's last token; ``value``: at the last token before the value, the answer opened up to
    there.

    A positive says that the model's states tell the values of forgotten facts apart, in the same directions as for
    facts that it tells: the knowledge is there, whether or not any prompt brings it out. It does not say that the model
    uses it. What names and wordings alone betray, the oracle's states betray too. A negative says little: a map from so
    few questions misses much, as the base's own result shows. Facts are left out as with ``logit-lens``. The numbers:
    the questions it was ``fitted`` on, its share right on these, each fact ``left_out``, and ``chance``, a choice drawn
    blindly.
    """

    name: Literal["probe"] = "probe"
    places: tuple[Place, ...] = ("prompt", "value")
    """Where the hidden state is read; each place is a family."""
    layers: Count | None = None
    """How many blocks are read, evenly spaced, the last among them; null: all."""
    questions: Count = 1000
    """Questions it is fitted on, at most; ours."""
    title: ClassVar[str] = "Linear probe"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "places")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        shown = len(goal.known) + len(goal.neighbours) + len(goal.others)
        return len(self.places) * (len(goal.wanted) + min(shown, self.questions)) * ASK_TOKENS // 2

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: no wanted fact, or too few others, have choices of which one is in their answer.
        """
        held = bare(subject)
        wanted = {number: one for number, q in enumerate(goal.wanted) if (one := opened(held.tokenizer, q))}
        rest = [opened(held.tokenizer, q) for q in (*goal.known, *goal.neighbours, *goal.others)]
        known = [one for one in rest if one]
        if len(known) > self.questions:
            known = random.Random(f"probe/{goal.seed}").sample(known, self.questions)
        if not wanted or len(known) < FEWEST:
            raise NotApplicable(f"{len(wanted)} wanted and {len(known)} other facts have choices that fit their answer")
        found = []
        for number, place in enumerate(self.places):
            rows = [one.prompt if place == "prompt" else one.ids for one in (*known, *wanted.values())]
            hidden_LND = last_hidden(held, rows, goal.batch_size)
            for stop in spread(len(hidden_LND), self.layers):
                name = f"{place}, block {stop} of {len(hidden_LND)}"
                found.append(replace(_probed(name, held, known, wanted, hidden_LND[stop - 1], goal), family=place))
            watch(number + 1, len(self.places))
        return found


# What is read --------------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A question whose answer is opened up to its value."""

    prompt: list[int]
    ids: list[int]
    """The prompt, and the tokens that the answers with any value begin with."""
    head: str
    """These tokens of the answer as text."""
    tokens: dict[str, int]
    """Choice -> the next token, if that were the value."""
    value: str
    about: Hashable
    """Its fact: two wordings of one are about the same."""


def opened(tokenizer: PreTrainedTokenizerBase, query: Query) -> Opened | None:
    """None where the answer lacks the value, or the value's next token is another choice's too."""
    rows = {value: answer_ids(tokenizer, query.messages, answer) for value, answer in candidates(query).items()}
    columns = list(zip(*rows.values(), strict=False))
    place = next((number for number, column in enumerate(columns) if len(set(column)) > 1), None)
    if place is None or len(rows) < 2:
        return None
    own = rows[str(query.value)]
    if sum(token == own[place] for token in columns[place]) > 1:
        return None
    prompt, tokens = render(tokenizer, query.messages), {value: ids[place] for value, ids in rows.items()}
    head = str(tokenizer.decode(own[:place]))
    return Opened(prompt, prompt + own[:place], head, tokens, str(query.value), fact(query))


def spread(depth: int, count: int | None) -> list[int]:
    """`count` of the numbers 1 to `depth`, evenly, `depth` among them; None or more than there are: all."""
    count = min(count or depth, depth)
    return [round(depth * (number + 1) / count) for number in range(count)]


@contextmanager
def first_blocks(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, the final norm and the head follow block number `count`; the blocks above are taken out."""
    blocks = blocks_of(model)
    above = list(blocks)[count:]
    del blocks[count:]
    try:
        yield
    finally:
        blocks.extend(above)


def logits_behind(held: ModelSubject, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
    """(N, V) logits of what follows each row, in fp32 on the CPU."""
    found = [torch.zeros(0)] * len(rows)
    with evaluating(held.model):
        for indices, ids_BT, mask_BT in _padded(held, rows, batch_size):
            rows_B = torch.arange(len(indices), device=ids_BT.device)
            logits_BV = logits_at(held.model, ids_BT, mask_BT, rows_B, mask_BT.sum(-1) - 1)
            for index, logits_V in zip(indices, logits_BV.float().cpu(), strict=True):
                found[index] = logits_V
    return torch.stack(found)


def last_hidden(held: ModelSubject, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
    """(L, N, D) what every block puts out at each row's last token, in fp32 on the CPU. Logits are not made."""
    found = [torch.zeros(0)] * len(rows)
    nothing = torch.zeros(0, dtype=torch.long)
    with evaluating(held.model), outputs_of(held.model) as outputs, head_at(held.model, nothing, nothing):
        for indices, ids_BT, mask_BT in _padded(held, rows, batch_size):
            outputs.clear()
            held.model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_ids(mask_BT), use_cache=False)
            rows_B = torch.arange(len(indices), device=ids_BT.device)
            last_LBD = torch.stack([output_BTD[rows_B, mask_BT.sum(-1) - 1].float().cpu() for output_BTD in outputs])
            for place, index in enumerate(indices):
                found[index] = last_LBD[:, place]
    return torch.stack(found, dim=1)


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every block's (B, T, D) output is put into the list."""
    seen: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for block in blocks_of(model):
            hooks.callback(block.register_forward_hook(keep).remove)
        yield seen


def _padded(
    held: ModelSubject, rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    for indices in batches([len(row) for row in rows], batch_size=batch_size):
        ids_BT, mask_BT = pad([rows[i] for i in indices], pad_id(held.tokenizer), side="right")
        yield indices, ids_BT.to(held.model.device), mask_BT.to(held.model.device)


def _lens(name: str, found: dict[int, Opened], logits_NV: Tensor, goal: Goal) -> Instance:
    said, ranks = [], []
    for (number, one), logits_V in zip(found.items(), logits_NV, strict=True):
        choices = list(one.tokens)
        values = logits_V[list(one.tokens.values())].tolist()
        ranks.append(rank_of(values, choices.index(one.value)))
        best = choices[values.index(max(values))]
        said.append(Said(number, shown(goal.wanted[number].messages), one.head, best, ranks[-1] == 1))
    chance = fmean(1 / len(one.tokens) for one in found.values())
    return instance(name, said, len(goal.wanted), rank=fmean(ranks), chance=chance)


# The probe -----------------------------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """What one ridge regression puts out."""

    rows_ND: Tensor
    """For the rows that are to be told."""
    left_out_ME: Tensor
    """For those that it was fitted on, each by a fit without its group."""


def ridge(
    known_MD: Tensor, targets_ME: Tensor, rows_ND: Tensor, *, penalty: float, groups: Sequence[Hashable]
) -> Fitted:
    """Ridge regression from rows to targets, both centred, in fp64 and its dual form.

    ``mean + rows X' G^-1 (Y - mean)`` with ``G = X X' + penalty s I``, s the mean square length of a row of X. Left
    out, the rows S of one of `groups` (one a known row) are ``Y_S - ([G^-1]_SS)^-1 [G^-1 (Y - mean)]_S``, the
    leave-one-out identity for several; the means still hold them.
    """
    centre_D, mean_E = known_MD.double().mean(0), targets_ME.double().mean(0)
    known_MD, targets_ME = known_MD.double() - centre_D, targets_ME.double() - mean_E
    gram_MM = known_MD @ known_MD.T
    size = float(gram_MM.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny))
    inverse_MM = torch.linalg.inv(gram_MM + penalty * size * torch.eye(len(gram_MM), dtype=torch.float64))
    dual_ME = inverse_MM @ targets_ME
    left_out_ME = mean_E + targets_ME
    for rows_GS in _of_one_size(groups):
        blocks_GSS = inverse_MM[rows_GS[:, :, None], rows_GS[:, None, :]]
        left_out_ME[rows_GS] -= torch.linalg.solve(blocks_GSS, dual_ME[rows_GS])
    return Fitted(mean_E + (rows_ND.double() - centre_D) @ (known_MD.T @ dual_ME), left_out_ME)


def _of_one_size(groups: Sequence[Hashable]) -> list[Tensor]:
    """(G, S) indices of the members of each group, for each size S that groups have."""
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    by_size: dict[int, list[list[int]]] = {}
    for rows in members.values():
        by_size.setdefault(len(rows), []).append(rows)
    return [torch.tensor(rows) for rows in by_size.values()]


def nearest(outputs_NE: Tensor, facts: Sequence[Opened], head_VE: Tensor, mean_E: Tensor) -> list[str]:
    """Of each fact's choices the one whose token's vector is nearest to the output by cosine, both less the mean."""
    tokens = sorted({token for one in facts for token in one.tokens.values()})
    column = {token: number for number, token in enumerate(tokens)}
    unit_CE = nn.functional.normalize(head_VE[tokens].double().cpu() - mean_E, dim=1)
    scores = ((outputs_NE - mean_E) @ unit_CE.T).tolist()
    return [max(one.tokens, key=lambda v: row[column[one.tokens[v]]]) for one, row in zip(facts, scores, strict=True)]


def _probed(
    name: str, held: ModelSubject, known: list[Opened], wanted: dict[int, Opened], hidden_ND: Tensor, goal: Goal
) -> Instance:
    head_VE = cast("nn.Linear", held.model.get_output_embeddings()).weight.detach()
    targets_ME = head_VE[[one.tokens[one.value] for one in known]].double().cpu()
    mean_E, size = targets_ME.mean(0), len(known)
    groups = [one.about for one in known]
    fits = [ridge(hidden_ND[:size], targets_ME, hidden_ND[size:], penalty=p, groups=groups) for p in PENALTIES]
    shares = []
    for fit in fits:
        told = nearest(fit.left_out_ME, known, head_VE, mean_E)
        shares.append(fmean(value == one.value for value, one in zip(told, known, strict=True)))
    values = nearest(fits[shares.index(max(shares))].rows_ND, list(wanted.values()), head_VE, mean_E)
    said = [
        Said(number, shown(goal.wanted[number].messages), one.head, value, value == one.value)
        for (number, one), value in zip(wanted.items(), values, strict=True)
    ]
    chance = fmean(1 / len(one.tokens) for one in wanted.values())
    return instance(name, said, len(goal.wanted), fitted=size, left_out=max(shares), chance=chance)
