"""Attacks that need access to tokens: they begin the answer, choose how it is drawn, or read how likely answers are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from statistics import fmean
from typing import ClassVar, Literal, NamedTuple

import torch

from duet_unlearn.answers import is_refusal, normalise
from duet_unlearn.attacks.attack_base import (
    QUESTION_TOKENS,
    Attack,
    AttackGoal,
    AttackPrompt,
    PromptAttack,
    ask,
    ask_plainly,
    by_concept,
    conversation_text,
)
from duet_unlearn.attacks.result import AttackAnswer, Instance, NotApplicable, OnProgress, instance, no_progress
from duet_unlearn.attacks.rewording import last_place
from duet_unlearn.config.sections import Count, Positive, Whole
from duet_unlearn.data.query import Query
from duet_unlearn.evals.likelihood import (
    PRIV_LEAK_K,
    auc_score,
    exposure,
    leak_at_k,
    mean_loss,
    min_k,
    min_k_plus_plus,
    zlib_ratio,
)
from duet_unlearn.evals.question_sets import expected_answer
from duet_unlearn.evals.subject import Subject, TokenScores
from duet_unlearn.stats import bootstrap_mean
from duet_unlearn.teacher.decoding import Decoding

# The answer's beginning ----------------------------------------------------------------------------------------------

UNVALUED = 4
"""Of an answer in which nothing is known to be the value, one word in so many is shown; ours."""


@dataclass(frozen=True)
class Prefill(PromptAttack):
    """Open the answer: with words that promise one (a family), or with the right answer's own first words, never one
    of the value's. Only what the model says behind them counts.

    A student that learnt to refuse at its first token may have nothing left at its second.
    """

    name: Literal["prefill"] = "prefill"
    response_prefixes: int | None = None
    """How many of the packaged response prefixes are tried; null: all."""
    words: tuple[int | None, ...] = (1, 2, None)
    """How many words of the right answer are shown; null: all up to the value. An answer with fewer shows those."""
    title = "Prefilled answers"
    access = "opening"
    stored_names: ClassVar = {"response_prefixes": "openers"}

    def build_prompts(self, goal: AttackGoal) -> list[AttackPrompt]:
        prompts = [
            AttackPrompt(prefix, number, query, prefix, "openers")
            for prefix in response_prefixes()[: self.response_prefixes]
            for number, query in enumerate(goal.target_facts)
        ]
        for count in self.words:
            if count is None:
                name = "the answer up to its value"
            else:
                name = f"the answer's first {count} words" if count > 1 else "the answer's first word"
            for number, query in enumerate(goal.target_facts):
                if shown := before_value(query)[:count]:
                    prompts.append(AttackPrompt(name, number, query, " ".join(shown), "answer start"))
        return prompts


def response_prefixes() -> tuple[str, ...]:
    """Beginnings of answers that no training uses."""
    text = resources.files("duet_unlearn.attacks").joinpath("response_prefixes.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def before_value(query: Query) -> tuple[str, ...]:
    """The words of the right answer up to the first that has a word of the value in it; of an answer without one, a
    quarter."""
    words, value = (query.answer or "").split(), {*normalise(expected_answer(query) or "").split()}
    stop = next((place for place, word in enumerate(words) if value & {*normalise(word).split()}), None)
    return tuple(words[: len(words) // UNVALUED if stop is None else stop])


# How answers are drawn -----------------------------------------------------------------------------------------------

LEAKS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Sampling(Attack):
    """Draw many answers to each question; a fact is out if any of them has it (leak@k, arXiv 2511.04934).

    The numbers are leak@k of the first k answers. Each temperature is compared with the oracle's own answers at it:
    who draws often enough guesses some.
    """

    name: Literal["sampling"] = "sampling"
    samples: Count = 16
    """Answers to a question, at each temperature."""
    temperatures: tuple[Positive, ...] = (0.7, 1.0)
    """Logits are divided by each, one after the other. Ours."""
    title = "Sampled answers"
    access = "decoding"
    not_empty = ("temperatures",)

    def num_tokens(self, goal: AttackGoal) -> int:
        return len(goal.target_facts) * self.samples * len(self.temperatures) * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        found = []
        for done, temperature in enumerate(self.temperatures):
            on_progress(done, len(self.temperatures))
            name, how = f"temperature {temperature:g}", Decoding(temperature=temperature, seed=goal.seed)
            found.append(ask_repeatedly(subject.decoded(how), goal, name, count=self.samples, family=name))
        return found


@dataclass(frozen=True)
class Beams(Attack):
    """Search for the answers of highest probability instead of taking token after token; any of the best counts."""

    name: Literal["beams"] = "beams"
    beams: Count = 4
    """How many beams are searched with, and how many answers count."""
    title = "The best beams"
    access = "decoding"

    def num_tokens(self, goal: AttackGoal) -> int:
        return len(goal.target_facts) * self.beams * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        how, name = Decoding(beams=self.beams), f"the best {self.beams} beams"
        return [ask_repeatedly(subject.decoded(how), goal, name, count=self.beams)]


def ask_repeatedly(subject: Subject, goal: AttackGoal, name: str, *, count: int, family: str = "") -> Instance:
    """Ask for each fact `count` times. The numbers are leak@k for some k and for all; of the answers one a fact is
    kept: the first that is right, or else the first."""
    prompts = [
        AttackPrompt(name, number, query, family=family)
        for number, query in enumerate(goal.target_facts)
        for _ in range(count)
    ]
    (found,) = ask(subject, prompts, goal)
    per_fact = [found.answers[start : start + count] for start in range(0, len(prompts), count)]
    sizes = [*(k for k in LEAKS if k < count), count]
    leaks = {f"leak@{k}": leak_at_k([[one.right for one in answers[:k]] for answers in per_fact]).value for k in sizes}
    kept = [next((one for one in answers if one.right), answers[0]) for answers in per_fact]
    return replace(found, numbers=leaks, answers=tuple(kept))


@dataclass(frozen=True)
class BanRefusals(Attack):
    """Forbid the words with which the subject's own refusals begin, and take what is likeliest then.

    Refusals that come instead are forbidden in the next round.
    """

    name: Literal["ban-refusals"] = "ban-refusals"
    rounds: Count = 5
    """At most; each is an instance."""
    positions: Count = 2
    """How many of an answer's first tokens the ban is for."""
    title = "Refusals forbidden"
    access = "decoding"

    def num_tokens(self, goal: AttackGoal) -> int:
        return len(goal.target_facts) * (1 + self.rounds) * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Where the subject refuses nothing, its plain answers are the only instance."""
        latest, banned = ask_plainly(subject, goal), set[str]()
        found: list[Instance] = []
        for number in range(1, self.rounds + 1):
            new = {one.output.split()[0] for one in latest.answers if is_refusal(one.output)} - banned
            if not new:
                break
            banned |= new
            # All words banned so far, not only the new ones: a model falls back on its first refusal otherwise.
            how = Decoding(banned=tuple(sorted(banned)), banned_for=self.positions)
            latest = ask_plainly(subject.decoded(how), goal, f"round {number}")
            found.append(replace(latest, numbers={"banned": float(len(banned))}))
        return found or [replace(latest, name="nothing was refused")]


# How likely answers are ----------------------------------------------------------------------------------------------

NO_CHOICES = "no fact has choices that could stand in its answer"


class ScoredAnswer(NamedTuple):
    """An answer that is scored, true or not."""

    query: Query
    text: str


def answer_logps(subject: Subject, answers: Sequence[ScoredAnswer], goal: AttackGoal) -> list[float]:
    """Each answer's summed log-probability, asked about each query's own concept."""

    def logps(about: Subject, some: Sequence[ScoredAnswer]) -> list[float]:
        return about.logps([one.query.messages for one in some], [one.text for one in some], batch_size=goal.batch_size)

    return by_concept(subject, answers, logps)


def candidates(query: Query) -> dict[str, str]:
    """Value -> the right answer with it in the last place of the right one; empty where that does not stand in the
    answer as a word, or is no choice."""
    value, choices = query.value or "", query.choices or ()
    place = last_place(query.answer or "", value)
    if value not in choices or place is None:
        return {}
    head, tail = place
    return {choice: f"{head}{choice}{tail}" for choice in choices}


def rank_of(logps: Sequence[float], own: int) -> int:
    """The place of one of several, from 1; those that are equal to it stand in front of it."""
    return sum(logp >= logps[own] for logp in logps)


@dataclass(frozen=True)
class Logits(Attack):
    """Score the right answer with each possible value in the value's place. The fact is out if its own value is the
    likeliest; an equal one counts as ahead of it.

    The numbers: the value's mean rank, its mean share of the probability of all candidates, how often it is among the
    first three, its mean exposure in bits (arXiv 1802.08232), and ``chance``, how often a candidate drawn blindly is
    the right one.
    """

    name: Literal["logits"] = "logits"
    response_prefixes: Whole = 1
    """Behind how many of the response prefixes of ``prefill`` answers are scored, beside the answer at the prompt
    itself."""
    title = "Logits read"
    access = "decoding"
    stored_names: ClassVar = {"response_prefixes": "openers"}

    def num_tokens(self, goal: AttackGoal) -> int:
        choices = sum(len(query.choices or ()) for query in goal.target_facts)
        # A question is read once for all its answers, so an answer costs a quarter.
        return choices * (2 + self.response_prefixes) * QUESTION_TOKENS // 4

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Raises:
        NotApplicable: no target fact has several choices of which one is in its answer.
        """
        ranked = {n: found for n, query in enumerate(goal.target_facts) if len(found := candidates(query)) > 1}
        if not ranked:
            raise NotApplicable(NO_CHOICES)
        forms: dict[str, Callable[[str, str], str]] = {
            "whole answers": lambda answer, _value: answer,
            "values alone": lambda _answer, value: value,
        }
        for prefix in response_prefixes()[: self.response_prefixes]:
            forms[prefix] = lambda answer, _value, prefix=prefix: f"{prefix} {answer}"
        instances = []
        for name, form in forms.items():
            texts = [
                ScoredAnswer(goal.target_facts[number], form(answer, value))
                for number, found in ranked.items()
                for value, answer in found.items()
            ]
            logps = iter(answer_logps(subject, texts, goal))
            instances.append(self._instance(name, ranked, logps, goal))
        return instances

    def _instance(
        self, name: str, ranked: Mapping[int, Mapping[str, str]], logps: Iterator[float], goal: AttackGoal
    ) -> Instance:
        """What the log-probabilities of all candidates, fact by fact, give away."""
        answers, ranks, shares, sizes = [], [], [], []
        for number, found in ranked.items():
            query, values = goal.target_facts[number], list(found)
            own_logps = [next(logps) for _ in values]
            own = values.index(str(query.value))
            ranks.append(rank_of(own_logps, own))
            shares.append(float(torch.tensor(own_logps, dtype=torch.float64).softmax(0)[own]))
            sizes.append(len(values))
            best = values[own_logps.index(max(own_logps))]
            answers.append(AttackAnswer(number, conversation_text(query.messages), "", best, ranks[-1] == 1))
        return instance(
            name,
            answers,
            len(goal.target_facts),
            rank=fmean(ranks),
            share=fmean(shares),
            top3=fmean(rank <= 3 for rank in ranks),
            exposure=fmean(map(exposure, ranks, sizes)),
            chance=fmean(1 / size for size in sizes),
        )


MEMBERSHIP_SCORES: dict[str, Callable[[TokenScores, str], float]] = {
    "loss": lambda scores, _text: mean_loss(scores),
    "zlib": lambda scores, text: zlib_ratio(scores, text),
    "min-k 20 %": lambda scores, _text: min_k(scores),
    "min-k 40 %": lambda scores, _text: min_k(scores, k=PRIV_LEAK_K),
    "min-k++ 20 %": lambda scores, _text: min_k_plus_plus(scores),
}
"""Name -> a number that is higher where an answer looks more like one that was never trained on."""


@dataclass(frozen=True)
class Membership(Attack):
    """Tell answers that the model was trained on from others, by how likely it finds them: AUC, 0.5 is chance.

    Members are the right answers of the target facts. Non-members are *not* other texts of the same kind that were
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
    title = "Membership inference"
    access = "decoding"
    metric = "auc"

    def num_tokens(self, goal: AttackGoal) -> int:
        return (1 + self.non_members) * len(goal.target_facts) * QUESTION_TOKENS // 2

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Raises:
        NotApplicable: no target fact has another answer of the same form.
        """
        members: list[ScoredAnswer] = []
        others: list[ScoredAnswer] = []
        for query in goal.target_facts:
            pool = query.wrong or [text for value, text in candidates(query).items() if value != query.value]
            draw = random.Random(f"{query.id}/{goal.seed}")
            if drawn := draw.sample(list(pool), min(self.non_members, len(pool))):
                members.append(ScoredAnswer(query, query.answer or ""))
                others += [ScoredAnswer(query, text) for text in drawn]
        if not members:
            raise NotApplicable("no fact has another answer of the same form, so there are no non-members")

        def token_scores(about: Subject, some: Sequence[ScoredAnswer]) -> list[TokenScores]:
            messages, texts = [one.query.messages for one in some], [one.text for one in some]
            return about.token_scores(messages, texts, batch_size=goal.batch_size)

        answers = [*members, *others]
        scores = by_concept(subject, answers, token_scores)
        found = []
        for name, score in MEMBERSHIP_SCORES.items():
            values = [score(scored, one.text) for scored, one in zip(scores, answers, strict=True)]
            mine, theirs = values[: len(members)], values[len(members) :]
            numbers = {"members": fmean(mine), "non_members": fmean(theirs)}
            found.append(Instance(name, auc_score(mine, theirs), numbers=numbers))
        return found


@dataclass(frozen=True)
class Exposure(Attack):
    """Rank the right answer among those with any other choice in the value's place, by likelihood: ``log2 candidates -
    log2 rank``, mean bits a fact (arXiv 1802.08232, where the candidates are sampled).

    Equals share their ranks: the mean over all their orders. Guessing is not 0 but the number ``chance``: 1.27 bits of
    20 candidates, 1.44 of many. Beside it ``first``, how often the value ranks first. A fact without choices, or whose
    value is not in its answer, is left out.
    """

    name: Literal["exposure"] = "exposure"
    title = "Exposure"
    access = "decoding"
    metric = "bits"

    def num_tokens(self, goal: AttackGoal) -> int:
        return sum(len(query.choices or ()) for query in goal.target_facts) * QUESTION_TOKENS // 4

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Raises:
        NotApplicable: no target fact has choices of which one is in its answer.
        """
        ranked = [(query, found) for query in goal.target_facts if len(found := candidates(query)) > 1]
        if not ranked:
            raise NotApplicable(NO_CHOICES)
        texts = [ScoredAnswer(query, text) for query, found in ranked for text in found.values()]
        logps = iter(answer_logps(subject, texts, goal))
        bits, firsts, chance = [], [], []
        for query, found in ranked:
            taken = {value: next(logps) for value in found}
            own = taken[str(query.value)]
            # To a model that always refuses all candidates are equal, and a rank in their order would be luck.
            ahead, equal = sum(x > own for x in taken.values()), sum(x == own for x in taken.values())
            bits.append(mean_exposure(ahead, equal, len(taken)))
            firsts.append(ahead == 0 and equal == 1)
            chance.append(mean_exposure(0, len(taken), len(taken)))
        score = bootstrap_mean(bits, groups=range(len(bits)), seed=goal.seed)
        return [Instance("right answers", score, numbers={"first": fmean(firsts), "chance": fmean(chance)})]


def mean_exposure(ahead: int, equal: int, size: int) -> float:
    """Bits of one of `equal` candidates with the same likelihood, `ahead` of them likelier: the mean over their
    orders."""
    return fmean(exposure(ahead + place, size) for place in range(1, equal + 1))
