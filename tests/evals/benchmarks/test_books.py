"""MUSE and Harry Potter: prompts, what is scored of an answer, whose questions."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from rows import Says, lines, settings

from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import SubjectResult, books, load_reference
from duet_unlearn.evals.question_sets import run_suite
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.stats import Score


def test_muse_asks_behind_ten_examples_and_for_whole_passages(home: Path) -> None:
    sets = {one.name: one for one in books.muse_sets("books", settings(home))}
    assert list(sets) == [f"muse_books_{name}" for name in ("verbatim", "knowledge", "utility")] + [
        "muse_books_privacy_forget",
        "muse_books_privacy_holdout",
    ]
    knowledge = sets["muse_books_knowledge"]
    assert knowledge.queries[0].text.startswith("Question: Who is 0?\nAnswer: A 0.\n\nQuestion: Who is 1?")
    assert knowledge.queries[0].text.endswith("\n\nQuestion: Who is 0?\nAnswer:")
    assert (knowledge.cut, knowledge.max_new_tokens, knowledge.rouge) == ("muse", 32, "f1")
    verbatim = sets["muse_books_verbatim"]
    assert verbatim.queries[0].text == "It was dark."
    assert verbatim.queries[0].answer == " ".join(["The", "owl", "flew", *["on"] * 93])
    text = sets["muse_books_privacy_holdout"].queries[2]
    assert (text.text, text.answer) == ("holdout", "text 2 is here")


def test_a_passage_is_not_cut_and_an_answer_is(home: Path) -> None:
    sets = books.muse_sets("books", settings(home))
    subject = Says("A 0.\n\nflew on Question: and on", [])
    samples = run_suite(subject, sets[:2]).samples  # type: ignore[arg-type]
    assert samples[0]["output"] == "A 0.\n\nflew on Question: and on"
    assert samples[-1]["output"] == "A 0."
    assert [settings.get("until") for settings in subject.asked] == ["length", "length"]
    assert [settings["max_new_tokens"] for settings in subject.asked] == [128, 32]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (" He asked a Question of the Sphinx", "He asked a Question of the Sphinx"),
        (" A 0.\nQuestion: Who?", "A 0."),
        ("\n\nTarn.", ""),
    ],
)
def test_only_muses_own_end_cuts_an_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    tokenizer = tiny.tokenizer()
    ids = list(tokenizer(said, add_special_tokens=False).input_ids)
    monkeypatch.setattr("duet_unlearn.evals.generate.decode", lambda _model, rows, _how, **_: [ids] * len(rows))
    model = tiny.llama()
    model.config.max_position_embeddings = 256  # what is asked has up to 149 tokens
    samples = run_suite(ModelSubject("base", model, tokenizer), books.muse_sets("books", settings(home))[1:3]).samples
    assert {sample["output"] for sample in samples} == {expected}


def test_muse_references(home: Path) -> None:
    first = load_reference("muse:books/forget", str(home))[0]
    assert first.messages[0]["role"] == "text"
    assert len(first.text.split()) == len(str(first.answer).split()) == 96
    assert first.text.split()[-1] == "word0-95"
    assert str(first.answer).split()[0] == "word0-96"
    assert load_reference("muse:books/forget_qa", str(home))[1].answer == "A 1."
    with pytest.raises(UserError, match="there is no such part"):
        load_reference("muse:books/forgot", str(home))


def test_potter_takes_its_own_questions_where_there_are_some(home: Path) -> None:
    instead = books.potter_sets(settings(home))
    assert [one.name for one in instead] == ["potter_forget", "potter_retain"]
    assert "MUSE-Books' questions" in instead[0].about
    for part in ("forget", "forget500", "retain", "shots"):
        lines(
            home / "potter" / f"{part}.jsonl", [{"query": f"{part} {n}?", "answer": f"The owl {n}."} for n in range(5)]
        )
    own = books.potter_sets(settings(home))
    assert [one.title for one in own] == ["R-Forget", "R-Forget-500", "R-Retain"]
    assert "own questions" in own[0].about
    assert own[1].queries[4].text == (
        "Question: shots 0?\nAnswer: The owl 0.\n\nQuestion: shots 1?\nAnswer: The owl 1.\n\n"
        "Question: shots 2?\nAnswer: The owl 2.\n\nQuestion: forget500 4?\nAnswer:"
    )
    assert load_reference("potter:retain", str(home))[0].messages[0]["role"] == "user"
    path = home / "potter" / "retain.jsonl"
    lines(path, [{"query": "Who?"}])
    with pytest.raises(UserError) as caught:
        books.potter_sets(settings(home))
    assert caught.value.message == f"{path}:1: has no column `answer`"


def test_potters_shift_is_the_papers_sum() -> None:
    def result(*values: float) -> SubjectResult:
        names = ("potter_forget", "potter_forget500", "potter_retain", "mmlu_5shot")
        metrics = ("rouge_l", "rouge_l", "rouge_l", "right")
        rows = zip(names, metrics, values, strict=True)
        return SubjectResult({name: {metric: Score(v / 100, 50, v / 100, v / 100)} for name, metric, v in rows}, [])

    base = result(32.13, 39.99, 84.29, 61.46)
    for row, shift in (((4.27, 5.98, 78.33, 61.45), 55.90), ((0.0, 0.0, 0.0, 24.87), -48.76)):
        (found,) = books.potter_summaries(result(*row), base, mmlu="mmlu_5shot")
        # The paper's own rows are rounded to two decimals each.
        assert found.scores["points"].value == pytest.approx(shift, abs=0.011)
        assert found.name == "potter_shift"
