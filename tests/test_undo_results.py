"""The benchmarks of UNDO and of requests in turn: who is asked what, and what their tables say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def result(tokens: int, other: float, *, plus: float = 1.0) -> dict[str, Any]:
    """A subject of one seed; all relearning steps end alike."""
    knows = {"plus": plus, "minus": 1.0, "times": 0.0, "divided by": 0.0, "facts": 0.9}
    relearned = {step: [other, 1e-3] for step in ("0", "10", "40")}
    return {"tokens": tokens, "knows": knows, "relearned": {"other": relearned, "all": relearned}}


def found() -> dict[str, Any]:
    import undo

    subjects = {
        "unlearned": [result(1000, 0.9), result(1000, 0.8)],
        "oracle": [result(0, 0.1), result(0, 0.0)],
        "undo-0.6": [result(6000, 0.3, plus=0.8), result(3000, 0.2)],
        "retrained": [result(50_000, 0.1), result(100_000, 0.0)],
    }
    for name, seeds in subjects.items():
        for one, first in zip(seeds, subjects["unlearned"], strict=True):
            tokens = undo.tokens_of(name, one, first) or 0
            one["compute"] = {"pretraining": tokens / 100_000, "retraining": tokens / 50_000}
    return {"setting": {"steps": [0, 10, 40]}, "subjects": subjects}


def test_the_halves_share_no_pair_of_numbers() -> None:
    import undo

    shown, other = undo.halves(0)
    assert len(shown) + len(other) == 200

    def pairs(queries: Any) -> set[tuple[int, ...]]:
        numbers = [[int(n) for n in re.findall(r"\d+", query.text)] for query in queries]
        whole = [(a, b) if "times" in q.text else (b, a // b) for q, (a, b) in zip(queries, numbers, strict=True)]
        return {tuple(sorted(pair)) for pair in whole}

    assert pairs(shown).isdisjoint(pairs(other))
    assert len(pairs(shown) | pairs(other)) == 55
    assert abs(len(shown) - len(other)) <= 20
    assert undo.halves(0) == (shown, other)
    assert undo.halves(1)[0] != shown


def test_an_equation_is_what_pretraining_reads() -> None:
    """The raw text and its answer give the ids of the sample, result and all."""
    import undo

    from duet_unlearn.data.prompts import render_answer
    from duet_unlearn.lab.language import LabText, Segment
    from duet_unlearn.lab.pretraining import Encoder, new_tokenizer

    words = new_tokenizer()
    for query in undo.equations("divided by")[:20]:
        text = query.messages[0]["content"]
        sample = LabText((Segment("text", text, False), Segment("text", f" {query.answer}", True)))
        assert render_answer(words, query.messages, query.answer or "")[0] == Encoder(words)(sample)[0]


def test_compute_counts_the_teacher_and_the_first_stage() -> None:
    import undo

    first, distilled = result(1000, 0.9), result(6000, 0.3)
    assert undo.tokens_of("undo-0.6", distilled, first) == 1000 + 8000
    assert undo.tokens_of("unlearned", first, first) == 1000
    assert undo.tokens_of("retrained", distilled, first) == 6000
    assert undo.tokens_of("oracle", {}, first) is None


def test_robustness_is_the_way_to_the_oracle() -> None:
    import undo

    assert undo.robustness(found(), "undo-0.6") == pytest.approx([0.75, 0.75])  # .9 to .3 of .9 to .1; .8 to .2 of .8
    assert undo.robustness(found(), "unlearned") == [0.0, 0.0]
    assert undo.robustness(found(), "oracle") == [1.0, 1.0]
    rows = undo.tables(found()).splitlines()
    assert rows[-3] == "| oracle | 100 | 90 |  |  | 5 (0 to 10) | 5 (0 to 10) | 5 (0 to 10) | 100 |"
    assert (
        rows[-2] == "| undo-0.6 | 95 (90 to 100) | 90 | 7 (5 to 9) | 14 (10 to 18) |" + 3 * " 25 (20 to 30) |" + " 75 |"
    )


def test_the_picture_is_the_same_twice(tmp_path: Path) -> None:
    import undo

    for name in ("one", "two"):
        undo.draw(found(), tmp_path / f"{name}.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "UNDO, alpha 0.6" in text


def requested(*stories: float) -> dict[str, Any]:
    import sequential

    right = {
        f"{story}: {kind}": share
        for story, share in zip(sequential.STORIES, stories, strict=False)
        for kind in ("trained on", "unseen")
    }
    return {"steps": 10, "right": right | dict.fromkeys(sequential.KEPT, 0.5)}


def test_a_request_has_a_new_story_earlier_ones_and_those_to_come() -> None:
    import sequential

    base = {"right": requested(1, 1, 1)["right"]}
    ways = {"alone": [[requested(0.1, 1, 1), requested(0.2, 0.1, 0.8), requested(0.4, 0.2, 0)]]}
    rows = sequential.tables({"stories": sequential.STORIES[:3], "base": base, "ways": ways}).splitlines()[4:]
    assert rows[0] == "| none (base) | 0 |  |  | 100 | 50 | 50 | 50 | 50 |"
    assert rows[1] == "| 1. Amber Gate | 10 | 10 |  | 100 | 50 | 50 | 50 | 50 |"
    assert rows[2] == "| 2. Silver Mill | 10 | 10 | 20 | 80 | 50 | 50 | 50 | 50 |"
    assert rows[3] == "| 3. Hollow Clock | 10 | 0 | 30 |  | 50 | 50 | 50 | 50 |"


def test_what_is_asked_behind_the_requests_was_never_trained_on() -> None:
    import sequential

    shown = {q.text for story in sequential.STORIES for q in sequential.forget_of(story)}
    shown |= {q.text for q in sequential.retain()}
    asked = {one.name: {q.text for q in one.queries} for one in sequential.sets()}
    assert all(texts.isdisjoint(shown) for texts in asked.values())
    assert not any(q.source in sequential.STORIES for q in sequential.retain())
    for name in sequential.KEPT[:2]:
        one = next(one for one in sequential.sets() if one.name == name)
        assert {q.source for q in one.queries}.isdisjoint(sequential.STORIES)


@pytest.mark.parametrize("name", ["undo", "sequential"])
def test_the_page_says_what_was_measured(name: str, tmp_path: Path) -> None:
    benchmark = __import__(name)
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    benchmark.write_page(results, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page
    assert benchmark.tables(results) in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["undo", "sequential"])
def test_it_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n")
    places = ["--work", tmp_path / "work", "--out", tmp_path / "out.json", "--page", tmp_path / "page.md"]
    places += ["--picture", tmp_path / "picture.svg"] if name == "undo" else []
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--tiny", *places]
    first = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert first.returncode == 0, first.stderr
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.stdout == first.stdout  # what is there is read
    assert "seed 0" not in again.stderr or name == "sequential"
