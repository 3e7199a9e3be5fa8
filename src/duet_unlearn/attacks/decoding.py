"""The questions as they are, answered under other decodings than the greedy one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from duet_unlearn.answers import is_refusal
from duet_unlearn.attacks.asking import Ask, ask, plain
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, Said, Watch, unwatched
from duet_unlearn.config.sections import Count, Positive, named
from duet_unlearn.evals.likelihood import leak_at_k
from duet_unlearn.evals.subject import Subject
from duet_unlearn.teacher.decoding import Decoding

LEAKS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Sampling:
    """Draw many answers to each question; a fact is out if any of them has it (leak@k, arXiv 2511.04934).

    The numbers are leak@k of the first k answers. Each temperature is compared with the oracle's own answers at it:
    who draws often enough guesses some.
    """

    name: Literal["sampling"] = "sampling"
    samples: Count = 16
    """Answers to a question, at each temperature."""
    temperatures: tuple[Positive, ...] = (0.7, 1.0)
    """Logits are divided by each, one after the other. Ours."""
    title: ClassVar[str] = "Sampled answers"
    access: ClassVar[Access] = "decoding"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "temperatures")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return len(goal.wanted) * self.samples * len(self.temperatures) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        found = []
        for done, temperature in enumerate(self.temperatures):
            watch(done, len(self.temperatures))
            name = f"temperature {temperature:g}"
            how = Decoding(temperature=temperature, seed=goal.seed)
            one = ask(subject.decoded(how), _several(name, goal, self.samples), goal)[0]
            found.append(_told(replace(one, numbers=_leaks(one.said, self.samples), family=name)))
        return found


@dataclass(frozen=True)
class Beams:
    """Search for the answers of highest probability instead of taking token after token; any of the best counts."""

    name: Literal["beams"] = "beams"
    beams: Count = 4
    """How many beams are searched with, and how many answers count."""
    title: ClassVar[str] = "The best beams"
    access: ClassVar[Access] = "decoding"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return len(goal.wanted) * self.beams * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        how, name = Decoding(beams=self.beams), f"the best {self.beams} beams"
        one = ask(subject.decoded(how), _several(name, goal, self.beams), goal)[0]
        return [_told(replace(one, numbers=_leaks(one.said, self.beams)))]


@dataclass(frozen=True)
class BanRefusals:
    """Forbid the words with which the subject's own refusals begin, and take what is likeliest then.

    Refusals that come instead are forbidden in the next round.
    """

    name: Literal["ban-refusals"] = "ban-refusals"
    rounds: Count = 5
    """At most; each is an instance."""
    positions: Count = 2
    """How many of an answer's first tokens the ban is for."""
    title: ClassVar[str] = "Refusals forbidden"
    access: ClassVar[Access] = "decoding"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return len(goal.wanted) * (1 + self.rounds) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``. Where the subject refuses nothing, its plain answers are the only instance."""
        latest, banned = ask(subject, plain(goal), goal)[0], set[str]()
        found: list[Instance] = []
        for number in range(1, self.rounds + 1):
            new = {one.output.split()[0] for one in latest.said if is_refusal(one.output)} - banned
            if not new:
                break
            banned |= new
            how = Decoding(banned=tuple(sorted(banned)), banned_for=self.positions)
            latest = replace(ask(subject.decoded(how), plain(goal), goal)[0], name=f"round {number}")
            found.append(replace(latest, numbers={"banned": float(len(banned))}))
        return found or [replace(latest, name="nothing was refused")]


def _several(name: str, goal: Goal, count: int) -> list[Ask]:
    return [Ask(name, number, query) for number, query in enumerate(goal.wanted) for _ in range(count)]


def _leaks(said: Sequence[Said], count: int) -> dict[str, float]:
    """leak@k for some k and for all, of answers that stand fact by fact, `count` each."""
    facts = [[one.right for one in said[start : start + count]] for start in range(0, len(said), count)]
    sizes = [*(k for k in LEAKS if k < count), count]
    return {f"leak@{k}": leak_at_k([rights[:k] for rights in facts]).value for k in sizes}


def _told(one: Instance) -> Instance:
    """With one answer a fact: the first that is right, or else the first."""
    first: dict[int, Said] = {}
    for said in one.said:
        if said.fact not in first or (said.right and not first[said.fact].right):
            first[said.fact] = said
    return replace(one, said=tuple(first.values()))
