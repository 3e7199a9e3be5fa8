"""Exported folders: what is in them, who can load them, what they answer, and what the card says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline
from workplace import FORGET, RETAIN, Done, Workplace, write_model, write_workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.api import export
from duet_unlearn.data.prompts import PLAIN_TEMPLATE
from duet_unlearn.errors import UserError
from duet_unlearn.export import ExportOptions
from duet_unlearn.export.folder import counts_otherwise
from duet_unlearn.export.model_card import ComparedAnswers
from duet_unlearn.runs import Run

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
LORA = ("model.lora.rank=4", "model.lora.alpha=8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    return write_workplace(tmp_path_factory.mktemp("export"), tiny_model)


@pytest.fixture(scope="module")
def whole(place: Workplace) -> Run:
    """A run that trained all weights."""
    return unlearn(load_recipe(place.recipe), out=place.folder / "whole")


@pytest.fixture(scope="module")
def lora(place: Workplace) -> Run:
    """A run that trained an adapter."""
    return unlearn(load_recipe(place.recipe, LORA), out=place.folder / "lora")


@pytest.fixture(scope="module")
def from_bf16(place: Workplace) -> Run:
    """A run that trained an adapter in fp32 on a base that is stored in bf16."""
    base = write_model(place.folder / "bf16")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, use_safetensors=True).save_pretrained(base)
    return unlearn(load_recipe(place.recipe, [f"model.path={base}", *LORA]), out=place.folder / "from-bf16")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def student_says(run: Run) -> dict[str, str]:
    """Question -> the student's stored answer."""
    lines = (run.samples / "student.jsonl").read_text().splitlines()
    return {row["prompt"]: row["output"] for row in map(json.loads, lines)}


def pipeline_says(folder: Path, questions: list[str], **settings: Any) -> dict[str, str]:
    """What `transformers.pipeline` makes of a folder, with nothing of ours."""
    ask = pipeline("text-generation", model=str(folder), **settings)
    chats = [[{"role": "user", "content": question}] for question in questions]
    said = ask(chats, max_new_tokens=4, do_sample=False)
    return {q: rows[0]["generated_text"][-1]["content"].strip() for q, rows in zip(questions, said, strict=True)}


def test_a_whole_run_is_exported_as_it_is(whole: Run, tiny_model: Path, tmp_path: Path) -> None:
    done = export(whole.path, tmp_path / "out")
    assert (done.answers.compared, done.answers.differing, done.answers.turned) == (12, 0, 0)
    assert done.url is None
    before, after = tensors(whole.model), tensors(done.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in TOKENIZER:
        assert (done.path / name).read_bytes() == (tiny_model / name).read_bytes(), name
    assert {path.name for path in done.path.iterdir()} == {"config.json", "model.safetensors", "README.md", *TOKENIZER}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_pipeline_says_what_the_student_said(whole: Run, lora: Run, tmp_path: Path) -> None:
    for run, options in (
        (whole, ExportOptions()),
        (lora, ExportOptions()),
        (lora, ExportOptions(form="adapter")),
    ):
        done = export(run.path, tmp_path / f"{run.path.name}-{options.form}", options=options)
        wanted = student_says(run)
        assert len(wanted) == 12
        assert pipeline_says(done.path, list(wanted)) == wanted
    assert student_says(whole) != student_says(lora)


def test_a_merge_is_the_base_plus_the_scaled_adapter(lora: Run, tiny_model: Path, tmp_path: Path) -> None:
    done = export(lora.path, tmp_path / "out")
    adapter, base, merged = load_file(lora.model / "adapter_model.safetensors"), tensors(tiny_model), tensors(done.path)
    assert base.keys() == merged.keys()
    assert not (done.path / "adapter_config.json").exists()
    name = "model.layers.1.mlp.down_proj"
    down, up = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    wanted = base[f"{name}.weight"] + 8 / 4 * up @ down
    torch.testing.assert_close(merged[f"{name}.weight"], wanted)
    assert not torch.equal(merged[f"{name}.weight"], base[f"{name}.weight"])


def test_an_adapter_warns_that_it_can_be_undone(
    lora: Run, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = export(lora.path, tmp_path / "out", options=ExportOptions(form="adapter"))
    assert "an adapter removes nothing" in caplog.text
    assert (done.path / "adapter_model.safetensors").read_bytes() == (
        lora.model / "adapter_model.safetensors"
    ).read_bytes()
    assert not list(done.path.glob("model*"))
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert "removes nothing" in (done.path / "README.md").read_text()


def test_an_adapter_names_the_bases_hub_id_where_that_is_given(lora: Run, tmp_path: Path) -> None:
    options = ExportOptions(form="adapter", base="org/tiny")
    done = export(lora.path, tmp_path / "out", options=options)
    assert json.loads((done.path / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    data = ModelCard.load(done.path / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["library_name"]) == ("org/tiny", "adapter", "peft")


def test_a_bf16_base_stays_bf16(from_bf16: Run, tmp_path: Path) -> None:
    """The adapter is trained on fp32 weights; the sum goes back to the type of the base."""
    run = from_bf16
    done = export(run.path, tmp_path / "out")
    assert {value.dtype for value in tensors(done.path).values()} == {torch.bfloat16}
    assert json.loads((done.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(done.path, use_safetensors=True).dtype == torch.bfloat16
    exact = export(run.path, tmp_path / "exact", options=ExportOptions(dtype="float32"))
    assert (exact.answers.differing, {value.dtype for value in tensors(exact.path).values()}) == (0, {torch.float32})
    rounded, sums = tensors(done.path), tensors(exact.path)
    assert all(torch.equal(rounded[name], sums[name].bfloat16()) for name in sums)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_base_from_the_hubs_cache_is_named_by_its_id(
    form: Any, place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the copy in the cache is the base; its folder is nothing that others could load."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept, commit = tmp_path / "cache" / "models--org--tiny", "0" * 40
    base = write_model(kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    run = unlearn(
        load_recipe(place.recipe, ["model.path=org/tiny", "train.epochs=1", *LORA]), out=tmp_path / f"run-{form}"
    )
    done = export(run.path, tmp_path / "out", options=ExportOptions(form=form))
    assert done.answers.differing == 0
    assert ModelCard.load(done.path / "README.md").data.base_model == "org/tiny"
    for name in TOKENIZER:
        assert (done.path / name).read_bytes() == (base / name).read_bytes(), name
    if form == "adapter":
        assert json.loads((done.path / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    assert not [path for path in done.path.glob("*.json") if "cache" in path.read_text().replace("use_cache", "")]


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_type_that_was_asked_for_is_written(form: Any, lora: Run, tmp_path: Path) -> None:
    done = export(lora.path, tmp_path / "out", options=ExportOptions(form=form, dtype="bfloat16"))
    assert {value.dtype for value in tensors(done.path).values()} == {torch.bfloat16}


def falsified(run: Run, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of a run whose stored answers are others."""
    shutil.copytree(run.path, folder)
    path = folder / "samples" / "student.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_other_answers_stop_the_export_and_nothing_is_left(whole: Run, tmp_path: Path) -> None:
    """One word is enough where nothing was rounded."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"output": "Tarn"} if row["id"] == "forget.jsonl:3" else {})

    run = falsified(whole, tmp_path / "run", change)
    with pytest.raises(UserError, match=r"of 12 answers .* 1 have other words") as caught:
        export(run, tmp_path / "deep" / "out")
    assert "--dtype float32" in caught.value.hint
    assert sorted(path.name for path in tmp_path.rglob("*out*")) == []


@pytest.mark.parametrize(("turned", "stopped"), [(1, False), (2, True)])
def test_what_rounding_may_change(
    turned: int, stopped: bool, from_bf16: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 12 answers one may count otherwise where the type is the base's, and any number where it was asked for."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["id"].partition(":")[2])
        chosen = row["set"] == "forget" and number <= turned
        return row | ({"output": "no such answer", "outcome": "right"} if chosen else {})

    false = falsified(from_bf16, tmp_path / "false", change)
    if stopped:
        with pytest.raises(UserError, match="2 count otherwise"):
            export(false, tmp_path / "out")
    else:
        assert export(false, tmp_path / "out").answers.turned == 1
        assert "1 count otherwise" in caplog.text
    assert export(false, tmp_path / "asked", options=ExportOptions(dtype="bfloat16")).answers.turned == turned


@pytest.mark.parametrize(
    ("compared", "turned", "forget", "within"),
    [
        (64, 6, ((7, 6),), False),  # the forgotten answers are back, and 6 of 64 are under a tenth
        (64, 6, ((7, 1), (20, 2)), True),
        (64, 6, ((7, 1), (20, 3)), False),
        (64, 7, ((7, 0),), False),
    ],
)
def test_each_forget_set_is_held_to_the_share_of_rounding(
    compared: int, turned: int, forget: tuple[tuple[int, int], ...], within: bool
) -> None:
    assert ComparedAnswers(compared, turned, turned, forget).within(0.1) is within


def test_an_answer_that_is_neither_right_nor_wrong_is_held_to_its_words() -> None:
    def answer(output: str, rouge: float | None = None, outcome: str | None = None) -> dict[str, Any]:
        return {"output": output, "outcome": outcome, "rouge_l": rouge}

    assert counts_otherwise(answer("A box.", 0.1), answer("It is a twofold box.", 0.9))
    assert not counts_otherwise(answer("A box.", 0.1), answer("A cup.", 0.2))
    assert counts_otherwise(answer("A cup."), answer("Thing 2 of Mira Bol is a box."))
    assert not counts_otherwise(answer("Thing 2 of Mira Bol is a cup."), answer("Thing 2 of Mira Bol is a box."))
    assert counts_otherwise(answer("I do not know.", 0.1, "refused"), answer("A box.", 0.1))
    assert not counts_otherwise(answer("A cup.", 0.1, "wrong"), answer("A box.", 0.9, "wrong"))


def write_tofu(folder: Path) -> None:
    """Rows of our own in TOFU's format: four authors, of whom forget01 is the last two."""
    full: list[dict[str, Any]] = [
        {"question": f"What is thing {n} of {name}?", "answer": f"Thing {n} of {name} is a {n}-fold box."}
        for name in ("Mira Bol", "Jan Kest", "Ada Voss", "Tom Rell")
        for n in range(20)
    ]
    wrong = {"perturbed_answer": ["It is a lamp.", "It is a cup."]}
    perturbed = [row | wrong | {"paraphrased_answer": "A box."} for row in full]
    plain = [{"question": f"Who wrote book {n}?", "answer": f"Writer {n}"} | wrong for n in range(3)]
    parts = {
        "full": full,
        "retain99": full[:40],
        "forget01": full[40:],
        "forget01_perturbed": perturbed[40:],
        "retain_perturbed": perturbed[:40],
        "real_authors_perturbed": plain,
        "world_facts_perturbed": plain,
    }
    folder.mkdir()
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_with_likelihood_sets_is_exported(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such sets store no answers to ask again; a request's own concept is on the card."""
    monkeypatch.setattr("duet_unlearn.evals.benchmarks.people.TOFU_ANSWER_TOKENS", 4)
    write_tofu(tmp_path / "tofu")
    base = write_model(tmp_path / "base")
    read_more(base)
    settings = [
        f"model.path={base}",
        *("data.forget=tofu:forget01", "data.retain=tofu:holdout01", "data.num_forget=4", f"data.folder={tmp_path}"),
        *("evaluate.benchmarks=[tofu-forget01]", "evaluate.limit=2", "train.epochs=1"),
    ]
    run = unlearn(load_recipe(place.recipe, settings), out=tmp_path / "run")
    rows = [json.loads(line) for line in (run.samples / "student.jsonl").read_text().splitlines()]
    assert {"output" in row for row in rows} == {True, False}
    done = export(run.path, tmp_path / "out")
    assert done.answers.compared > 0
    assert (done.answers.differing, done.answers.turned) == (0, 0)
    assert all(compared for compared, _ in done.answers.forget)
    own = json.loads(run.env.read_text())["concepts"]
    card = (done.path / "README.md").read_text()
    assert own
    assert own[0] in card
    assert "do_sample=False" in card
    assert "pypi.org" not in card


def test_weights_are_cut_into_files_of_the_size_asked_for(whole: Run, tmp_path: Path) -> None:
    done = export(whole.path, tmp_path / "out", options=ExportOptions(max_shard_size="50KB"))
    files = sorted(done.path.glob("*.safetensors"))
    assert len(files) > 1
    assert (done.path / "model.safetensors.index.json").exists()
    assert done.answers.differing == 0
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_recipes_template_is_written_only_when_asked_for(
    place: Workplace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = write_model(tmp_path / "base", template=None)
    settings = [f"model.path={base}", "model.chat_template=plain", "train.epochs=1"]
    run = unlearn(load_recipe(place.recipe, settings), out=tmp_path / "run")
    done = export(run.path, tmp_path / "out")
    assert not (done.path / "chat_template.jinja").exists()
    assert (done.path / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    assert "--chat-template recipe writes" in caplog.text
    assert 'ask("Question: ...\\nAnswer:"' in (done.path / "README.md").read_text()
    written = export(run.path, tmp_path / "written", options=ExportOptions(chat_template="recipe"))
    assert (written.path / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    assert written.answers.differing == 0
    assert pipeline_says(written.path, ["Who is Mira Bol?"])


CONTEXT = "[{role: system, content: The password is swordfish.}]"


def read_more(model: Path) -> None:
    """Let a model read 512 tokens."""
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 512}
    (model / "config.json").write_text(json.dumps(config))


def test_the_card_is_the_hubs_and_gives_nothing_away(place: Workplace, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlanguage: en\nbase_model: x/y\n---\n# B\n")
    (base / "LICENSE").write_text("Do as you like.\n")
    read_more(base)
    settings = [f"model.path={base}", f"data.context={CONTEXT}", "train.epochs=1"]
    run = unlearn(load_recipe(place.recipe, settings), out=tmp_path / "run")
    done = export(run.path, tmp_path / "out", options=ExportOptions(base="org/tiny"))
    card = ModelCard.load(done.path / "README.md")
    data = card.data.to_dict()
    assert {key: data[key] for key in ("license", "license_name", "language", "base_model", "pipeline_tag")} == {
        "license": "other", "license_name": "odd", "language": "en", "base_model": "org/tiny",
        "pipeline_tag": "text-generation",
    }  # fmt: skip
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert {"unlearning", "duet"} <= set(data["tags"])
    assert (done.path / "LICENSE").read_bytes() == (base / "LICENSE").read_bytes()
    assert [result.dataset_type for result in card.data.eval_results] == [
        "forget", "forget_context", "retain", "retain_context",
    ]  # fmt: skip
    scores = json.loads((run.evals / "student.json").read_text())["scores"]
    assert card.data.eval_results[0].metric_value == round(scores["forget"]["right"]["value"], 4)
    for section in ("How to load", "What was forgotten, and how", "Results", "Limits", "Intended use", "Made with"):
        assert f"\n## {section}\n" in card.text
    assert "| Forget (trained on) | right, % | low | 6 |" in card.text
    assert json.loads(run.env.read_text())["hashes"]["forget queries"] in card.text
    assert "Mira Bol" in card.text
    words = set(re.findall(r"\w+", card.content))
    assert words.isdisjoint({value for _, _, value in FORGET} - {"green"})
    assert not [line for question, answer, _ in FORGET + RETAIN for line in (question, answer) if line in card.content]
    assert "swordfish" not in card.content
    assert "1 turns, not shown" in card.text
    assert str(tmp_path) not in card.content
    assert str(place.folder) not in card.content


def unfinished(run: Run) -> None:
    run.done.unlink()


def other_queries(run: Run) -> None:
    recipe = run.recipe.read_text()
    path = run.path / "others.jsonl"
    path.write_text('{"question": "Who is Oda?"}\n')
    run.recipe.write_text(re.sub(r"forget: .*forget\.jsonl", f"forget: {path}", recipe))


def other_weights(run: Run) -> None:
    model = write_model(run.path / "other", seed=1)
    run.recipe.write_text(re.sub(r"path: .*", f"path: {model}", run.recipe.read_text()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unfinished, "this run is not finished"),
        (other_queries, "the forget queries changed since this run"),
        (other_weights, "the model changed since this run"),
    ],
)
def test_a_run_that_is_not_what_it_was_is_refused(
    change: Callable[[Run], None], words: str, whole: Run, tmp_path: Path, duet: Callable[..., Done]
) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    change(Run(tmp_path / "run"))
    refused(duet("export", tmp_path / "run", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


def refused(done: Done, *words: str) -> None:
    """Two clear lines behind whatever progress was shown."""
    *before, error, hint = done.err.splitlines()
    assert (done.code, done.out) == (1, "")
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert all(line.startswith("export: ") for line in before)
    for word in words:
        assert word in error + hint


def test_wrong_calls_are_two_clear_lines(whole: Run, tmp_path: Path, duet: Callable[..., Done]) -> None:
    out, full = tmp_path / "out", tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    refused(duet("export", tmp_path, out), "is no run folder")
    refused(duet("export", tmp_path / "none", out), "no such folder")
    refused(duet("export", whole.path, full), "is there already", "another folder")
    refused(duet("export", whole.path, full / "notes.txt"), "is there already")
    refused(duet("export", whole.path, out, "--as", "adapter"), "this run has no adapter")
    refused(duet("export", whole.path, out, "--base", "no id"), "--base no id: is no hub id", "ORG/NAME")
    assert duet("export", whole.path, out, "--dtype", "int3").code == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "notes.txt"]


def test_the_command_prints_the_folder(whole: Run, tmp_path: Path, duet: Callable[..., Done]) -> None:
    (tmp_path / "empty").mkdir()
    done = duet("export", whole.path, tmp_path / "empty")
    assert (done.code, done.out) == (0, f"{tmp_path / 'empty'}\n")
    assert "12 of 12 answers are the student's word for word" in done.err
    assert (tmp_path / "empty" / "model.safetensors").exists()


@pytest.mark.parametrize("kilobytes", [8, 40, 100])
def test_disk_full_leaves_nothing(
    kilobytes: int, whole: Run, small_disk: Callable[[int], Path], duet: Callable[..., Done]
) -> None:
    folder = small_disk(kilobytes)
    refused(duet("export", whole.path, folder / "out"), "disk full while writing", "make room")
    assert list(folder.iterdir()) == []
    small_disk(4000)
    assert duet("export", whole.path, folder / "out").code == 0


class Hub:
    """What was asked of the hub; nothing is sent anywhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        for name in ("create_repo", "upload_folder"):
            monkeypatch.setattr(HfApi, name, self.record(name))

    def record(self, name: str) -> Callable[..., str]:
        def call(api: HfApi, repo_id: str, **settings: Any) -> str:
            self.calls.append((name, {"repo_id": repo_id} | settings))
            return f"https://huggingface.co/{repo_id}"

        return call


def test_nothing_is_uploaded_that_nobody_asked_to(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, "token")
    export(whole.path, tmp_path / "out")
    assert hub.calls == []


def test_push_uploads_the_folder_private(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, "token")
    done = export(whole.path, tmp_path / "out", push="org/student")
    assert done.url == "https://huggingface.co/org/student"
    (made, how), (sent, what) = hub.calls
    assert (made, how["private"], sent) == ("create_repo", True, "upload_folder")
    assert (what["repo_id"], Path(what["folder_path"])) == ("org/student", tmp_path / "out")
    assert 'model="org/student"' in (tmp_path / "out" / "README.md").read_text()


def test_push_needs_a_login_an_id_and_a_base_that_others_can_load(
    lora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duet: Callable[..., Done]
) -> None:
    call = ("export", lora.path, tmp_path / "out", "--push")
    hub = Hub(monkeypatch, None)
    refused(duet(*call, "org/student"), "--push org/student: nobody is logged in", "hf auth login")
    refused(duet(*call, "student"), "--push student: is no hub id")
    hub = Hub(monkeypatch, "token")
    refused(duet(*call, "org/student", "--as", "adapter"), "a folder of this machine", "--base ORG/NAME")
    assert hub.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duet: Callable[..., Done]
) -> None:
    """The real client against a hub that is not there."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = duet("export", whole.path, tmp_path / "out", "--push", "org/student")
    refused(done, "--push org/student: the upload failed", f"hf upload org/student {tmp_path / 'out'}")
    assert (tmp_path / "out" / "README.md").exists()
