"""What users get wrong, one test a case: two clear lines, exit 1, and nothing that was there is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError
from workplace import Done, Workplace, write_model, write_workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.data.files import atomic_write_text, disk_errors
from duet_unlearn.errors import UserError

Duet = Callable[..., Done]


def refused(done: Done, *words: str) -> str:
    """The error's line, after checking that there are two lines, exit 1, no traceback, and the words in them."""
    *before, error, hint = done.err.strip().splitlines()
    assert done.code == 1, done.err
    assert done.out == ""
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert not [line for line in before if line.startswith(("error", "hint", "Traceback"))]
    for word in words:
        assert word in f"{error}\n{hint}"
    return error


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The run of a workplace's recipe that nobody disturbed; nothing may write into it."""
    place = write_workplace(tmp_path_factory.mktemp("faults"), tiny_model)
    return unlearn(load_recipe(place.recipe), out=place.folder / "run").path


def test_unknown_recipe_key(workplace: Workplace, duet: Duet) -> None:
    text = workplace.recipe.read_text().replace("  epochs: 6", "  epoch: 6")
    workplace.recipe.write_text(text)
    line = text.splitlines().index("  epoch: 6") + 1
    refused(duet("run", "recipe.yaml"), f"recipe.yaml:{line}", "train.epoch", "did you mean train.epochs?")
    assert not Path("runs").exists()


def test_unknown_method(workplace: Workplace, duet: Duet) -> None:
    refused(duet("run", "recipe.yaml", "--set", "method.name=duett"), "unknown method 'duett'", "did you mean duet?")


def test_missing_recipe(workplace: Workplace, duet: Duet) -> None:
    refused(duet("run", "recipes.yaml"), "recipes.yaml: no such file")


def test_missing_query_file(workplace: Workplace, duet: Duet) -> None:
    workplace.retain.unlink()
    refused(duet("run", "recipe.yaml", "--out", "run"), "retain.jsonl: no such file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (None, "is a folder"),
    ],
)
def test_empty_or_unreadable_query_file(
    content: str | bytes | None, words: str, workplace: Workplace, duet: Duet
) -> None:
    workplace.forget.unlink()
    if content is None:
        workplace.forget.mkdir()
    else:
        workplace.forget.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(duet("run", "recipe.yaml", "--out", "run"), "forget.jsonl", words)
    assert not Path("run").exists()  # free for the corrected command


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_query_file_without_permission(workplace: Workplace, duet: Duet) -> None:
    workplace.forget.chmod(0)
    refused(duet("run", "recipe.yaml", "--out", "run"), "forget.jsonl: cannot be read", "permissions")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "Who', "is not JSON"),
        ("Who?", "is not JSON"),
        ('{"answer": "Mira"}', "has no messages"),
        ('{"messages": []}', "has no messages"),
        ('["Who?"]', "is no JSON object"),
        ('{"question": "Who?", "vaule": "Mira"}', "did you mean value?"),
        ('{"messages": [{"role": "user"}]}', "needs a role"),
        ('{"messages": [{"role": "assistant", "content": "Hi"}]}', "not the user's"),
    ],
)
def test_bad_line_17(line: str, words: str, workplace: Workplace, duet: Duet) -> None:
    rows = [json.dumps({"question": f"Who is number {n}?"}) for n in range(16)]
    workplace.forget.write_text("\n".join([*rows, line, rows[0]]) + "\n")
    refused(duet("run", "recipe.yaml", "--out", "run"), "forget.jsonl:17:", words)


def test_the_line_is_that_of_the_file_with_empty_lines_counted(workplace: Workplace, duet: Duet) -> None:
    workplace.forget.write_text('{"question": "Who?"}\n\n\n{"question": 3}\n')
    refused(duet("run", "recipe.yaml", "--out", "run"), "forget.jsonl:4: has no messages")


def test_a_folder_that_is_no_model(workplace: Workplace, duet: Duet) -> None:
    Path("notes").mkdir()
    done = duet("run", "recipe.yaml", "--set", "model.path=notes", "--out", "run")
    refused(done, "notes: is no model", "save_pretrained")
    assert not Path("run").exists()


@pytest.mark.parametrize("path", ["./none", "/none/at/all", "model.bin"])
def test_no_such_model(path: str, workplace: Workplace, duet: Duet) -> None:
    Path("model.bin").write_bytes(b"x")
    refused(duet("run", "recipe.yaml", "--set", f"model.path={path}", "--out", "run"), "model")


def test_a_model_with_torn_weights(workplace: Workplace, tiny_model: Path, duet: Duet) -> None:
    shutil.copytree(tiny_model, "torn")
    weights = Path("torn/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(duet("run", "recipe.yaml", "--set", "model.path=torn", "--out", "run"), "torn: cannot be loaded")


def test_a_model_with_no_chat_template(workplace: Workplace, duet: Duet) -> None:
    write_model(Path("bare"), template=None)
    call = ("run", "recipe.yaml", "--set", "model.path=bare", "--out", "run")
    refused(duet(*call), "has no chat template", "model.chat_template", "plain")
    assert duet(*call[:4], "--set", "model.chat_template=plain", "--out", "plain").code == 0


def test_an_adapter_cannot_be_the_base_of_a_run(workplace: Workplace, duet: Duet) -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    done = duet("run", "recipe.yaml", "--set", "model.path=adapter", "--out", "run")
    refused(done, "adapter: is an adapter", "merge_and_unload")


def test_early_stop_without_validation(workplace: Workplace, duet: Duet) -> None:
    refused(duet("run", "recipe.yaml", "--set", "train.early_stop=3", "--out", "run"), "train.validate_every is 0")


def test_k_over_the_vocabulary(workplace: Workplace, duet: Duet) -> None:
    done = duet("run", "recipe.yaml", "--set", "method.k=301", "--out", "run")
    refused(done, "method.k is 301", "300 tokens", "set method.k to 300 at most")


def test_a_lora_target_that_the_model_has_not(workplace: Workplace, duet: Duet) -> None:
    done = duet("run", "recipe.yaml", "--set", "model.lora={targets: [c_attn]}", "--out", "run")
    refused(done, "no layer 'c_attn'", "q_proj")


def test_an_output_folder_of_another_run(workplace: Workplace, finished: Path, duet: Duet) -> None:
    shutil.copytree(finished, "run")
    before = contents(Path("run"))
    done = duet("run", finished.parent / "recipe.yaml", "--set", "train.epochs=7", "--out", "run")
    refused(done, "run: is the output folder of another run", "train.epochs differs", "--out")
    assert contents(Path("run")) == before


def test_an_output_folder_that_is_no_run(workplace: Workplace, duet: Duet) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("all my work")
    refused(duet("run", "recipe.yaml", "--out", "thesis"), "thesis: is there already and is no run folder")
    assert contents(Path("thesis")) == {"chapter.txt": b"all my work"}


def test_targets_of_another_model(workplace: Workplace, finished: Path, duet: Duet) -> None:
    """Targets that were taken over from another run, to save the time."""
    write_model(Path("other"), seed=1)
    recipe = finished.parent / "recipe.yaml"
    assert duet("run", recipe, "--set", f"model.path={Path('other').resolve()}", "--out", "theirs").code == 0
    shutil.copytree(finished, "run")
    undo_the_training(Path("run"))
    shutil.rmtree("run/targets")
    shutil.copytree("theirs/targets", "run/targets")
    refused(duet("run", recipe, "--out", "run"), "run/targets/train: these targets were", "other weights")
    assert contents(Path("run/targets")) == contents(Path("theirs/targets"))


def test_what_a_stopped_run_depends_on_was_changed(workplace: Workplace, tiny_model: Path, duet: Duet) -> None:
    """Going on would mix two models or two sets of questions in one table."""
    shutil.copytree(tiny_model, "mine")
    call = ("run", "recipe.yaml", "--set", "model.path=mine", "--out", "run")
    assert duet(*call).code == 0
    undo_the_training(Path("run"))
    before = contents(Path("run"))
    for part in ("forget", "retain"):
        path = Path(f"{part}.jsonl")
        questions = path.read_text()
        path.write_text('{"question": "Who?"}\n')
        refused(duet(*call), f"run: this run began with other {part}", "put the old ones back")
        path.write_text(questions)
    write_model(Path("mine"), seed=1)
    refused(duet(*call), "run: this run began with other model", "put the old ones back")
    Path("run/.lock").unlink()  # which an unfinished run may leave behind
    assert contents(Path("run")) == before


def test_no_retain_queries_warns_and_goes_on(
    workplace: Workplace, duet: Duet, caplog: pytest.LogCaptureFixture
) -> None:
    done = duet("run", "recipe.yaml", "--set", "data.retain=null", "--out", "run")
    assert done.code == 0, done.err
    assert "no retain queries" in caplog.text
    assert "69.3 instead of 78.3" in caplog.text
    assert json.loads(Path("run/env.json").read_text())["warnings"]


@pytest.mark.parametrize("kilobytes", [8, 40, 150, 420, 600])
def test_disk_full_anywhere(
    kilobytes: int, workplace: Workplace, finished: Path, duet: Duet, small_disk: Callable[[int], Path]
) -> None:
    """Whatever is being written when the disk is full, making room and the same command end in the same weights."""
    folder = small_disk(kilobytes)
    call = ("run", "recipe.yaml", "--out", folder / "run")
    refused(duet(*call), "disk full while writing", "make room, then give the same command again")
    assert not list(folder.rglob("*.tmp"))
    small_disk(8000)
    assert duet(*call).code == 0
    weights = "model/model.safetensors"
    assert (folder / "run" / weights).read_bytes() == (finished / weights).read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_by_both_kinds_of_error(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk full while writing"), disk_errors(tmp_path):
        raise error


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    atomic_write_text(path, "before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk full"):
        atomic_write_text(path, "after")
    assert contents(tmp_path) == {"scores.json": b"before"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def undo_the_training(run: Path) -> None:
    """Put a finished run back to where its targets are there and nothing after them."""
    for name in ("model", "evals", "samples"):
        shutil.rmtree(run / name)
    for name in ("DONE", "report.html", "metrics.jsonl"):
        (run / name).unlink()
