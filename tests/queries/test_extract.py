"""The whole way from a corpus to query files: with a real server, and with the lab's model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serving
from workplace import Done

from duet_unlearn.data.query import read_queries
from duet_unlearn.errors import UserError
from duet_unlearn.lab.language import QUESTIONS, question, statement
from duet_unlearn.lab.questions import split_facts
from duet_unlearn.queries import Coverage, ExtractConfig, extract_queries
from duet_unlearn.queries.extract import general_questions
from duet_unlearn.queries.selection import alike, says_any

PEOPLE = ("Mira Bol", "Oda Fenn", "Ulm Gorse", "Dava Holt")
CORPUS = "\n\n".join(f"{name} lives in Tarn. {name} keeps an owl, a cat and a mouse." for name in PEOPLE)
LAB = ("Write a question about this: {passage}", "Ask something about this line: {passage}")


def says(prompt: str) -> str:
    """A model that follows instructions, after a fashion: it adds a remark, and one question that is off."""
    if found := re.search(r"Question: (.*)$", prompt):
        if prompt.startswith("Is this question"):
            return "No." if "mouse" in found[1] else "Yes."
        return f"- Say, {found[1][0].lower()}{found[1][1:]}\n- {found[1]}"
    if prompt.startswith("Write 10"):
        return "1. Who discovered penicillin?\n2. Where does Mira Bol live?\n3. Who wrote the Odyssey?"
    passage = prompt.rpartition("Passage:\n")[2]
    if "secret" in passage:
        return "NONE"
    name = " ".join(passage.split()[:2])
    asked = (
        f"Where does {name} live?",
        f"What does {name} keep?",
        f"Does {name} keep a mouse?",
        "Who is Harry Potter?",
    )
    return "\n".join(["Here are the questions:", *(f"{number}. {text}" for number, text in enumerate(asked, 1))])


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(CORPUS, encoding="utf-8")
    return path


def extract(
    corpus: Path, server: Server, *, out: str = "q.jsonl", concept: str | None = "the story Amber Gate", **settings: Any
) -> Coverage:
    config = ExtractConfig(**({"count": 8, "chunk": 70} | settings))
    return extract_queries(
        corpus, concept=concept, model="mini", out=corpus.parent / out, server=server.address, config=config
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_queries_are_even_over_the_chunks_and_know_their_place(corpus: Path) -> None:
    with serving(says) as server:
        coverage = extract(corpus, server)
    found = rows(corpus.with_name("q.jsonl"))
    assert Counter(row["source"] for row in found) == dict.fromkeys((row["source"] for row in found), 2)
    for row in found:
        span = row["span"]
        assert row["source"] == f"book.txt:{span['start']}-{span['end']}"
        passage = CORPUS[span["start"] : span["end"]]
        assert " ".join(row["messages"][0]["content"].split()[2:4]).rstrip("?") in passage
        assert CORPUS.splitlines()[span["lines"][0] - 1] == passage
    assert [query.id for query in read_queries(corpus.with_name("q.jsonl"))] == [row["id"] for row in found]
    assert (coverage.kept, coverage.chunks, coverage.asked, coverage.covered, coverage.uncovered) == (8, 4, 4, 4, ())
    assert coverage.dropped == {"no question": 4, "a name that is not in the corpus": 4}
    assert (coverage.covered_characters, coverage.unused) == (1.0, 4)
    assert not corpus.with_name("q.jsonl.part").exists()


def test_the_model_may_say_what_is_off_the_concept_and_which_chunk_is_silent(corpus: Path) -> None:
    corpus.write_text(
        f"{CORPUS}\n\nThe secret of Tarn is kept by nobody at all, so they say in town.", encoding="utf-8"
    )
    with serving(says) as server:
        coverage = extract(corpus, server, check="model", count=20)
    assert coverage.kept == 8
    assert coverage.dropped["off the concept, says the model"] == 4
    assert (coverage.silent, len(coverage.uncovered), coverage.chunks) == (1, 1, 5)
    assert sum("secret" in prompt for prompt in server.prompts) == 1  # it is not asked again


def test_what_was_stopped_goes_on_and_ends_the_same(corpus: Path) -> None:
    with serving(says) as server:
        extract(corpus, server, out="whole.jsonl", paraphrases=1)
        count = len(server.asked)
    with serving(says) as server:
        server.troubles = [None, None, None, None, 401, 401, 401, 401, 401, 401, 401, 401]
        with pytest.raises(UserError, match="status 401"):
            extract(corpus, server, paraphrases=1)
        assert sorted(path.name for path in corpus.parent.glob("q.*")) == ["q.jsonl.part"]
        part = corpus.with_name("q.jsonl.part")
        part.write_bytes(part.read_bytes() + b'{"torn": "li')
        server.troubles, server.asked = [], []
        # The address is another one: another server, another answer.
        settings = json.loads(part.read_text("utf-8").split("\n")[0])
        assert settings["server"] == server.address
        extract(corpus, server, paraphrases=1)
        assert len(server.asked) == count - 4
    for name in ("jsonl", "paraphrases.jsonl"):
        assert corpus.with_name(f"q.{name}").read_text("utf-8") == corpus.with_name(f"whole.{name}").read_text("utf-8")


def test_another_commands_notes_and_files_are_never_written_over(corpus: Path) -> None:
    with serving(says) as server:
        server.troubles = [401] * 4
        with pytest.raises(UserError, match="status 401"):
            extract(corpus, server)
        assert not corpus.with_name("q.jsonl.part").exists()
        server.troubles = [None] * 4 + [401] * 4
        with pytest.raises(UserError, match="status 401"):
            extract(corpus, server, paraphrases=1)
        with pytest.raises(UserError, match="was begun with another seed"):
            extract(corpus, server, seed=1)
        server.troubles = []
        extract(corpus, server)
        with pytest.raises(UserError, match="is there already"):
            extract(corpus, server)


def test_retain_queries_name_nothing_of_the_concept(corpus: Path) -> None:
    with serving(says) as server:
        coverage = extract(corpus, server, retain=20)
    found = read_queries(corpus.with_name("q.retain.jsonl"))
    texts = [query.text for query in found]
    assert texts[:2] == ["Who discovered penicillin?", "Who wrote the Odyssey?"]
    assert (coverage.neighbours, coverage.general, len(found)) == (2, 18, 20)
    assert Counter(query.source for query in found) == {"neighbour": 2, "general": 18}
    assert not any("Mira" in text for text in texts)


def test_general_questions_are_varied_and_blocked_by_name() -> None:
    pool = general_questions()
    assert len(pool) >= 120
    assert max(alike(one, other) for i, one in enumerate(pool) for other in pool[:i]) < 0.75
    assert all(text.endswith("?") for text in pool)
    assert sum(says_any(text, {("moon",)}) for text in pool) == 2


def test_paraphrases_point_to_their_originals(corpus: Path) -> None:
    with serving(says) as server:
        extract(corpus, server, paraphrases=1)
    originals = {query.id: query for query in read_queries(corpus.with_name("q.jsonl"))}
    reworded = read_queries(corpus.with_name("q.paraphrases.jsonl"))
    assert len(reworded) == len(originals)
    for query in reworded:
        original = originals[query.id.removesuffix("/paraphrase-1")]
        assert query.source == original.source
        assert query.text.lower() == f"say, {original.text.lower()}"


def test_a_file_that_would_be_empty_is_not_written(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    def mute(prompt: str) -> str:
        return "" if prompt.startswith("Ask the same") else says(prompt)

    with serving(mute) as server:
        coverage = extract(corpus, server, paraphrases=2)
    assert set(coverage.files) == {"forget"}
    assert "no usable paraphrases" in caplog.text
    assert not corpus.with_name("q.paraphrases.jsonl").exists()


def test_requests_share_the_queries_and_keep_their_concepts(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    texts = [("r-1", "Mira Bol", f"Mira Bol lives in Tarn{number}. She keeps an owl.") for number in range(6)]
    texts += [("r-2", "Oda Fenn", "Oda Fenn lives in Gosh. She keeps a cat.")]
    path.write_text("".join(json.dumps({"request": r, "concept": c, "text": t}) + "\n" for r, c, t in texts), "utf-8")
    with serving(says) as server:
        coverage = extract(path, server, concept=None, count=4, chunk=200)
    found = read_queries(tmp_path / "q.jsonl")
    assert Counter((query.request, query.concept) for query in found) == {
        ("r-1", "Mira Bol"): 2,
        ("r-2", "Oda Fenn"): 2,
    }
    assert coverage.requests == {"r-1": 2, "r-2": 2}
    with serving(says) as server, pytest.raises(UserError, match="1 queries are too few for 2 requests"):
        extract(path, server, out="o.jsonl", concept=None, count=1)


def test_nothing_is_left_where_nothing_can_come_of_it(tmp_path: Path, corpus: Path) -> None:
    with serving(lambda prompt: "I would rather not.") as server:
        with pytest.raises(UserError, match=r"no usable question about the story Amber Gate \(4 no question\)"):
            extract(corpus, server)
        with pytest.raises(UserError, match="queries are written as JSONL"):
            extract(corpus, server, out="q.csv")
        with pytest.raises(UserError, match="has no concept"):
            extract(corpus, server, concept=None)
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="holds no text"):
            extract(tmp_path / "empty", server)
    with pytest.raises(UserError, match=r"has no \{passage\}"):
        ExtractConfig(instructions=("Write a question",))
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == []


def test_the_command_prints_the_coverage(corpus: Path, duet: Callable[..., Done]) -> None:
    out = corpus.with_name("q.jsonl")
    with serving(says) as server:
        how = ("--model", "mini", "--server", server.address, "--out", out, "--count", 8, "--chunk", 70)
        done = duet("queries", corpus, *how, "--concept", "the story Amber Gate")
        assert done.code == 0, done.err
        assert "8 of 8 requested" in done.out
        assert "4 of 4, 100 % of the text" in done.out
        assert "ask: 4/4" in done.err
        out.unlink()
        again = duet("queries", corpus, *how, "--concept", "the story Amber Gate", "--retain", 4, "--json")
    assert json.loads(again.out)["general"] == 2
    gone = duet("queries", corpus, *how[:4], "--out", corpus.with_name("r.jsonl"), "--concept", "x")
    assert gone.code == 1
    assert gone.err.splitlines()[-2].startswith(f"error: {server.address}: no server answers there")
    assert gone.err.splitlines()[-1].startswith("hint: start it")


def lab_corpus(path: Path, *, count: int | None = None) -> set[str]:
    """A story's sentences as prose, without its unseen facts; returns every question of the lab about them."""
    splits = split_facts("Silver Mill")
    facts = [*splits["train"], *splits["validation"]][:count]
    path.write_text(" ".join(map(statement, facts)), encoding="utf-8")
    return {question(fact, wording) for fact in facts for wording in QUESTIONS[fact.attribute].all}


def test_the_labs_model_writes_questions_and_a_stop_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = lab_corpus(tmp_path / "story.txt", count=4)
    config = ExtractConfig(count=8, chunk=1, instructions=LAB[:1], max_new_tokens=24)
    how: dict[str, Any] = {"concept": "the story Silver Mill", "model": "lab:base", "config": config}
    coverage = extract_queries(tmp_path / "story.txt", out=tmp_path / "one.jsonl", **how)
    texts = [query.text for query in read_queries(tmp_path / "one.jsonl")]
    assert (coverage.kept, coverage.covered) == (8, 4)
    assert sum(text in known for text in texts) >= 7

    from duet_unlearn.queries.writers import LocalWriter

    write, calls = LocalWriter.write, Counter[str]()

    def killed(self: LocalWriter, prompts: list[str], **settings: Any) -> list[str]:
        calls["asked"] += 1
        if calls["asked"] == 3:
            raise KeyboardInterrupt
        return write(self, prompts, **settings)

    monkeypatch.setattr(LocalWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_queries(tmp_path / "story.txt", out=tmp_path / "two.jsonl", **how)
    assert not (tmp_path / "two.jsonl").exists()
    extract_queries(tmp_path / "story.txt", out=tmp_path / "two.jsonl", **how)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.slow
def test_the_lab_corpus_gives_100_usable_queries(tmp_path: Path) -> None:
    known = lab_corpus(tmp_path / "story.txt")
    config = ExtractConfig(chunk=1, instructions=LAB, passes=30, max_new_tokens=24)
    how: dict[str, Any] = {"concept": "the story Silver Mill", "model": "lab:base", "config": config}
    coverage = extract_queries(tmp_path / "story.txt", out=tmp_path / "q.jsonl", **how)
    texts = [query.text for query in read_queries(tmp_path / "q.jsonl")]
    assert (coverage.kept, len(set(texts)), coverage.covered) == (100, 100, 35)
    assert sum(text in known for text in texts) >= 95
