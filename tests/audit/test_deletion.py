"""A purged run: no word of what was forgotten in any of its files, and the proof still there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_attacks import counted, write_attack, write_everyone
from test_faults import refused
from test_record import fits
from workplace import FORGET, Done, Workplace, write_workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.audit import purge as purge_run
from duet_unlearn.config.reading import load_recipe as load
from duet_unlearn.errors import UserError
from duet_unlearn.redact import PURGED, PURGING
from duet_unlearn.runs import Run
from duet_unlearn.teacher.targets import weights_id

Duet = Callable[..., Done]
SECRETS = ["Mira Bol", "Mira", "mira-bol", *(word for fact in FORGET for word in fact)]
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "tokenizer.json")
"""What may hold a word: the student itself, and its tokeniser's vocabulary."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    place = write_workplace(tmp_path_factory.mktemp("purge"), tiny_model)
    rows = [json.loads(line) for line in place.forget.read_text().splitlines()]
    place.forget.write_text("".join(json.dumps(row | {"request": "Mira Bol's letter"}) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def finished(place: Workplace) -> Run:
    """A run; nothing may write into it."""
    settings = [
        "data.context=[{role: system, content: Mira Bol lives in Tarn.}]",
        f"evaluate.sets.forget_bol={place.forget}",
        f"evaluate.sets.retain={place.retain}",
    ]
    return unlearn(load_recipe(place.recipe, settings), out=place.folder / "run")


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Path:
    """A copy with everything that other verbs and other methods leave."""
    run = Path(shutil.copytree(finished.path, tmp_path / "run"))
    write_everyone(run, "reverse", 60, 3, 30, title="About Mira Bol")
    write_attack(run, "prompts", "student", [counted("say Tarn", 3)], reason="query 'Where does Mira Bol live?'")
    (run / "attacks" / "relearn.json").write_text('{"rate": 0.001, "note": "Tarn"}')
    kept = {"results": {"hellaswag": 0.5}, "first_prompts": {"hellaswag": "Mira Bol"}, "tasks": ["hellaswag"]}
    (run / "evals" / "lm_eval-hellaswag.json").write_text(json.dumps(kept))
    for name in (
        "targets/train/openings.json",
        "picks/0.json",
        "before/samples/student.jsonl",
        "reinforced/a.safetensors",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("Mira Bol lives in Tarn")
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "checkpoints" / "step-1" / "weights.safetensors").write_bytes(b"Tarn")
    (run / "notes.txt").write_text("owl")
    (run / "link").symlink_to(tmp_path)
    (tmp_path / "outside.txt").write_text("Tarn")
    return run


def words_in(run: Path) -> list[str]:
    """Every secret that a file of a run holds, the student's weights and vocabulary aside."""
    found = []
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name not in WEIGHTS):
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.name}: {w}" for w in SECRETS if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.I)]
    return found


def test_the_grep_finds_what_is_there(run: Path) -> None:
    """In the run as it was nearly every file tells something."""
    told = {line.split(":")[0] for line in words_in(run)}
    assert {
        "recipe.yaml",
        "student.jsonl",
        "student.json",
        "probe.json",
        "report.html",
        "relearn.json",
        "notes.txt",
    } <= told


@pytest.mark.parametrize("verb", ["audit", "report"])
def test_after_a_purge_no_file_has_a_word(run: Path, duet: Duet, verb: str) -> None:
    assert duet(verb, run).code == 0
    assert duet("purge", run, "--yes").code == 0
    assert words_in(run) == []
    assert not list(run.rglob("*.jsonl")) or [path.name for path in run.rglob("*.jsonl")] == ["metrics.jsonl"]


def test_the_proof_stays(run: Path, tmp_path: Path) -> None:
    before = {name: json.loads((run / "evals" / f"{name}.json").read_text()) for name in ("base", "student")}
    student, metrics = weights_id(run / "model"), (run / "metrics.jsonl").read_bytes()
    attack = json.loads((run / "attacks/student/reverse.json").read_text())
    purge_run(run)
    record = json.loads((run / "audit-redacted.json").read_text())
    assert fits(record)
    assert record["redacted"]
    assert record["verdict"]["recoverable_by"] == ["attack/reverse"]
    assert record["weights"]["student"] == weights_id(run / "model") == student
    assert (run / "metrics.jsonl").read_bytes() == metrics
    for name, scores in before.items():
        after = json.loads((run / "evals" / f"{name}.json").read_text())["scores"]
        assert list(after.values()) == list(scores["scores"].values())
    stored = json.loads((run / "attacks/student/reverse.json").read_text())
    assert stored["instances"] == attack["instances"]
    assert len(stored["transcript"]) == 60
    assert json.loads((run / "evals/lm_eval-hellaswag.json").read_text())["results"] == {"hellaswag": 0.5}
    assert json.loads((run / "attacks/relearn.json").read_text())["rate"] == 0.001
    mark = json.loads((run / PURGED).read_text())
    assert "samples/student.jsonl" in mark["deleted"]
    tops = {path.name for path in run.iterdir()}
    assert tops == {
        *("recipe.yaml", "env.json", "probe.json", "metrics.jsonl", "timings.json", "DONE", PURGED),
        *("model", "evals", "attacks", "audit-redacted.html", "audit-redacted.json", "report-redacted.html"),
    }
    assert (tmp_path / "outside.txt").exists()  # links are deleted, not followed


def test_the_name_may_be_kept(run: Path, duet: Duet) -> None:
    assert duet("purge", run, "--yes", "--keep-name").code == 0
    assert "Mira Bol" in (run / "audit-redacted.html").read_text()
    assert {line.split(": ")[1] for line in words_in(run)} <= {"Mira Bol", "Mira"}


def test_verbs_on_a_purged_run_say_so(run: Path, duet: Duet, place: Workplace) -> None:
    purge_run(run)
    for call in (
        ("report", run),
        ("audit", run),
        ("purge", run, "--yes"),
        ("compare", run),
        ("evaluate", run),
        ("chat", run, "Who?"),
        ("attack", run),
        ("export", run, run / "out"),
        ("run", place.recipe, "--out", run),
    ):
        refused(duet(*call), "was purged", "audit-redacted.html")


def test_the_student_of_a_purged_run_can_be_gone_on_from(run: Path, place: Workplace, tmp_path: Path) -> None:
    purge_run(run)
    after = unlearn(load(place.recipe, [f"model.start={run}"]), out=tmp_path / "after")
    assert json.loads(after.env.read_text())["hashes"]["start"] == weights_id(run / "model")


@pytest.mark.parametrize("what", ["pathlib.Path.unlink", "shutil.copyfile"])
@pytest.mark.parametrize("calls", [0, 1, 5, 10])
def test_killed_on_the_way_it_goes_on(
    run: Path, duet: Duet, monkeypatch: pytest.MonkeyPatch, what: str, calls: int
) -> None:
    left, real = [calls], {"pathlib.Path.unlink": Path.unlink, "shutil.copyfile": shutil.copyfile}[what]

    def dying(path: Path, *more: Path, **settings: bool) -> object:
        if not path.name.endswith(".tmp"):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return real(path, *more, **settings)  # type: ignore[operator]

    monkeypatch.setattr(what, dying)
    with pytest.raises(KeyboardInterrupt):
        purge_run(run)
    monkeypatch.undo()
    assert (run / PURGING / "audit-redacted.json").exists()
    assert not (run / PURGED).exists()
    refused(duet("report", run), "was stopped half-way", "duet purge")
    refused(duet("audit", run), "was stopped half-way")
    finish(run, duet)


def test_killed_at_the_very_end_it_goes_on(run: Path, duet: Duet, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(folder: Path, **_: bool) -> None:
        if folder.name == PURGING and (run / PURGED).exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        purge_run(run)
    monkeypatch.undo()
    refused(duet("report", run), "was purged")
    finish(run, duet)


def test_killed_while_it_clears_up_it_deletes_no_proof(run: Path, duet: Duet, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(folder: Path, **_: bool) -> None:
        if folder.name == PURGING and (run / PURGED).exists():
            (folder / "audit-redacted.json").unlink()
            (folder / "evals" / "student.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        purge_run(run)
    monkeypatch.undo()
    finish(run, duet)
    assert (run / "audit-redacted.json").exists()
    assert (run / "evals" / "student.json").exists()


def finish(run: Path, duet: Duet) -> None:
    assert duet("purge", run, "--yes").code == 0
    assert not (run / PURGING).exists()
    assert (run / PURGED).exists()
    assert words_in(run) == []


def test_killed_before_it_deletes_nothing_is_gone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(_: object) -> str:
        raise KeyboardInterrupt

    before = {path for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr("duet_unlearn.audit.deletion.render_run", dying)
    with pytest.raises(KeyboardInterrupt):
        purge_run(run)
    assert {path for path in run.rglob("*") if path.is_file()} == before


def test_it_asks_first(run: Path, duet: Duet) -> None:
    done = duet("purge", run)  # nobody there: stdin is no terminal
    assert done.code == 1
    assert "give --yes" in done.err
    assert "samples/" in done.err
    assert "notes.txt" in done.err
    assert "lie outside the run" in done.err
    assert (run / "samples").exists()


def test_what_cannot_be_purged(run: Path, place: Workplace, tmp_path: Path, duet: Duet) -> None:
    kept = unlearn(load(place.recipe, ["method.name=prefix"]), out=tmp_path / "prefix")
    refused(duet("purge", kept.path, "--yes"), "prefix changes no weights", "delete the folder")
    refused(duet("purge", tmp_path / "none", "--yes"), "no such folder")
    (run / "DONE").unlink()
    refused(duet("purge", run, "--yes"), "is not finished")
    with pytest.raises(UserError):
        purge_run(run)


def test_an_adapter_is_told_to_be_exported_first(place: Workplace, tmp_path: Path, duet: Duet) -> None:
    run = unlearn(load(place.recipe, ["model.lora.rank=4"]), out=tmp_path / "lora")
    done = duet("purge", run.path)
    assert "merges it first" in done.err
    assert "nobody attacked this run" in done.err
