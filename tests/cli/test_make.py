from __future__ import annotations

from pathlib import Path

import pytest

from duet_unlearn.cli import main
from duet_unlearn.cli.make import write_starter
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.query import read_queries
from duet_unlearn.errors import UserError


@pytest.mark.parametrize("model", ["org/model-3B", "lab:base"])
@pytest.mark.parametrize("concept", ["the story Amber Gate", 'the "Blue: {moon}" # books', "Müller\nund Söhne"])
def test_what_is_written_runs_as_it_is(model: str, concept: str, tmp_path: Path) -> None:
    recipe_path, forget, retain = write_starter(model, concept=concept, name=None, folder=tmp_path)
    recipe = load_recipe(recipe_path)
    assert (recipe.concept, recipe.model.path) == (concept, model)
    assert (recipe.data.forget, recipe.data.retain) == (str(forget), str(retain))
    assert len(read_queries(forget)) == len(read_queries(retain)) == 10
    assert all(concept in query.messages[0]["content"] for query in read_queries(forget))
    assert recipe_path.read_text(encoding="utf-8").count("#") > 10


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "moon-retain.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"moon-retain\.jsonl: is there already"):
        write_starter("org/model", concept="the moon", name="moon", folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["moon-retain.jsonl"]


def test_a_concept_without_letters_asks_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gives no file name"):
        write_starter("org/model", concept="???", name=None, folder=tmp_path)


def test_init_writes_here_and_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["init", "org/model", "--concept", "the moon"])
    out, err = capsys.readouterr()
    assert not stop.value.code
    assert out.splitlines() == ["the-moon.yaml", "the-moon-forget.jsonl", "the-moon-retain.jsonl"]
    assert "duet probe" in err
