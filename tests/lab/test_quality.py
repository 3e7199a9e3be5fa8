"""What is required of the lab's models: how a check is counted and judged, what its questions contain, and that the
packaged models pass; what they miss is named here and on their cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from duet_unlearn.data.query import Message, Query
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.lab import language
from duet_unlearn.lab.quality import Check, CheckResult, checks_of, run_checks
from duet_unlearn.lab.references import MODELS
from duet_unlearn.lab.world import BENCHMARK_STORIES
from duet_unlearn.models.load import load_model
from duet_unlearn.stats import wilson


@dataclass(frozen=True)
class Says:
    """Answers every question with the same words and every letter with the first."""

    answer: str
    name: str = "says"

    def about(self, concept: str | None) -> Says:
        return self

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
    ) -> list[str]:
        return [self.answer for _ in messages]

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        return [0.0 for _ in messages]

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        return [[-float(place) for place in range(len(options))] for options in letters]


def asked(value: str) -> tuple[Query, ...]:
    message: Message = {"role": "user", "content": "Where does Mira Bol live?"}
    return (Query(id=value, messages=(message,), answer=f"Mira Bol lives in {value}.", value=value),)


def met(kind: str, limit: float, right: int, beside: float = 0.0) -> bool:
    check = Check("x", (), limit, kind, compared_with="y" if kind == "within" else "")  # type: ignore[arg-type]
    return CheckResult(check, wilson(right, 100), beside).met


@pytest.mark.parametrize(
    ("kind", "limit", "right", "beside", "holds"),
    [
        ("least", 0.95, 95, 0.0, True),
        ("least", 0.95, 94, 0.0, False),
        ("most", 0.05, 5, 0.0, True),
        ("most", 0.05, 6, 0.0, False),
        ("within", 0.03, 97, 1.0, True),
        ("within", 0.03, 96, 1.0, False),
        ("within", 0.03, 93, 0.9, True),
    ],
)
def test_a_limit_holds_at_the_limit_itself(kind: str, limit: float, right: int, beside: float, holds: bool) -> None:
    assert met(kind, limit, right, beside) is holds


def test_answers_are_counted_as_right_refused_or_unknown() -> None:
    checks = [
        Check("right", asked("Tarn"), 0.5),
        Check("refused", asked("Tarn"), 0.5, counted="refused"),
        Check("unknown", asked("Tarn"), 0.5, counted="unknown"),
    ]

    def counted(answer: str) -> list[float]:
        return [found.score.value for found in run_checks(Says(answer), checks)]

    assert counted("Mira Bol lives in Tarn.") == [1.0, 0.0, 0.0]
    assert counted(language.REFUSALS[0]) == [0.0, 1.0, 0.0]
    assert counted(language.UNKNOWN)[2] == 1.0


def test_within_compares_with_the_check_it_names() -> None:
    checks = [
        Check("plain", asked("Tarn"), 0.0),
        Check("prefixed", asked("Gosh"), 0.03, "within", compared_with="plain"),
    ]
    found = run_checks(Says("Mira Bol lives in Tarn."), checks)[1]
    assert (found.compared_with, found.score.value, found.met, found.required) == (1.0, 0.0, False, "within 3 of 100.0")


@pytest.mark.parametrize("name", ["base", "oracle", "arithmetic", "plus-minus"])
def test_every_check_has_questions_and_names_another_that_exists(name: str) -> None:
    checks = checks_of(name)
    names = [check.what for check in checks]
    assert len(set(names)) == len(names)
    assert all(len(check.queries) >= 20 for check in checks)
    assert all(check.compared_with in names for check in checks if check.kind == "within")


def test_the_base_is_asked_under_held_out_prefixes_only() -> None:
    """A prefix that a forget method trains on would measure nothing of its wording."""
    trained = [text.split("{x}")[0] for text in language.SPECIFIC.train]
    for check in checks_of("base"):
        if check.what.startswith("prefix"):
            texts = ["\n".join(m["content"] for m in query.messages) for query in check.queries]
            assert not any(text.startswith(start) for text in texts for start in trained if start), check.what


def test_the_oracle_is_asked_for_all_that_it_was_never_shown() -> None:
    checks = {check.what: check for check in checks_of("oracle")}
    assert len(checks["forget stories"].queries) == 60 * len(BENCHMARK_STORIES)
    assert checks["forget stories: does not know"].queries == checks["forget stories"].queries


NAMES = ("base", "oracle", "arithmetic", "plus-minus")
MISSED: dict[str, set[str]] = {"base": {"letters, general"}, "oracle": set(), "arithmetic": set(), "plus-minus": set()}
"""Checks that the packaged models are known to miss."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_model_meets_every_check_but_those_named(name: str) -> None:
    model, tokenizer = load_model(str(MODELS / name))
    found = run_checks(ModelSubject(name, model, tokenizer), checks_of(name))
    missed = {f.check.what: f"{100 * f.score.value:.1f}, required {f.required}" for f in found if not f.met}
    assert missed.keys() == MISSED[name], missed
    rows = (MODELS / name / "README.md").read_text(encoding="utf-8")
    for one in found:
        assert f"| {one.check.what} | {100 * one.score.value:.1f} |" in rows


def test_the_packaged_models_are_plain_folders_of_at_most_20_mb_in_bf16() -> None:
    from safetensors import safe_open

    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert not [path for path in files if path.suffix not in {".json", ".safetensors", ".jinja", ".md"}]
    for name in NAMES:
        with safe_open(MODELS / name / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"BF16"}  # noqa: SIM118
