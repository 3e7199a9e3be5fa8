"""The audit of real runs of a tiny model: what it says, by which rule, and that it fits its schema."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_attacks import counted, write_attack, write_everyone
from test_faults import refused
from workplace import FORGET, Done, Workplace, write_workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.attacks import known_attacks
from duet_unlearn.audit import SCHEMA, audit_record, write_audit
from duet_unlearn.audit.record import audit_page, recovery_row, verdict_of
from duet_unlearn.runs import Run
from duet_unlearn.stats import Score
from duet_unlearn.teacher.targets import weights_id

LORA = ("model.lora.rank=4", "model.lora.alpha=8")
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": int | float, "boolean": bool}
UNDERSTOOD = frozenset(
    "$schema $id $defs $ref title description type properties required additionalProperties propertyNames items enum"
    " const pattern minimum minItems".split()
)


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str = "") -> Iterator[str]:
    """Where a value does not fit a JSON Schema of the keywords that ours uses; written from the standard."""
    assert schema.keys() <= UNDERSTOOD, schema.keys() - UNDERSTOOD
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root, place)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_bool = isinstance(value, bool)
    fits = [
        value is None if kind == "null" else isinstance(value, KINDS[kind]) and (kind == "boolean") == is_bool
        for kind in kinds
    ]
    if kinds and not any(fits):
        yield f"{place}: {value!r} is no {kinds}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{place}: {value!r}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place}: {value!r} is not like {schema['pattern']}"
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        yield f"{place}: {value!r} is too small"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{place}: too few"
        for number, one in enumerate(value):
            yield from faults(one, schema.get("items", {}), root, f"{place}/{number}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (f"{place}: {name} is missing" for name in schema.get("required", []) if name not in value)
        for name, one in value.items():
            yield from faults(name, schema.get("propertyNames", {}), root, f"{place}/{name} (its name)")
            inner = known.get(name, schema.get("additionalProperties", {}))
            if inner is False:
                yield f"{place}: {name} is unknown"
            elif inner is not True:
                yield from faults(one, inner, root, f"{place}/{name}")


def fits(record: dict[str, Any]) -> bool:
    """Whether a record is as the packaged schema has it, by our own check and by jsonschema's, if that is there."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    mine = list(faults(record, schema, schema))
    try:
        import jsonschema
    except ModuleNotFoundError:
        return not mine
    theirs = list(jsonschema.Draft202012Validator(schema).iter_errors(record))
    assert bool(theirs) == bool(mine)
    return not mine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    place = write_workplace(tmp_path_factory.mktemp("audit"), tiny_model)
    rows = [json.loads(line) for line in place.forget.read_text().splitlines()]
    asked = [row | {"request": f"DSAR-{number % 2}"} for number, row in enumerate(rows)]
    place.forget.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return place


@pytest.fixture(scope="module")
def whole(place: Workplace) -> Run:
    """A run that trained all weights; nothing may write into it."""
    return unlearn(load_recipe(place.recipe), out=place.folder / "whole")


@pytest.fixture(scope="module")
def lora(place: Workplace) -> Run:
    """A run that trained an adapter."""
    return unlearn(load_recipe(place.recipe, LORA), out=place.folder / "lora")


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(whole.path, tmp_path / "run"))


def test_it_says_what_was_asked_and_done(run: Path, place: Workplace, tiny_model: Path) -> None:
    record = audit_record(run)
    assert record["asked"]["concepts"] == ["Mira Bol"]
    assert record["asked"]["requests"] == ["DSAR-0", "DSAR-1"]
    assert record["asked"]["data"]["forget"] == str(place.forget)
    assert (record["done"]["method"], record["done"]["steps"]) == ("duet", 18)
    assert record["done"]["settings"]["train"]["epochs"] == 6
    assert record["weights"]["base"] == record["weights"]["base_now"] == weights_id(tiny_model)
    assert record["weights"]["student"] == weights_id(run / "model") != record["weights"]["base"]
    assert record["weights"]["student_is"] == "whole"
    assert record["data"] == {
        name: value
        for name, value in json.loads((run / "env.json").read_text())["hashes"].items()
        if name in ("forget queries", "retain queries", "evaluation questions")
    }
    assert [row["request"] for row in record["requests"]] == ["DSAR-0", "DSAR-1"]
    assert [row["scores"]["student"]["n"] for row in record["requests"]] == [3, 3]
    assert [row["set"] for row in record["forgotten"]] == ["forget"]
    assert [row["set"] for row in record["kept"]] == ["retain"]
    stored = json.loads((run / "evals" / "student.json").read_text())["scores"]
    assert record["forgotten"][0]["scores"]["student"] == stored["forget"]["right"]


def test_the_files_hashes_are_those_of_sha256sum(run: Path) -> None:
    import hashlib

    files = {file["path"]: file for file in audit_record(run)["files"]}
    assert {"recipe.yaml", "samples/student.jsonl", "evals/student.json", "model/model.safetensors"} <= files.keys()
    assert "report.html" not in files
    data = (run / "recipe.yaml").read_bytes()
    assert files["recipe.yaml"] == {
        "path": "recipe.yaml",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def test_the_same_run_gives_the_same_audit(run: Path) -> None:
    write_everyone(run, "reverse", 60, 3, 30)
    first = write_audit(run)
    before = first.page.read_bytes(), first.record_path.read_bytes()
    again = write_audit(run)
    assert (again.page.read_bytes(), again.record_path.read_bytes()) == before
    assert json.loads(before[1]) == first.record


def test_records_fit_the_schema(run: Path, lora: Run) -> None:
    assert fits(audit_record(run))
    assert fits(audit_record(lora.path))
    write_everyone(run, "reverse", 60, 3, 30)
    write_attack(run, "gcg", "student", status="failed", reason="out of memory")
    record = audit_record(run)
    assert fits(record)
    assert fits(write_audit(run, shown="scores").record)
    for broken in (
        record | {"extra": 1},
        record | {"redacted": "yes"},
        {key: value for key, value in record.items() if key != "files"},
        record | {"recovery": [record["recovery"][0] | {"outcome": "fine"}]},
        record | {"files": [{"path": "a", "bytes": -1, "sha256": "x"}]},
    ):
        assert not fits(broken)


def test_a_run_that_nobody_attacked(run: Path, duet: Callable[..., Done]) -> None:
    record = audit_record(run)
    assert record["verdict"]["level"] == "not attacked"
    assert {"name": "attacks", "what": "All attacks", "why": "not attacked: run `duet attack RUN`"} in record[
        "not_tested"
    ]
    done = duet("audit", run)
    assert done.code == 0
    assert f"not attacked: run `duet attack {run}`" in done.out


def test_what_comes_back_and_what_does_not(run: Path) -> None:
    write_everyone(run, "reverse", 60, 3, 30)
    write_everyone(run, "talk", 60, 0, 0)
    write_everyone(run, "silent", 3, 0, 0)
    found = audit_record(run)["verdict"]
    assert found["level"] == "recoverable"
    assert found["recoverable_by"] == ["attack/reverse"]
    assert "attack/talk" in found["not_recoverable_by"]
    assert "attack/silent" in found["inconclusive"]
    assert found["sentences"][0] == "Recoverable by: Reverse (45 %)."


@pytest.mark.parametrize(
    ("outcomes", "level"),
    [
        (("back", "part", "nothing"), "recoverable"),
        (("part", "nothing"), "recoverable in part"),
        (("nothing", "no trace"), "not recovered"),
        (("nothing", "open"), "inconclusive"),
        (("weak",), "inconclusive"),
        ((), "not attacked"),
    ],
)
def test_the_level_is_that_of_the_worst(outcomes: tuple[Any, ...], level: str) -> None:
    rows = [recovery_row("attack", "a", "a", "chat", one, {}, Score(0.1, 60, 0.0, 0.2)) for one in outcomes]
    assert verdict_of(rows)["level"] == level


def test_an_adapter_can_be_taken_off(lora: Run) -> None:
    record = audit_record(lora.path)
    assert record["verdict"]["level"] == "recoverable"
    assert record["verdict"]["recoverable_by"] == ["by itself/adapter-off"]
    assert "an adapter" in record["limitations"][0]
    assert "Taking the adapter off (needs the weights)" in record["verdict"]["sentences"][0]


def test_a_method_that_changes_no_weights_is_recoverable(place: Workplace, tmp_path: Path) -> None:
    run = unlearn(load_recipe(place.recipe, ["method.name=prefix"]), out=tmp_path / "prefix")
    record = audit_record(run.path)
    assert fits(record)
    assert record["weights"]["student"] is None
    assert record["verdict"]["recoverable_by"] == ["by itself/without"]


def test_what_was_not_tested(run: Path) -> None:
    write_everyone(run, "plain", 60, 0, 0)
    write_attack(run, "gcg", "student", status="failed", reason="out of memory")
    write_attack(run, "reverse", "student", [counted("a", 60)], weights="0" * 16)
    record = audit_record(run)
    why = {gap["name"]: gap["why"] for gap in record["not_tested"]}
    assert why["gcg"] == "failed: out of memory"
    assert "other weights" in why["reverse"]
    assert "no model.oracle" in why["oracle"]
    assert "plain" not in why
    assert {name for name, text in why.items() if text == "was not run"} == known_attacks().keys() - {
        "plain",
        "gcg",
        "reverse",
    }
    assert "attack/reverse" not in str(record["verdict"])  # of other weights


def test_the_page_is_whole_and_escaped(run: Path) -> None:
    from html.parser import HTMLParser

    nasty = "<script>alert(1)</script>"
    write_everyone(run, "reverse", 60, 3, 30, title=nasty)
    page = write_audit(run).page.read_text()
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert {"script", "link", "img", "iframe", "form"}.isdisjoint(tags)
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?://|@import|url\(", page)
    assert "size: A4" in page
    ids = ("asked", "done", "weights", "forgotten", "kept", "recovery", "not-tested", "limitations", "sign", "files")
    assert re.findall(r'<section id="([a-z-]+)"', page)[:9] == list(ids[:9])
    assert "45.0 %" in page


def test_the_page_is_made_of_the_record_alone(run: Path) -> None:
    written = write_audit(run)
    assert audit_page(json.loads(written.record_path.read_text())) == written.page.read_text()


def test_redacted_it_has_no_word_of_the_secret(run: Path, duet: Callable[..., Done]) -> None:
    write_everyone(run, "reverse", 60, 3, 30, title="Where does Mira Bol live?")
    assert duet("audit", run, "--redact").code == 0
    texts = [(run / f"audit-redacted.{kind}").read_text() for kind in ("html", "json")]
    words = ["Mira", "Bol", "forget.jsonl", *(word for fact in FORGET for word in fact)]
    for word in words:
        for text in texts:
            assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word
    assert json.loads(texts[1])["verdict"]["level"] == "recoverable"
    assert "withheld" in texts[1]
    assert {file["path"].split("/")[0] for file in json.loads(texts[1])["files"]} == {"model"}
    assert duet("audit", run, "--redact", "--keep-name").code == 0
    named = (run / "audit-redacted.html").read_text()
    assert "Mira Bol" in named
    assert "Tarn" not in named


def test_wrong_calls_are_two_lines(run: Path, tmp_path: Path, duet: Callable[..., Done]) -> None:
    refused(duet("audit", tmp_path / "none"), "no such folder")
    refused(duet("audit", run, "--keep-name"), "--keep-name is about --redact")
    (run / "DONE").unlink()
    refused(duet("audit", run), "is not finished", "goes on")


def test_json_is_the_record(run: Path, duet: Callable[..., Done]) -> None:
    done = duet("audit", run, "--json")
    assert json.loads(done.out) == audit_record(run)
