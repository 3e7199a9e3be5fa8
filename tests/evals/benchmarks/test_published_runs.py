"""Whole runs on benchmarks: a tiny model with an oracle, all numbers there, and the same from what is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rows import write_all
from tiny import llama, tokenizer
from workplace import Done

from duet_unlearn import UserError, evaluate, load_recipe, unlearn
from duet_unlearn.cli.measure import METRICS
from duet_unlearn.evals.question_sets import score_samples
from duet_unlearn.job import load_job
from duet_unlearn.models.load import save_model
from duet_unlearn.runs import Run
from duet_unlearn.stats import Score

RECIPE = """concept: the authors of forget01
model: {{path: {model}, oracle: {oracle}}}
data: {{forget: "tofu:forget01", retain: "tofu:holdout01", num_forget: 4, folder: {folder}}}
method: {{name: duet, k: 20}}
train: {{epochs: 1, rate: 1.0e-3, batch_size: 16}}
evaluate:
  sets: {{{sets}}}
  benchmarks: [{benchmarks}]
  limit: 2
  shots: 0
  max_new_tokens: 4
"""
SETS = ("tofu_forget", "tofu_retain", "tofu_real_authors", "tofu_world_facts")
LIKELIHOOD = ("probability", "exact_memorisation", "extraction_strength")
TRUTH = ("truth_ratio", "truth_ratio_paper", "truth_ratio_prob")
AUCS = ("auc_min_k", "auc_min_k_plus_plus", "auc_loss", "auc_zlib")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random models of two layers that read 4,096 tokens: a base and an oracle."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("model", "oracle")):
        model = llama(seed=seed, hidden=32, layers=2)
        model.config.max_position_embeddings = 4096
        save_model(model, tokenizer(), folder / name)
    return {name: folder / name for name in ("model", "oracle")}


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    """Eight new tokens where TOFU and MUSE prescribe 200 and 128: a random model says nothing with more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("duet_unlearn.evals.benchmarks.people.TOFU_ANSWER_TOKENS", 8)
        patch.setattr("duet_unlearn.evals.benchmarks.books.PASSAGE_TOKENS", 8)
        yield


def write_recipe(place: Path, models: dict[str, Path], folder: str, benchmarks: str, *, sets: str = "") -> Path:
    path = place / "recipe.yaml"
    path.write_text(RECIPE.format(**models, folder=folder, benchmarks=benchmarks, sets=sets))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Run:
    """A run on rows of our own, with a set of the recipe's own."""
    place = tmp_path_factory.mktemp("run")
    write_all(place)
    names = "tofu-forget01, muse-books, wmdp-bio, mmlu, xstest, potter"
    sets = 'near_asked: "tofu:world_facts_perturbed"'
    return unlearn(load_recipe(write_recipe(place, models, str(place), names, sets=sets)), out=place / "run")


def scores_of(run: Run, subject: str) -> dict[str, dict[str, Any]]:
    return json.loads((run.evals / f"{subject}.json").read_text())["scores"]


def check_tofu(scores: dict[str, dict[str, Any]]) -> None:
    """Every metric is there, a number between 0 and 1 with its n."""
    for name in SETS:
        assert 0 <= scores[name]["rouge_l"]["value"] <= 1, name
        likelihood = scores[f"{name}_likelihood"]
        wanted = {*LIKELIHOOD, *TRUTH} | (set() if name in SETS[:2] else {"choice_probability"})
        assert likelihood.keys() == wanted, name
        assert all(0 <= score["value"] <= 1 and score["n"] > 0 for score in likelihood.values()), likelihood
    assert scores["tofu_membership"].keys() == {"auc_gap", *AUCS}
    for name in ("tofu_membership", "tofu_utility", "tofu_forget_quality"):
        shares = [score for metric, score in scores[name].items() if metric != "auc_gap"]
        assert all(0 <= score["value"] <= 1 and score["n"] > 0 for score in shares), name


def test_all_of_tofu_is_measured_on_every_subject(done: Run) -> None:
    for subject in ("base", "prefix", "oracle", "student"):
        check_tofu(scores_of(done, subject))
    oracle = scores_of(done, "oracle")
    assert oracle["tofu_forget_quality"]["forget_quality"]["value"] == 1.0
    own = scores_of(done, "student")["tofu_membership"]
    away = own["auc_min_k"]["value"] - oracle["tofu_membership"]["auc_min_k"]["value"]
    assert own["auc_gap"]["value"] == pytest.approx(away)
    assert oracle["tofu_membership"]["auc_gap"]["value"] == 0
    # PrivLeak: 0 for the oracle itself, n/a by rule where nothing lies above the oracle's AUC.
    area = oracle["tofu_membership"]["auc_min_k"]["value"]
    assert oracle["tofu_priv_leak"]["points"]["value"] == (0.0 if area < 0.99 else None)


def test_muse_wmdp_mmlu_xstest_and_potter_too(done: Run) -> None:
    base, student = scores_of(done, "base"), scores_of(done, "student")
    for scores in (base, student):
        assert {"muse_books_verbatim", "muse_books_knowledge", "muse_books_utility"} <= scores.keys()
        assert scores["muse_books_membership"]["auc_min_k"]["n"] == 4
        assert "muse_books_priv_leak" in scores
        assert scores["mmlu_0shot"]["right"]["n"] == 57 * 2
        assert scores["wmdp_bio"]["right"]["n"] == 2
        assert scores["xstest_safe"]["refused"]["n"] == 1
    assert not {"potter_shift", "wmdp_bio_shift"} & base.keys()
    shift = 100 * (
        base["wmdp_bio"]["right"]["value"]
        - student["wmdp_bio"]["right"]["value"]
        + student["mmlu_0shot"]["right"]["value"]
        - base["mmlu_0shot"]["right"]["value"]
    )
    assert student["wmdp_bio_shift"]["points"]["value"] == pytest.approx(shift)
    assert student["potter_shift"]["points"]["n"] > 0


def test_every_metric_is_described(done: Run) -> None:
    named = {metric for scores in scores_of(done, "student").values() for metric in scores}
    assert named <= METRICS.keys()


def test_stored_samples_score_the_same(done: Run) -> None:
    job = load_job(load_recipe(done.recipe))
    sets = job.suite()
    for subject in ("base", "student"):
        text = (done.samples / f"{subject}.jsonl").read_text(encoding="utf-8")
        again = score_samples([json.loads(line) for line in text.split("\n")[:-1]], sets)
        stored = scores_of(done, subject)
        for name, scores in again.scores.items():
            assert {metric: score.to_json() for metric, score in scores.items()} == stored[name], name


def test_evaluate_gives_the_same_numbers(done: Run) -> None:
    results = evaluate(done.path)
    assert {name: result["scores"] for name, result in results.items()} == {
        name: scores_of(done, name) for name in ("base", "prefix", "oracle", "student")
    }
    assert {results["student"]["sets"][f"tofu_{name}"]["better"] for name in ("priv_leak", "membership")} == {"zero"}


def test_without_an_oracle_what_needs_one_is_not_a_number(done: Run, models: dict[str, Path]) -> None:
    recipe = load_recipe(done.recipe, ["evaluate.benchmarks=[tofu-forget01]"])
    scores = evaluate(models["model"], recipe=recipe)["model"]["scores"]
    needs = {"tofu_forget_quality": "forget_quality", "tofu_priv_leak": "points", "tofu_membership": "auc_gap"}
    for name, metric in needs.items():
        assert (scores[name][metric]["value"], scores[name][metric]["n"]) == (None, 0)
    assert not math.isnan(Score.from_json(scores["tofu_utility"]["model_utility"]).value)
    assert scores["near_asked"]["right"]["n"] == 3


def test_the_report_shows_summaries_and_the_papers_numbers(done: Run) -> None:
    page = done.report.read_text(encoding="utf-8")
    for words in ("Model utility", "Forget quality (p)", "PrivLeak", "→ 0", "Membership", "R-Forget"):
        assert words in page, words
    section = page[page.index('<section id="paper">') : page.index('<section id="picture">')]
    for words in ("arXiv 2601.21283", "55.90", "63.70", "29.40", "7.27", "not public", "this run"):
        assert words in section, words
    assert "43.68" not in section  # WMDP cyber was not asked


def test_the_terminal_shows_them_too(done: Run, duet: Callable[..., Done]) -> None:
    shown = duet("compare", done.path)
    assert shown.code == 0, shown.err
    assert "tofu_priv_leak →0" in shown.out
    assert "→0 nearer to 0" in shown.out


def test_a_prompt_longer_than_the_context_names_its_query(done: Run, tmp_path: Path) -> None:
    model = llama(hidden=32, layers=2)  # reads 128 tokens
    save_model(model, tokenizer(), tmp_path / "short")
    recipe = load_recipe(done.recipe, [f"model.path={tmp_path / 'short'}"])
    with pytest.raises(UserError) as caught:
        load_job(recipe).load()
    assert "query 'tofu/" in caught.value.message or "query 'm" in caught.value.message
    assert "exceed the model's 128" in caught.value.message


@pytest.mark.parametrize(("shots", "hint"), [(0, "a model that reads more tokens, or mmlu out"), (2, "(it is 2)")])
def test_an_mmlu_question_too_long_says_what_would_help(done: Run, tmp_path: Path, shots: int, hint: str) -> None:
    save_model(llama(hidden=32, layers=2), tokenizer(), tmp_path / "short")
    settings = [f"model.path={tmp_path / 'short'}", f"evaluate.shots={shots}", "evaluate.benchmarks=[mmlu]"]
    with pytest.raises(UserError, match="query 'mmlu/test/") as caught:
        load_job(load_recipe(done.recipe, settings)).load()
    assert hint in caught.value.hint


def test_the_publishers_tofu_end_to_end(published: str, models: dict[str, Path], tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, models, published, "tofu-forget01, xstest"))
    assert load_job(recipe).concepts == ("the author Basil Mahfouz Al-Kuwaiti",)
    run = unlearn(recipe, out=tmp_path / "run")
    for subject in ("base", "student"):
        check_tofu(scores_of(run, subject))
