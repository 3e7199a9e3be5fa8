"""Suite files: what they mean, and what is wrong with them in two lines."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from sweeps import SUITE, write_suite
from workplace import Workplace

from duet_unlearn.config.reading import recipe_names
from duet_unlearn.errors import UserError
from duet_unlearn.sweep import protocol
from duet_unlearn.sweep.protocol import load_suite, suite_names
from duet_unlearn.sweep.tasks import SweepFolder, open_sweep
from duet_unlearn.sweep.workers import check


def failure(workplace: Workplace, text: str) -> UserError:
    """What loading or checking says, which is two lines."""
    path = write_suite(workplace.folder, text)
    with pytest.raises(UserError) as caught:
        check(load_suite(path))
    assert "\n" not in caught.value.message
    assert "\n" not in caught.value.hint
    return caught.value


def test_grids_and_trials_are_written_out(workplace: Workplace) -> None:
    text = SUITE.replace("{train.rate: [1.0e-3, 1.0e-2]}", "{train.rate: [1.0e-3, 1.0e-2], method.k: [5, 7]}")
    text = text.replace(
        "      - {train.rate: 1.0e-3}", "      - {train.rate: 1}\n      - {train: {rate: 2, epochs: 3}}"
    )
    text = text + "      - {train.rate: 4}\n"
    duet, ascent = load_suite(write_suite(workplace.folder, text)).suite.methods
    assert duet.trials == tuple({"train.rate": rate, "method.k": k} for rate in (1e-3, 1e-2) for k in (5, 7))
    assert ascent.trials[1] == {"train.rate": 2, "train.epochs": 3}


def test_a_run_is_its_recipe_changed_by_suite_target_method_trial_and_seed(workplace: Workplace) -> None:
    text = "settings: {train.epochs: 1, train.batch_size: 2, evaluate.max_new_tokens: 3}\n" + SUITE
    text = text.replace("settings: {data.num_forget: 4}", "settings: {data.num_forget: 4, train.batch_size: 3}")
    loaded = load_suite(write_suite(workplace.folder, text))
    ascent, half = loaded.method("ascent"), loaded.suite.test.targets[1]
    recipe = loaded.recipe(ascent, half, ascent.trials[1], seed=7)
    assert (recipe.method.name, recipe.train.rate, recipe.train.epochs) == ("ga", 1e-4, 2)
    assert (recipe.data.num_forget, recipe.train.batch_size, recipe.evaluate.max_new_tokens) == (4, 3, 3)
    assert (recipe.seed, recipe.out) == (7, None)
    assert loaded.recipe(ascent, None, ascent.trials[0], seed=0).train.epochs == 1


def test_paths_are_relative_to_the_suite(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_suite(workplace.folder)
    elsewhere = workplace.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded = load_suite(path)
    recipe = loaded.recipe(loaded.suite.methods[0], None, {}, seed=0)
    assert recipe.evaluate.sets["forget"] == str(workplace.folder / "asked-forget.jsonl")
    assert recipe.data.forget == str(workplace.folder / "forget.jsonl")


def test_a_file_that_gives_no_name_has_its_own(workplace: Workplace) -> None:
    assert load_suite(write_suite(workplace.folder, SUITE.replace("name: tiny\n", ""))).suite.name == "suite"


def test_runs_and_their_folders(workplace: Workplace) -> None:
    sweep = SweepFolder(load_suite(write_suite(workplace.folder)), workplace.folder / "out")
    folders = [task.folder for task in sweep.tasks()]
    assert folders == [
        "reference/base/mira",
        "reference/base/half",
        *(f"tune/{method}/{trial}" for method in ("duet", "ascent") for trial in (0, 1)),
    ]
    assert sweep.num_runs == 2 + 2 * (2 + 2 * 2)  # tests come when settings are chosen
    assert len(sweep.open()) == sweep.num_runs


def line(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "problem", "hint"),
    [
        ("  seed: 3", "  sed: 3", ":3: tune.sed: unknown key", "did you mean tune.seed?"),
        ("name: ascent", "nam: ascent", "methods.1.nam: unknown key", "methods.1.name"),
        ("seeds: [0, 1]", "seeds: [0, x]", ":10: test.seeds.1: is 'x'", "integer"),
        ("seeds: [0, 1]", "seeds: [0, 0]", ":10: test.seeds.1: '0' is there twice", "another"),
        ("seeds: [0, 1]", "seeds: []", ":10: test.seeds: is empty", "at least one"),
        ("name: half", "name: mira", ":9: test.targets.1: 'mira' is there twice", "another"),
        ("name: half", "name: a/b", ":9: test.targets.1: 'a/b' is no name", "letters"),
        ("name: ascent", "name: duet", "methods.1: 'duet' is there twice", "name"),
        ("steps: 2", "steps: 0", ":12: after_tests.relearn.steps: is 0", "greater"),
        ("      - {train.rate: 1.0e-4, train.epochs: 2}\n", "", "ascent has 1 trials, others have 2", "fair"),
        ("train.rate: 1.0e-4, train.epochs: 2", "train.rate: 1.0e-3", "trials 0 and 1 are the same", "else"),
        ("grid: {train.rate: [1.0e-3, 1.0e-2]}", "grid: {}", "duet has no trials", "untuned"),
        ("name: duet,", "name: duet, untuned: so,", "duet is untuned and has trials", "one of the two"),
        ("    trials:", "    grid: {seed: [1]}\n    trials:", "ascent has trials and a grid", "one of the two"),
        ("recipe: recipe.yaml, ", "", "methods.0.recipe: is missing", "docs/sweep.md"),
        ("grid: {train.rate: [1.0e-3", "grid: {train.rat: [1.0e-3", "train.rat: unknown key", "train.rate"),
        ("{method.name: ga}", "{method.name: gaa}", "unknown method 'gaa'", "did you mean"),
        ("train.epochs: 2", "train.epochs: 0", "train.epochs: is 0", "greater"),
        ("recipe: recipe.yaml, ", "recipe: recipes.yaml, ", "recipes.yaml: no such file", "list recipes"),
        ("forget: asked-forget.jsonl", "forget: gone.jsonl", "gone.jsonl: no such file", "relative"),
        ("  seed: 3", "  keep: [near]", "tune.keep names the set 'near', which is not asked", "forget, retain"),
        ("steps: 2", "steps: 2, measure: far", "measure names the set 'far', which is not asked", "forget, retain"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, problem: str, hint: str, workplace: Workplace) -> None:
    assert old in SUITE
    found = failure(workplace, SUITE.replace(old, new))
    assert problem in found.message
    assert hint in found.hint
    if problem.startswith(":"):
        assert found.message.startswith(f"{workplace.folder / 'suite.yaml'}{problem}")


def test_a_trial_that_no_recipe_takes_is_said_with_the_methods_line(workplace: Workplace) -> None:
    text = SUITE.replace("train.rate: 1.0e-4, train.epochs: 2", "train.epoch: 2")
    number = line(text, "- recipe: recipe.yaml")
    assert f"suite.yaml:{number}: train.epoch: unknown key" in failure(workplace, text).message


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "is empty"), ("- a\n", "is no suite"), ("a: [", "is not YAML"), ("name: x\n", "is missing")],
)
def test_a_file_that_is_no_suite(text: str, problem: str, workplace: Workplace) -> None:
    assert problem in failure(workplace, text).message


def test_relearning_needs_answers(workplace: Workplace) -> None:
    rows = [{"question": f"Who is Mira {number}?"} for number in range(4)]
    workplace.forget.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = SUITE[: SUITE.index("  - recipe: recipe.yaml")]  # ascent needs answers itself
    assert "relearning needs both" in failure(workplace, text).message
    without = text.replace("after_tests:\n  relearn: {steps: 2, rates: [1.0e-3, 1.0e-2]}\n", "")
    check(load_suite(write_suite(workplace.folder, without)))


def test_a_name_that_is_no_suites(workplace: Workplace) -> None:
    with pytest.raises(UserError, match="no suite is called 'lab-smok'") as caught:
        load_suite("lab-smok")
    assert caught.value.hint == "did you mean lab-smoke?"


def test_a_sweep_goes_on_with_more_methods_but_with_no_other_protocol(workplace: Workplace) -> None:
    out = workplace.folder / "out"
    open_sweep(load_suite(write_suite(workplace.folder)), out)
    ascent = SUITE.index("  - recipe: recipe.yaml")
    open_sweep(load_suite(write_suite(workplace.folder, SUITE[:ascent])), out)  # fewer
    more = SUITE + "  - {recipe: recipe.yaml, name: third, untuned: nothing to tune}\n"
    open_sweep(load_suite(write_suite(workplace.folder, more)), out)
    open_sweep(load_suite(write_suite(workplace.folder, more.replace("train.epochs: 2", "train.epochs: 4"))), out)
    open_sweep(load_suite(write_suite(workplace.folder, more)), out)  # it has no run yet
    (out / "tune/ascent/0").mkdir(parents=True)
    for old, new, key in (
        ("seeds: [0, 1]", "seeds: [0, 2]", "test"),
        ("train.epochs: 2", "train.epochs: 3", "methods: ascent"),
        ("  seed: 3", "  seed: 4", "tune"),
    ):
        with pytest.raises(UserError, match=f"begun with another suite: {key} differs"):
            open_sweep(load_suite(write_suite(workplace.folder, more.replace(old, new))), out)


def test_a_folder_of_something_else_is_refused(workplace: Workplace) -> None:
    with pytest.raises(UserError, match="is no sweep's folder"):
        open_sweep(load_suite(write_suite(workplace.folder)), workplace.folder)
    with pytest.raises(UserError, match="is no sweep's folder"):
        open_sweep(load_suite(write_suite(workplace.folder)), workplace.forget)


@pytest.mark.parametrize("name", suite_names())
def test_packaged_suites_pass_every_check_that_a_sweep_begins_with(name: str) -> None:
    loaded = load_suite(name)
    check(loaded)
    assert loaded.suite.name == name
    targets = {recipe.data.forget for recipe in (loaded.recipe(loaded.suite.methods[0], None, {}, seed=0),)}
    tests = {
        loaded.recipe(loaded.suite.methods[0], target, {}, seed=0).data.forget for target in loaded.suite.test.targets
    }
    assert not targets & tests


def test_the_page_describes_every_key_and_its_example_is_a_suite(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/sweep.md").read_text(encoding="utf-8")
    described = {word.split(".")[-1] for line in page.splitlines() if line.startswith("| `") for word in ticked(line)}
    kinds = ("Suite", "Tuning", "Testing", "SweepMethod", "Relearning", "Expected")
    for kind in (getattr(protocol, name) for name in kinds):
        sections = {"tune", "test", "after_tests", "expect"}
        assert {field.name for field in fields(kind)} - sections <= described, kind
    (tmp_path / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert load_suite(tmp_path / "mine.yaml").num_trials == 6


def ticked(line: str) -> list[str]:
    """What the first cell of a table's line has in backticks."""
    return re.findall("`([^`]+)`", line.split("|")[1])


def test_the_labs_suite_compares_every_method_of_the_lab() -> None:
    compared = {method.recipe for method in load_suite("lab").suite.methods}
    assert compared >= {name for name in recipe_names() if name.startswith("lab/methods/")}
