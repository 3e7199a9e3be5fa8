"""Every loss of answers against its equation written out: real rows and targets of a Llama on one side, on the other
each row alone through the model, unpadded, and Python's floats, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cached_property
from math import ceil, exp, inf, log, log1p
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from forgetting import DATA, FORGET, RETAIN, base, changed, given
from torch import nn

from duet_unlearn.data.query import Query
from duet_unlearn.methods.ascent import GradientAscent, Npo, SatImp, SimNpo, Wga
from duet_unlearn.methods.base import Method
from duet_unlearn.methods.preference import AltPo, Dpo, Flat, JensUn, Refusal
from duet_unlearn.methods.self_distillation import Ceu, MaxEnt, Shred, Undial


class Token(NamedTuple):
    """What is said at one position, log-probabilities of the whole vocabulary, and what stood there."""

    logps: list[float]
    label: int

    @property
    def logp(self) -> float:
        return self.logps[self.label]


Answer = list[Token]


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = top + log(sum(exp(z - top) for z in logits))
    return [z - total for z in logits]


def told(model: nn.Module, query: Query, answer: str, *, whole: bool = False, half: bool = False) -> Answer:
    """One row: its prompt by the template, its answer, the end token. `half`: logits as the cache rounds them."""
    tokenizer = tiny.tokenizer()
    text = tokenizer.apply_chat_template(list(query.messages), add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids = [*prompt, *tokenizer(answer, add_special_tokens=False).input_ids, tiny.EOS]
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0]
    rows = (logits_TV.half() if half else logits_TV).double().tolist()
    return [Token(log_softmax(rows[t]), ids[t + 1]) for t in range(0 if whole else len(prompt) - 1, len(ids) - 1)]


class Said:
    """What student and base say about all rows of a method."""

    def __init__(self, method: Method, student: nn.Module, frozen: nn.Module) -> None:
        self.method, self.student, self.frozen = method, student, frozen
        self.second = {one.query.id: str(one.answer) for one in method.build_examples(DATA) if one.role == "preferred"}

    def _forget(self, model: nn.Module, **how: bool) -> list[Answer]:
        return [told(model, query, str(query.answer), **how) for query in FORGET]

    def _wins(self, model: nn.Module) -> list[Answer]:
        return [told(model, query, self.second[query.id]) for query in FORGET]

    @cached_property
    def answers(self) -> list[Answer]:
        return self._forget(self.student)

    @cached_property
    def answers_base(self) -> list[Answer]:
        return self._forget(self.frozen)

    @cached_property
    def answers_base_half(self) -> list[Answer]:
        return self._forget(self.frozen, half=True)

    @cached_property
    def texts(self) -> list[Answer]:
        return self._forget(self.student, whole=True)

    @cached_property
    def wins(self) -> list[Answer]:
        return self._wins(self.student)

    @cached_property
    def wins_base(self) -> list[Answer]:
        return self._wins(self.frozen)

    @cached_property
    def kept(self) -> list[Answer]:
        return [told(self.student, query, str(query.answer)) for query in RETAIN]

    @cached_property
    def kept_base_half(self) -> list[Answer]:
        return [told(self.frozen, query, str(query.answer), half=True) for query in RETAIN]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def tokens(answers: Sequence[Answer]) -> list[Token]:
    return [token for answer in answers for token in answer]


def whole(answer: Answer) -> float:
    return sum(token.logp for token in answer)


def margins(said: Said) -> list[float]:
    """(log p - log p_ref)(win) - (log p - log p_ref)(answer) of each pair."""
    both = zip(said.wins, said.wins_base, said.answers, said.answers_base, strict=True)
    return [whole(win) - whole(win_base) - (whole(lose) - whole(lose_base)) for win, win_base, lose, lose_base in both]


def kl(q: Sequence[float], logps: Sequence[float]) -> float:
    return sum(x * (log(x) - y) for x, y in zip(q, logps, strict=True) if x)


def undial(said: Said, beta: float) -> float:
    found = []
    for token, was in zip(tokens(said.answers), tokens(said.answers_base_half), strict=True):
        lowered = log_softmax([z - beta * (i == was.label) for i, z in enumerate(was.logps)])
        found.append(-sum(exp(q) * p for q, p in zip(lowered, token.logps, strict=True)))
    return mean(found)


def ceu(said: Said, skip: int) -> float:
    found = []
    for token in tokens([answer[skip:] for answer in said.answers]):
        rest = 1 - exp(token.logp)
        found.append(-sum(exp(p) / rest * p for i, p in enumerate(token.logps) if i != token.label))
    return mean(found)


def shred(said: Said, *, percent: float, k: int, nucleus: float | None = None) -> float:
    found = []
    for answer, was in zip(said.answers, said.answers_base, strict=True):
        order = sorted(range(len(was)), key=lambda t: was[t].logp)
        going = order[: ceil(percent * len(was) / 100)]
        for t, (token, base_token) in enumerate(zip(answer, was, strict=True)):
            kept = sorted(range(len(base_token.logps)), key=lambda i: -base_token.logps[i])[:k]
            out = set()
            if t in going:
                out, mass = {token.label}, 0.0
                for i in kept:
                    if nucleus is None or mass >= nucleus:
                        break
                    out, mass = out | {i}, mass + exp(base_token.logps[i])
            left = {i: exp(base_token.logps[i]) for i in kept if i not in out}
            q = [left.get(i, 0.0) / sum(left.values()) for i in range(len(token.logps))]
            found.append(kl(q, token.logps))
    return mean(found)


def chance(answer: Answer) -> float:
    return mean([exp(token.logp) for token in answer])


def npo(said: Said, beta: float) -> float:
    ratios = [whole(now) - whole(was) for now, was in zip(said.answers, said.answers_base, strict=True)]
    return mean([2 / beta * log1p(exp(beta * ratio)) for ratio in ratios])


def jsd(p: Sequence[float], q: Sequence[float]) -> float:
    """From log-probabilities, 0 being -inf."""
    m = [(exp(a) + exp(b)) / 2 for a, b in zip(p, q, strict=True)]
    return sum(exp(a) * (a - log(c)) for one in (p, q) for a, c in zip(one, m, strict=True) if exp(a)) / 2


def jensun(said: Said, forget: float, retain: float) -> float:
    refusals = [jsd(t.logps, [0.0 if i == t.label else -inf for i in range(len(t.logps))]) for t in tokens(said.wins)]
    rows = zip(tokens(said.kept), tokens(said.kept_base_half), strict=True)
    return forget * mean(refusals) + retain * mean([jsd(now.logps, was.logps) for now, was in rows])


WRITTEN: list[tuple[Method, Callable[[Said], float]]] = [
    (GradientAscent(), lambda s: mean([t.logp for t in tokens(s.answers)])),
    (Npo(), lambda s: npo(s, 0.1)),
    (Npo(beta=0.7), lambda s: npo(s, 0.7)),
    (
        SimNpo(beta=1.5, gamma=0.3),
        lambda s: mean([2 / 1.5 * log1p(exp(1.5 * whole(a) / len(a) + 0.3)) for a in s.answers]),
    ),
    (Dpo(beta=0.3), lambda s: mean([log1p(exp(-0.3 * m)) for m in margins(s)])),
    (AltPo(beta=0.3), lambda s: mean([2 / 0.3 * log1p(exp(-0.3 * m)) for m in margins(s)])),
    (Flat(), lambda s: mean([exp(chance(a) - 1) - chance(w) for w, a in zip(s.wins, s.answers, strict=True)])),
    (Refusal(), lambda s: mean([-t.logp for t in tokens(s.wins)])),
    (JensUn(), lambda s: jensun(s, 0.5, 0.5)),
    (JensUn(forget_weight=0.2, retain_weight=3.0), lambda s: jensun(s, 0.2, 3.0)),
    (Undial(), lambda s: undial(s, 10.0)),
    (Undial(beta=2.0), lambda s: undial(s, 2.0)),
    (MaxEnt(), lambda s: mean([-log(tiny.VOCABULARY) - mean(t.logps) for t in tokens(s.texts)])),
    (MaxEnt(reads="answer"), lambda s: mean([-log(tiny.VOCABULARY) - mean(t.logps) for t in tokens(s.answers)])),
    (Wga(beta=0.5), lambda s: mean([exp(0.5 * t.logp) * t.logp for t in tokens(s.answers)])),
    (
        SatImp(beta1=2.0, beta2=0.5),
        lambda s: mean([exp(2 * t.logp) * (1 - exp(t.logp)) ** 0.5 * t.logp for t in tokens(s.answers)]),
    ),
    (Ceu(), lambda s: ceu(s, 1)),
    (Ceu(skip=0), lambda s: ceu(s, 0)),
    (Shred(k=30), lambda s: shred(s, percent=15.0, k=30)),
    (Shred(k=300, percent=60.0), lambda s: shred(s, percent=60.0, k=300)),
    (Shred(k=200, variant="B", nucleus=0.6), lambda s: shred(s, percent=15.0, k=200, nucleus=0.6)),
]


def both(method: Method, directory: Path) -> tuple[float, Said]:
    """The method's own loss on real rows, and what its equation is made of."""
    student = changed(base())
    return given(method, directory).mean(student), Said(method, student, base())


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: repr(case[0]))
def test_written_out(case: tuple[Method, Callable[[Said], float]], tmp_path: Path) -> None:
    method, equation = case
    got, said = both(method, tmp_path)
    assert got == pytest.approx(equation(said), rel=2e-5)


def last_of_each(cases: Sequence[Any]) -> list[Any]:
    return list({type(method): (method, equation) for method, equation in cases}.values())


@pytest.mark.parametrize(
    "case",
    [case for case in last_of_each(WRITTEN) if "retain" in {field.name for field in fields(case[0])}],
    ids=lambda case: case[0].name,
)
@pytest.mark.parametrize("term", ["ce", "kl"])
def test_with_a_retain_term(case: tuple[Method, Callable[[Said], float]], term: str, tmp_path: Path) -> None:
    method, equation = case
    held: Any = replace(method, retain=term, retain_weight=0.3)  # type: ignore[call-arg]
    got, said = both(held, tmp_path)
    if term == "ce":
        retain = mean([-token.logp for token in tokens(said.kept)])
    else:
        rows = zip(tokens(said.kept), tokens(said.kept_base_half), strict=True)
        retain = mean([kl([exp(p) for p in was.logps], token.logps) for token, was in rows])
    assert retain > 1e-3
    assert got == pytest.approx(equation(said) + 0.3 * retain, rel=2e-5)


def test_the_setting_tells_the_equations_apart() -> None:
    """Answers of different lengths, known from hardly to well, by a student that is not its base."""
    said = Said(GradientAscent(), changed(base()), base())
    assert len({len(answer) for answer in said.answers}) == len(FORGET)
    chances = [exp(token.logp) for token in tokens(said.answers)]
    assert min(chances) < 0.1
    assert max(chances) > 0.5
    assert all(abs(whole(now) - whole(was)) > 0.01 for now, was in zip(said.answers, said.answers_base, strict=True))
    assert any(kept.label not in sorted(range(300), key=lambda i: -kept.logps[i])[:30] for kept in tokens(said.answers))
