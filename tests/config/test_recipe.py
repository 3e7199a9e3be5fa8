from __future__ import annotations

from pathlib import Path

import pytest

from duet_unlearn.config.reading import about, differing_key, dump_recipe, load_recipe, recipe_names
from duet_unlearn.config.recipe import recipe_hash
from duet_unlearn.errors import UserError

SMALL = """\
# a small recipe
concept: the moon
model: {path: lab:base}
data:
  forget: forget.jsonl
method:
  name: duet
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def failure(path: str | Path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in caught.value.message
    assert "\n" not in caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads_survives_a_round_trip_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert recipe.name == name
    assert recipe_hash(again) == recipe_hash(recipe)
    assert len(about(name)) > 20


def test_the_lab_preset_is_the_papers() -> None:
    recipe = load_recipe("lab/duet")
    assert (recipe.method.name, recipe.method.positions, recipe.method.delta) == ("duet", 1, 1.0)
    assert (recipe.method.retain_prefix, recipe.method.retain_loss) == ("same", "same")
    assert recipe.train.batch_size == 16
    assert recipe.prefix.text.startswith("You have forgotten {concept}.")
    assert recipe.concept == "the story Amber Gate"


def test_prefix_wordings_are_train_wordings() -> None:
    wordings = pytest.importorskip("duet_unlearn.lab.language")
    pools = {
        "lab/duet": wordings.SPECIFIC,
        "lab/ablation/prefix-vague": wordings.VAGUE,
        "lab/ablation/prefix-refuse-all": wordings.REFUSE_ALL,
        "lab/ablation/prefix-irrelevant": wordings.IRRELEVANT,
    }
    for name, pool in pools.items():
        assert load_recipe(name).prefix.text.replace("{concept}", "{x}") in pool.train


def test_a_child_inherits_all_but_the_name_and_changes_single_keys(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "  k: 7\n  delta: 2\n", "parent.yaml")
    child = load_recipe(write(tmp_path, "base: parent.yaml\nmethod:\n  k: 9\n"))
    assert (child.name, child.concept, child.method.k, child.method.delta) == ("mine", "the moon", 9, 2.0)


def test_a_packaged_recipe_can_be_the_base(tmp_path: Path) -> None:
    child = load_recipe(write(tmp_path, "base: lab/duet\nseed: 3\n"))
    assert child.seed == 3
    assert differing_key(child, load_recipe("lab/duet")) == "seed"


def test_paths_are_relative_to_the_file_that_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, elsewhere = tmp_path / "inner", tmp_path / "elsewhere"
    inner.mkdir()
    elsewhere.mkdir()
    write(inner, SMALL, "parent.yaml")
    child = write(tmp_path, "base: inner/parent.yaml\ndata: {retain: retain.jsonl}\n")
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(child, ["evaluate.sets.mine=set.jsonl"])
    assert recipe.data.forget == str(inner / "forget.jsonl")
    assert recipe.data.retain == str(tmp_path / "retain.jsonl")
    assert recipe.evaluate.sets == {"mine": str(elsewhere / "set.jsonl")}
    assert recipe.model.path == "lab:base"


def test_a_hub_id_stays_and_a_folder_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = write(tmp_path, SMALL.replace("lab:base", "org/name"))
    assert load_recipe(path).model.path == "org/name"
    path = write(tmp_path, SMALL.replace("lab:base", "model"))
    assert load_recipe(path).model.path == str(tmp_path / "model")


def test_set_reads_yaml_values() -> None:
    recipe = load_recipe("lab/duet", ["method.k=null", "train.rate=1e-5", "model.lora.rank=4", "prefix.turn=system"])
    assert recipe.method.k is None
    assert recipe.train.rate == 1e-5
    assert recipe.model.lora is not None
    assert recipe.model.lora.rank == 4
    assert recipe.prefix.turn == "system"


def test_the_hash_is_of_what_decides_the_result() -> None:
    plain = load_recipe("lab/duet")
    assert recipe_hash(plain) == recipe_hash(load_recipe("lab/duet", ["name=other", "out=elsewhere"]))
    assert recipe_hash(plain) != recipe_hash(load_recipe("lab/duet", ["seed=1"]))


def test_an_unknown_key_names_itself_the_nearest_and_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "train:\n  epoch: 3\n")
    error = failure(path)
    assert error.message == f"{path}:9: train.epoch: unknown key"
    assert error.hint == "did you mean train.epochs?"


def test_an_unknown_key_of_a_parent_names_the_parents_line(tmp_path: Path) -> None:
    parent = write(tmp_path, "concpt: x\n" + SMALL, "parent.yaml")
    error = failure(write(tmp_path, "base: parent.yaml\nseed: 1\n"))
    assert error.message == f"{parent}:1: concpt: unknown key"
    assert "did you mean concept?" in error.hint


def test_a_key_with_nothing_near_lists_the_keys() -> None:
    assert "batch_size" in failure("lab/duet", "train.zzzzz=1").hint


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("train.epoch=3", "--set: train.epoch: unknown key", "did you mean train.epochs?"),
        ("method.name=duett", "--set: method.name: unknown method 'duett'", "did you mean duet?"),
        ("method.kk=3", "--set: method.kk: unknown key", "did you mean method.k?"),
        ("train.rate=0", "--set: train.rate: is 0", "it should be greater than 0"),
        ("method.k=0", "--set: method.k: is 0; it must be at least 1", "docs/methods.md"),
        ("seed=x", "--set: seed: is 'x'", "integer"),
        ("concept=1984", "--set: concept: is 1984, not text", "put it into quotes: '1984'"),
        ("train=3", "--set: train: is 3, not a section", "key: value"),
        ("method=duet", "--set: method: is missing or no section", "duet"),
        ("prefix.turn=both", "--set: prefix.turn: is 'both'", "'system' or 'user'"),
        ("train.epochs", "--set train.epochs: is no setting", "a.b=value"),
        (
            "evaluate.benchmarks=[mmlu, tofu-forget1]",
            "--set: evaluate.benchmarks.1: is 'tofu-forget1'",
            "did you mean tofu",
        ),
        ("evaluate.benchmarks=[mmlu, mmlu]", "--set: evaluate.benchmarks: names mmlu twice", "docs/methods.md"),
        ("concept=[", "--set concept=[: the value is not YAML", "quotes"),
    ],
)
def test_a_bad_override_is_two_clear_lines(override: str, message: str, hint: str) -> None:
    error = failure("lab/duet", override)
    assert error.message == message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is empty"),
        ("# nothing but a comment\n", ": is empty"),
        ("concept: [a\nmodel: b\n", ":2: is not YAML"),
        ("- a\n- b\n", ":1: is no recipe"),
        (SMALL.replace("concept: the moon\n", ""), ": concept: is missing"),
        (SMALL.replace("  name: duet", "  k: 3"), ":6: method.name: is missing"),
        ("base: lab/due\n", ":1: no recipe 'lab/due' for base"),
        ("base: 3\n", ":1: base is no text"),
    ],
)
def test_a_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert f"{path}{message}" in failure(path).message


def test_bases_in_a_circle_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, "base: mine.yaml\n", "other.yaml")
    assert "each other's base" in failure(write(tmp_path, "base: other.yaml\n")).message


def test_missing_files_folders_and_unknown_names(tmp_path: Path) -> None:
    assert "no such file" in failure(tmp_path / "none.yaml").message
    assert "is a folder" in failure(tmp_path).message
    assert failure("lab/duett").hint == "did you mean lab/duet?"


def test_a_recipe_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in failure(path).message


@pytest.mark.parametrize(
    ("setting", "problem", "hint"),
    [
        ("concept=", "concept: is empty", "write a text"),
        ("concept=Harry: the books", "concept: is {'Harry': 'the books'}, not text", "quote the text for YAML too"),
        ("concept=7", "concept: is 7, not text", "put it into quotes: '7'"),
    ],
)
def test_a_setting_that_yaml_does_not_read_as_text(setting: str, problem: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("lab/duet", [setting])
    assert problem in caught.value.message
    assert hint in caught.value.hint


def test_a_key_of_an_earlier_version_is_read_under_its_new_name(caplog: pytest.LogCaptureFixture) -> None:
    """With a note, and with the hash that it had; the folders of old runs spell it out as null, which needs no note."""
    today = load_recipe("lab/methods/bidirectional")
    assert today.data.response_prefixes == "lab:openers"
    assert "openers" not in dump_recipe(today).replace("lab:openers", "")
    old = load_recipe("lab/methods/bidirectional", ["data.openers=lab:openers", "data.response_prefixes=null"])
    assert old.data.response_prefixes is None  # the later wins, whatever it is called
    assert "data.openers is called data.response_prefixes now" in caplog.text
    caplog.clear()
    assert load_recipe("lab/duet", ["data.openers=null"]) == load_recipe("lab/duet")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "began"),
    [
        ("lab/methods/bidirectional", "4c9f66b8d0f1067b"),
        ("lab/duet", "a857f0062e7c0431"),
        ("lab/robust", "de210d9dca2fae28"),
        ("lab/methods/whp", "ebc6ce635fc13ced"),
    ],
)
def test_the_hash_of_a_recipe_is_the_one_by_which_its_runs_began(name: str, began: str) -> None:
    """Renamed keys are hashed by their old names; who changes a packaged recipe's values writes its new hash here."""
    assert recipe_hash(load_recipe(name))[:16] == began
