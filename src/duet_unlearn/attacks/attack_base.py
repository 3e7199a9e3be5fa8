"""What every attack stands on.

In this order: the facts that an attacker wants back and those that he has; the base class of all attacks; how one
attack is carried out and what it costs; how a subject is asked many questions at once and how its answers are judged.
"""

from __future__ import annotations

import gc
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import nn

from duet_unlearn.answers import is_refusal, normalise, recall, value_match
from duet_unlearn.attacks.result import (
    Access,
    AttackAnswer,
    AttackResult,
    Cost,
    Instance,
    Metric,
    NotApplicable,
    OnProgress,
    Status,
    instance,
    no_progress,
)
from duet_unlearn.config.sections import named
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import ContextTooLong
from duet_unlearn.evals.question_sets import EvalSet, expected_answer, fact, subjects_by_concept
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.lora import has_adapter

Item = TypeVar("Item", bound="AboutQuery")
Found = TypeVar("Found")
LOG = logging.getLogger("duet_unlearn")
AUXILIARY_SHARE = 1 / 2
"""Of the facts that queries with answers are about, the share that the attacker is shown; ours."""
YES_NO = ("yes", "no")
"""Values of questions that ask for no more; "I have no memory of that" is none of them."""
OVERLAP = 0.5
"""ROUGE-L recall from which a long answer that names no value counts as given away; ours."""
BACKWARD = 3
"""A backward pass costs two forward passes more."""
QUESTION_TOKENS = 64
"""What one short question and its answer take, in tokens through the model: for estimates only."""
LETTERS_PER_TOKEN, ANSWER_TOKENS = 4, 24
"""For estimates only."""
LETTER = re.compile(r"\b(?:A(?!\s+(?!or\b|and\b)[a-z])|[B-Z])\b")
"""A letter that stands for an option; an A in front of a word is an article."""


# The goal ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttackGoal:
    """The facts that are to come back, and what the attacker has. Target and auxiliary facts are different ones, the
    same for every attack."""

    concept: str
    """What was forgotten, as the prefix names it: "the story Amber Gate"."""
    target_facts: tuple[Query, ...]
    """One question a fact, with its answer. Success is the share of these that come back."""
    auxiliary_facts: tuple[Query, ...] = ()
    """Questions with answers about other facts of the concept: an attacker's own part of the knowledge."""
    neighbours: tuple[Query, ...] = ()
    """Questions with answers near the concept, which the model may answer."""
    others: tuple[Query, ...] = ()
    """Questions with answers about anything else."""
    forms: Mapping[str, tuple[Query | None, ...]] = field(default_factory=dict)
    """Form (``choice``, ``yes-no``, ``continuation``, ..) -> each target fact asked in that form, with a value and
    choices of its own; None where the fact has no such form."""
    max_new_tokens: int = 32
    """Longest answer."""
    batch_size: int = 64
    seed: int = 0

    def stored(self) -> dict[str, Any]:
        """As JSON values, under the names by which stored results were hashed: a new name here would make every stored
        result look like one of another goal."""
        values = asdict(self)
        return values | {"wanted": values.pop("target_facts"), "known": values.pop("auxiliary_facts")}


def draw_goal(
    concept: str,
    forget: Sequence[Query],
    sets: Sequence[EvalSet],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
) -> AttackGoal:
    """The goal of attacks on a run: `forget` are its forget queries, `sets` those of its evaluation.

    Auxiliary is half of the facts that `forget` has answers of; where it has none, half of those that the forget sets
    ask for. Targets are all other facts that a forget set asks for, each in the wording of the last set that does,
    which is the one farthest from training. A question that may be about an auxiliary fact in other words (``alike``)
    is no target. Answers may be as long as the sets allow, and as the longest right one is.

    Raises:
        UserError: no question about the concept has an answer, or they are all about one fact.
    """
    generated = [one for one in sets if one.protocol == "generate"]
    forget_sets = [one for one in generated if one.better == "low" and one.group == "forget"]
    listed = [query for one in forget_sets for query in one.queries if query.answer]
    answered = [query for query in forget if query.answer] or listed
    # Sorted before they are drawn: the same facts are auxiliary for every method and every order of the file.
    facts = sorted({fact(query) for query in answered})
    chosen = set(random.Random(f"known/{seed}").sample(facts, round(len(facts) * AUXILIARY_SHARE)))
    auxiliary = tuple({query.id: query for query in answered if fact(query) in chosen}.values())

    def not_auxiliary(queries: Sequence[Query]) -> tuple[Query, ...]:
        """The last question about each other fact."""
        rest = [query for query in queries if not any(alike(query, one) for one in auxiliary)]
        return tuple({fact(query): query for query in rest}.values())

    def answered_of(group: str) -> tuple[Query, ...]:
        found = [query for one in generated if one.group == group for query in one.queries if query.answer]
        return tuple({query.id: query for query in found}.values())

    targets = not_auxiliary(listed) or not_auxiliary(answered)
    if not targets:
        raise UserError(
            "no question about what was forgotten has an answer, so nobody can tell what comes back"
            if not answered
            else "all questions about what was forgotten may be about one fact, and attacks need another to ask for",
            'give the forget queries, or those of a set `forget..` in evaluate.sets, an "answer" and a "value"',
        )
    # In a language with an alphabet a token has three bytes or more; 8 are for its end and what stands around.
    lengths = [len((query.answer or "").encode()) // 3 + 8 for query in targets]
    return AttackGoal(
        concept,
        target_facts=targets,
        auxiliary_facts=auxiliary,
        neighbours=answered_of("neighbour"),
        others=answered_of("retain"),
        max_new_tokens=max([max_new_tokens, *(one.max_new_tokens or 0 for one in forget_sets), *lengths]),
        batch_size=batch_size,
        seed=seed,
    )


def alike(query: Query, other: Query) -> bool:
    """Whether two questions may be about one fact: they have a question or an answer in common; or, where no `source`
    tells facts apart, a value and a name, or a value alone where neither names anybody."""
    if fact(query) == fact(other) or normalise(query.text) == normalise(other.text):
        return True
    if normalise(query.answer or "") == normalise(other.answer or ""):
        return query.source == other.source
    if (query.source and other.source) or not query.value or not other.value:
        return False
    # A name is a word with a capital that does not open a sentence, other than the value's.
    own, others = (
        {word.casefold() for word in re.findall(r"(?<![.?!])\s+([A-Z]\w+)", one.text)}
        - set(normalise(one.value or "").split())
        for one in (query, other)
    )
    return normalise(query.value) == normalise(other.value) and (bool(own & others) or not (own or others))


def given_away(output: str, query: Query) -> bool:
    """Whether an answer gives the fact away: it has the value and no other choice.

    Of a long answer without a value: it is no refusal, and has, in their order, at least half of the words that the
    question does not show (ROUGE-L recall). A refusal that a question of "yes" or "no" gets is no "no".
    """
    if value := expected_answer(query):
        if normalise(value) in YES_NO and is_refusal(output):
            return False
        return value_match(output, value, query.choices)
    shown = set(normalise(query.text).split())
    telling = " ".join(word for word in normalise(query.answer or "").split() if word not in shown)
    return bool(telling) and not is_refusal(output) and recall(output, telling) >= OVERLAP


# The base class ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """A frozen dataclass of settings, and what is done with them. A subclass gives `name` a default, says its `title`
    and in its docstring what the attacker does, and overrides the hooks."""

    name: str
    access: ClassVar[Access] = "chat"
    metric: ClassVar[Metric] = "right"
    not_empty: ClassVar[tuple[str, ...]] = ()
    """Settings that are lists and must name something."""
    stored_names: ClassVar[Mapping[str, str]] = {}
    """Setting -> its name in an earlier version: a suite file may still use that, and stored results keep it."""

    def __post_init__(self) -> None:
        named(self, *(name for name in self.not_empty if getattr(self, name) is not None))

    @property
    def title(self) -> str:
        """Its name for people; a subclass sets it as a class attribute."""
        raise NotImplementedError

    @property
    def about(self) -> str:
        """What the attacker does, where the class's docstring does not say all of it."""
        return ""

    def num_tokens(self, goal: AttackGoal) -> int:
        """About how many tokens go through the model, for the estimate of time; one with a backward pass counts
        three times."""
        raise NotImplementedError

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Try every instance. The subject's own weights stay as they are: what changes weights works on a copy.

        Raises:
            NotApplicable: the attack does not fit this subject or goal.
        """
        raise NotImplementedError

    def other_inputs(self) -> list[Any]:
        """What the result depends on besides the settings, as JSON values: when it has changed, a stored result is not
        used again."""
        return []

    def stored_settings(self) -> dict[str, Any]:
        """The settings under the names by which they are stored."""
        return {self.stored_names.get(name, name): value for name, value in asdict(self).items()}


class AttackPrompt(NamedTuple):
    """One question of an attack."""

    instance: str
    fact: int
    """Index into the goal's `target_facts`."""
    query: Query
    """What is sent; its value and choices judge the answer."""
    prefill: str = ""
    family: str = ""


@dataclass(frozen=True)
class PromptAttack(Attack):
    """An attack whose questions are all known before the first is answered."""

    no_prompts: ClassVar[str] = "no target fact can be asked for in this way"
    """Why the attack does not apply, where it has nothing to ask."""

    def build_prompts(self, goal: AttackGoal) -> list[AttackPrompt]:
        """Everything that is asked."""
        raise NotImplementedError

    def num_tokens(self, goal: AttackGoal) -> int:
        prompts = self.build_prompts(goal)
        letters = sum(len(conversation_text(one.query.messages)) + len(one.prefill) for one in prompts)
        return letters // LETTERS_PER_TOKEN + len(prompts) * ANSWER_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        if not (prompts := self.build_prompts(goal)):
            raise NotApplicable(self.no_prompts)
        return ask(subject, prompts, goal)


@dataclass(frozen=True)
class Plain(PromptAttack):
    """Ask, and nothing else. Whatever comes back here was not forgotten."""

    name: Literal["plain"] = "plain"
    title = "Asked plainly"

    def build_prompts(self, goal: AttackGoal) -> list[AttackPrompt]:
        return plain_prompts(goal)


# One attack on one subject -------------------------------------------------------------------------------------------


def run_attack(
    subject: Subject, attack: Attack, goal: AttackGoal, on_progress: OnProgress = no_progress
) -> AttackResult:
    """Carry an attack out. One that breaks or runs out of memory is a result too: `failed`, with its reason."""
    instances: list[Instance] = []
    status: Status = "done"
    reason = ""
    with metered(subject) as cost:
        try:
            instances = attack.run(subject, goal, on_progress)
        except NotApplicable as error:
            status, reason = "not applicable", str(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            status = "failed"
            if isinstance(error, UserError):
                reason = error.message
            elif isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
                reason = "out of memory"
            else:
                reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            LOG.warning("warning: attack %s on %s failed: %s", attack.name, subject.name, reason)
    if status == "failed":
        # The traceback held the attack's copies of the model until here; the next attack needs their memory.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return AttackResult(attack.name, subject.name, status, reason, attack.metric, tuple(instances), cost)


@contextmanager
def metered(subject: object) -> Iterator[Cost]:
    """Count what goes through a subject's models, and through copies that are made of them inside."""
    cost, started = Cost(), time.perf_counter()

    def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is not None:
            cost.tokens += given.shape[0] * given.shape[1] * (BACKWARD if torch.is_grad_enabled() else 1)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # The hooks sit on the models themselves, so that a deep copy, which an attack on weights makes, counts as well.
    with ExitStack() as hooks:
        for model in models_of(subject):
            hooks.callback(model.register_forward_pre_hook(count, with_kwargs=True).remove)
        try:
            yield cost
        finally:
            cost.seconds = time.perf_counter() - started
            cost.peak_memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def models_of(subject: object) -> list[nn.Module]:
    """Every model in a subject, whatever it is built of; of one with adapters the model inside, which merging keeps."""
    found: dict[int, nn.Module] = {}

    def walk(part: object) -> None:
        if isinstance(part, nn.Module):
            inner = cast("Any", part).get_base_model() if has_adapter(part) else part
            found[id(inner)] = inner
        elif is_dataclass(part) and not isinstance(part, type):
            for one in fields(part):
                walk(getattr(part, one.name))

    walk(subject)
    return list(found.values())


def require_own_weights(subject: Subject) -> ModelSubject:
    """The subject as a model whose weights an attacker has.

    Raises:
        NotApplicable: what it forgot is not in its weights: who has them has the base.
    """
    if not isinstance(subject, ModelSubject) or subject.prefix or subject.mark:
        raise NotApplicable("the weights are the base's: who has them needs no attack")
    return subject


# Asking and judging --------------------------------------------------------------------------------------------------


def ask(subject: Subject, prompts: Sequence[AttackPrompt], goal: AttackGoal) -> list[Instance]:
    """Send all questions in one go, so that wordings share batches and beginnings, and count what came back.

    Instances come in the order in which `prompts` names them.

    Raises:
        NotApplicable: there is nothing to ask, or one question is longer than the model reads.
    """
    if not prompts:
        raise NotApplicable(PromptAttack.no_prompts)
    return judge(prompts, generate_answers(subject, prompts, goal), goal)


def ask_plainly(subject: Subject, goal: AttackGoal, name: str = "plain", family: str = "") -> Instance:
    """The target facts' questions as they are, as one instance."""
    return ask(subject, plain_prompts(goal, name, family), goal)[0]


def plain_prompts(goal: AttackGoal, name: str = "plain", family: str = "") -> list[AttackPrompt]:
    """The target facts' questions as they are."""
    return [AttackPrompt(name, number, query, family=family) for number, query in enumerate(goal.target_facts)]


def generate_answers(subject: Subject, prompts: Sequence[AttackPrompt], goal: AttackGoal) -> list[str]:
    """What comes back to each question.

    Raises:
        NotApplicable: one is longer than the model reads.
    """

    def generate(about: Subject, some: Sequence[AttackPrompt]) -> list[str]:
        return about.generate(
            [one.query.messages for one in some],
            prefill=[one.prefill for one in some],
            max_new_tokens=goal.max_new_tokens,
            batch_size=goal.batch_size,
        )

    try:
        return by_concept(subject, prompts, generate)
    except ContextTooLong as error:
        raise NotApplicable(error.message) from error


class AboutQuery(Protocol):
    """Something that is asked or scored about a query."""

    @property
    def query(self) -> Query: ...


def by_concept(
    subject: Subject, items: Sequence[Item], call: Callable[[Subject, Sequence[Item]], Sequence[Found]]
) -> list[Found]:
    """What a call makes of each item, when the subject is asked about each query's own concept."""
    found: dict[int, Found] = {}
    for about, places in subjects_by_concept(subject, [one.query for one in items]):
        found |= zip(places, call(about, [items[place] for place in places]), strict=True)
    return [found[place] for place in range(len(items))]


def judge(prompts: Sequence[AttackPrompt], outputs: Sequence[str], goal: AttackGoal) -> list[Instance]:
    """What the answers give away: one instance for each name."""
    rows: dict[tuple[str, str], list[AttackAnswer]] = {}
    for one, output in zip(prompts, outputs, strict=True):
        choices = one.query.choices or ()
        # Where options are letters, "A cat" must not count as the letter A, as it would as a value.
        letters = bool(choices) and all(len(choice) == 1 and choice.isupper() for choice in choices)
        right = (names_letter if letters else given_away)(output, one.query)
        answer = AttackAnswer(one.fact, conversation_text(one.query.messages), one.prefill, output, right)
        rows.setdefault((one.family, one.instance), []).append(answer)
    num_facts = len(goal.target_facts)
    return [instance(name, answers, num_facts, family=family) for (family, name), answers in rows.items()]


def names_letter(output: str, query: Query) -> bool:
    """Whether an answer names the right letter and no other of the choices. "A cat" names none."""
    bare = output.strip(" \n.:()*")
    found = LETTER.findall(output) if len(bare) > 1 else [bare.upper()]
    return {*found} & {*(query.choices or ())} == {query.value}


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as text: of a single question the question alone."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)
