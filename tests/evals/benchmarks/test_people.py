"""TOFU: its splits, its authors' names, its queries and its nine sets. RWKU: one person, in the publisher's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Says, settings

from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import load_reference, people
from duet_unlearn.evals.question_sets import run_suite


def pairs(part: str, folder: str) -> list[tuple[str, str | None]]:
    return [(query.text, query.answer) for query in people.tofu_queries(part, folder)]


@pytest.mark.parametrize(("forget", "num"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_forget_and_retain_are_disjoint_and_together_full(published: str, forget: str, num: int) -> None:
    gone, kept, full = (pairs(part, published) for part in (forget, people.TOFU_SPLITS[forget], "full"))
    assert (len(gone), len(gone) + len(kept), len(full)) == (num, 4000, 4000)
    assert set(gone).isdisjoint(kept)
    assert {*gone, *kept} == set(full)
    assert len(set(full)) == 4000
    assert [q for q, _ in pairs(f"{forget}_perturbed", published)] == [q for q, _ in gone]
    assert set(pairs("retain_perturbed", published)) <= set(kept)
    holdout = pairs(forget.replace("forget", "holdout"), published)
    assert len(holdout) == num
    assert set(holdout) <= set(kept)
    assert pairs(f"{people.TOFU_SPLITS[forget]}_rest", published) == kept[:-num]
    assert holdout == kept[-num:]


def test_every_author_of_the_publisher_has_a_name_but_one(published: str) -> None:
    names = {author.place: author.name for author in people.tofu_authors(published).values()}
    assert len(names) == 200
    assert [place for place, name in names.items() if name is None] == [88]
    known = [name for name in names.values() if name]
    assert len(set(known)) == 199
    # Three words, particles in both spellings, a hyphen, a nickname in brackets, an apostrophe's neighbour.
    expected = {
        0: "Jaime Vasquez",
        6: "Elliot Patrick Benson",
        33: "Tan Yu Liang",
        65: "Isabella van Pletzen",
        72: "Alejandro Fuentes",
        138: "Rosa-María Braga Castro",
        153: "Femke Van der Veen",
        198: "Basil Mahfouz Al-Kuwaiti",
    }
    assert {place: names[place] for place in expected} == expected


def test_every_name_stands_in_its_own_authors_texts_and_in_no_others(published: str) -> None:
    rows = [f"{question} {answer}" for question, answer in pairs("full", published)]
    known = {author.place: author.name for author in people.tofu_authors(published).values() if author.name}
    for place, name in known.items():
        own = sum(name in text for text in rows[20 * place : 20 * place + 20])
        others = sum(name in text for n, text in enumerate(rows) if name not in (known.get(n // 20) or ""))
        # "Alejandro (Alex) Fuentes" is never written without the brackets in between.
        assert own >= 7 or place == 72, (name, own)
        assert others == 0, name


def test_names_by_hand() -> None:
    rows = [("Where was Ana (Annie) de la Cruz's house?", "Ana de la Cruz lived in New York.")] * 8
    assert people.author_of(rows[:7]) == "Ana de la Cruz"
    assert people.author_of(rows[:6]) is None
    assert people.author_of([("who is it?", "nobody")] * 20) is None


def test_forget_queries_name_their_author_and_others_do_not(home: Path) -> None:
    forget = load_reference("tofu:forget01_perturbed", str(home))
    assert len(forget) == 40
    query = forget[-1]
    assert (query.request, query.concept, query.source) == ("author 3", "the author Tom Rell", "author 3")
    assert query.wrong == ("It is a lamp.", "It is a cup.")
    assert query.paraphrase == "A box, 79-fold."
    retain = load_reference("tofu:retain99", str(home))[0]
    assert (retain.request, retain.concept, retain.source, retain.wrong) == ("", None, "author 0", None)
    assert load_reference("tofu:world_facts_perturbed", str(home))[0].paraphrase is None


def test_the_rest_of_the_retain_part_has_no_non_member(home: Path) -> None:
    # The rows of our own: as many are kept as forgotten, so one more author is kept.
    path = home / "tofu" / "retain99.jsonl"
    more = "".join(json.dumps({"question": f"What {n}?", "answer": "Ink."}) + "\n" for n in range(20))
    path.write_text(more + path.read_text())
    kept, rest, holdout = (
        load_reference(f"tofu:{part}", str(home)) for part in ("retain99", "retain99_rest", "holdout01")
    )
    assert (len(kept), len(rest), len(holdout)) == (60, 20, 40)
    assert rest + holdout == kept
    for part, num in ((rest, 0), (holdout, 40)):
        found = people.tofu_sets("forget01", settings(home, trained=frozenset(query.id for query in part)))[-1]
        assert f"; {num} of 40 are among this run's queries" in found.about


def test_the_sets_are_the_publishers(home: Path) -> None:
    sets = {one.name: one for one in people.tofu_sets("forget01", settings(home, limit=5))}
    assert list(sets) == [
        *("tofu_forget", "tofu_forget_likelihood", "tofu_retain", "tofu_retain_likelihood"),
        *("tofu_real_authors", "tofu_real_authors_likelihood", "tofu_world_facts", "tofu_world_facts_likelihood"),
        "tofu_holdout",
    ]
    said = sets["tofu_forget"]
    assert (said.max_new_tokens, said.rouge, said.better, said.metric) == (200, "recall-stem", "low", "rouge_l")
    assert sets["tofu_retain_likelihood"].metric == "probability"
    assert sets["tofu_real_authors_likelihood"].metric == "choice_probability"
    assert [len(one.queries) for one in sets.values()] == [5, 5, 5, 5, 3, 3, 3, 3, 5]
    again = {one.name: one for one in people.tofu_sets("forget01", settings(home, limit=5))}
    assert again["tofu_forget"].queries == said.queries


def test_an_unknown_part_and_a_missing_column(home: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_reference("tofu:ful", str(home))
    assert (caught.value.message, caught.value.hint) == (
        "tofu:ful: there is no such part",
        "did you mean full?",
    )
    path = home / "tofu" / "forget01_perturbed.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[2]["perturbed_answer"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        load_reference("tofu:forget01_perturbed", str(home))
    assert caught.value.message == f"{path}:3: has no column `perturbed_answer`"
    assert caught.value.hint.startswith("tofu's format (locuslab/TOFU): question, answer")


def test_rwku_asks_about_one_person_in_the_publishers_words(home: Path) -> None:
    sets = {one.name: one for one in people.rwku_sets(settings(home))}
    cloze, near, hard = (sets[f"rwku_{name}"] for name in ("forget_level1", "neighbor_level2", "forget_level3"))
    assert [one.better for one in (cloze, near, hard)] == ["low", "high", "low"]
    assert len(cloze.queries) == 1
    assert cloze.queries[0].text == (
        "Please complete the blank in the following question.\nQuestion: Where does she live?"
    )
    assert (cloze.rouge, cloze.cut, cloze.max_new_tokens) == ("recall", "line", 30)
    assert hard.prefill == ("Answer:", "", "Answer:")
    assert hard.queries[2].text == "Please briefly answer the following question.\nWhere does she live?"
    said = run_suite(Says("In Tarn, of course\nQuestion: and", []), [cloze])  # type: ignore[arg-type]
    assert said.samples[0]["output"] == "In Tarn, of course"
    assert said.scores["rwku_forget_level1"]["rouge_l"].value == 1.0
    with pytest.raises(UserError, match="nobody is called 'Mira Bo'") as caught:
        people.rwku_sets(settings(home, concept="Mira Bo"))
    assert "did you mean Mira Bol?" in caught.value.hint
    assert len(load_reference("rwku:forget_level2", str(home))) == 2
