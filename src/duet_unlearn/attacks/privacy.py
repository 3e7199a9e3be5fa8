"""What the likelihoods of answers give away: that they were trained on, and by how much a value is ahead of others."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal, NamedTuple

from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.logits import candidates
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, AttackResult, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.config.sections import Count
from duet_unlearn.data.query import Query
from duet_unlearn.evals.likelihood import (
    PRIV_LEAK_K,
    auc_score,
    exposure,
    mean_loss,
    min_k,
    min_k_plus_plus,
    priv_leak,
    zlib_ratio,
)
from duet_unlearn.evals.question_sets import subjects_by_concept
from duet_unlearn.evals.subject import Subject, TokenScores
from duet_unlearn.stats import bootstrap_mean

Taken = Callable[[TokenScores, str], float]
"""How an answer is taken, and its text -> a number that is higher where it looks more like one never seen."""
LEAK = "min-k 40 %"
"""The instance that PrivLeak is computed from."""
SCORES: dict[str, Taken] = {
    "loss": lambda taken, _text: mean_loss(taken),
    "zlib": lambda taken, text: zlib_ratio(taken, text),
    "min-k 20 %": lambda taken, _text: min_k(taken),
    LEAK: lambda taken, _text: min_k(taken, k=PRIV_LEAK_K),
    "min-k++ 20 %": lambda taken, _text: min_k_plus_plus(taken),
}


class Answered(NamedTuple):
    """An answer that is scored, true or not."""

    fact: int
    query: Query
    text: str


@dataclass(frozen=True)
class Membership:
    """Tell answers that the model was trained on from others, by how likely it finds them: AUC, 0.5 is chance.

    Members are the right answers of the wanted facts. Non-members are *not* other texts of the same kind that were
    never trained on, as in MUSE, for nobody has such of a forgotten concept: they are the same answers with another
    choice in the place of the value (or the query's own wrong answers). So all that separates the two is the value, and
    what is measured is whether the model still holds it; of answers whose values differ in length or frequency the
    oracle shows the bias. Each score is an instance: loss (arXiv 1709.01604), zlib (arXiv 2012.07805), min-k
    (arXiv 2310.16789) and min-k++ (arXiv 2404.02936). Its interval takes answers of one fact as independent, which
    they are not quite.
    """

    name: Literal["membership"] = "membership"
    non_members: Count = 4
    """Answers with another value for each fact, drawn by the goal's seed; ours."""
    title: ClassVar[str] = "Membership inference"
    access: ClassVar[Access] = "decoding"
    metric: ClassVar[Metric] = "auc"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return (1 + self.non_members) * len(goal.wanted) * ASK_TOKENS // 2

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: no wanted fact has another answer of the same form.
        """
        members, others = [], []
        for number, query in enumerate(goal.wanted):
            if drawn := self._others(query, goal.seed):
                members.append(Answered(number, query, query.answer or ""))
                others += [Answered(number, query, text) for text in drawn]
        if not members:
            raise NotApplicable("no fact has another answer of the same form, so there are no non-members")
        taken = token_scores(subject, [*members, *others], goal)
        found = []
        for name, score in SCORES.items():
            values = [score(one, answered.text) for one, answered in zip(taken, [*members, *others], strict=True)]
            mine, theirs = values[: len(members)], values[len(members) :]
            numbers = {"members": fmean(mine), "non_members": fmean(theirs)}
            found.append(Instance(name, auc_score(mine, theirs), numbers=numbers))
        return found

    def _others(self, query: Query, seed: int) -> list[str]:
        pool = query.wrong or [text for value, text in candidates(query).items() if value != query.value]
        return random.Random(f"{query.id}/{seed}").sample(list(pool), min(self.non_members, len(pool)))


@dataclass(frozen=True)
class Exposure:
    """Rank the right answer among those with any other choice in the value's place, by likelihood: ``log2 candidates -
    log2 rank``, mean bits a fact (arXiv 1802.08232, where the candidates are sampled).

    Equals share their ranks: the mean over all their orders. Guessing is not 0 but the number ``chance``: 1.27 bits of
    20 candidates, 1.44 of many. Beside it ``first``, how often the value ranks first. A fact without choices, or whose
    value is not in its answer, is left out.
    """

    name: Literal["exposure"] = "exposure"
    title: ClassVar[str] = "Exposure"
    access: ClassVar[Access] = "decoding"
    metric: ClassVar[Metric] = "bits"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return sum(len(query.choices or ()) for query in goal.wanted) * ASK_TOKENS // 4

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: no wanted fact has choices of which one is in its answer.
        """
        answers = {number: found for number, query in enumerate(goal.wanted) if len(found := candidates(query)) > 1}
        if not answers:
            raise NotApplicable("no fact has choices that could stand in its answer")
        asked = [Answered(n, goal.wanted[n], text) for n, found in answers.items() for text in found.values()]
        values = iter(logps(subject, asked, goal))
        bits, firsts, chance = [], [], []
        for number, found in answers.items():
            taken = {value: next(values) for value in found}
            own = taken[str(goal.wanted[number].value)]
            ahead, equal = sum(x > own for x in taken.values()), sum(x == own for x in taken.values())
            bits.append(mean_exposure(ahead, equal, len(taken)))
            firsts.append(ahead == 0 and equal == 1)
            chance.append(mean_exposure(0, len(taken), len(taken)))
        score = bootstrap_mean(bits, groups=list(answers), seed=goal.seed)
        return [Instance("right answers", score, numbers={"first": fmean(firsts), "chance": fmean(chance)})]


def mean_exposure(ahead: int, equal: int, size: int) -> float:
    """Bits of one of `equal` candidates with the same likelihood, `ahead` of them likelier: the mean over their
    orders."""
    return fmean(exposure(ahead + place, size) for place in range(1, equal + 1))


def leaked(student: AttackResult, oracle: AttackResult) -> float:
    """PrivLeak of a student: its AUC of min-k 40 % in ``membership`` relative to that of the oracle, per cent.

    0: as the oracle; below 0: remembered; above 0: over-unlearned. NaN where either was not measured. The non-members
    are those of ``Membership``, so it is no figure to put beside MUSE's.
    """
    values = [one.score.value for result in (student, oracle) for one in result.instances if one.name == LEAK]
    return priv_leak(*values) if len(values) == 2 else math.nan


def token_scores(subject: Subject, asked: Sequence[Answered], goal: Goal) -> list[TokenScores]:
    """How the subject takes each answer, asked about each query's own concept."""
    found: dict[int, TokenScores] = {}
    for voice, places in subjects_by_concept(subject, [one.query for one in asked]):
        messages, texts = [asked[p].query.messages for p in places], [asked[p].text for p in places]
        found |= zip(places, voice.token_scores(messages, texts, batch_size=goal.batch_size), strict=True)
    return [found[place] for place in range(len(asked))]


def logps(subject: Subject, asked: Sequence[Answered], goal: Goal) -> list[float]:
    """Each answer's summed log-probability, likewise."""
    found: dict[int, float] = {}
    for voice, places in subjects_by_concept(subject, [one.query for one in asked]):
        messages, texts = [asked[p].query.messages for p in places], [asked[p].text for p in places]
        found |= zip(places, voice.logps(messages, texts, batch_size=goal.batch_size), strict=True)
    return [found[place] for place in range(len(asked))]
