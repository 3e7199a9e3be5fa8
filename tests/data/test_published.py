"""Publishers' files: every format in which they come, and what is said where one does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duet_unlearn.data.published import PublishedRow, Publisher, home, read_rows, scheme_of
from duet_unlearn.errors import UserError

ROW = {"question": "Who?", "answer": 1, "choices": ["a", "b"]}
PLAIN = Publisher("wmdp", "cais/wmdp", "question, choices, answer")


def read(folder: Path) -> list[PublishedRow]:
    return read_rows(PLAIN, ("part", "other/test"), config="part", split="test", folder=str(folder))


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / "wmdp" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("part.jsonl", f"\n{json.dumps(ROW)}\n"),
        ("part.json", json.dumps(ROW)),
        ("other/test.json", json.dumps([ROW], indent=1)),
    ],
)
def test_json_in_lines_and_as_a_list(tmp_path: Path, name: str, text: str) -> None:
    path = put(tmp_path, name, text)
    (row,) = read(tmp_path)
    assert row.text("question") == "Who?"
    assert row.texts("choices") == ("a", "b")
    assert row.index("answer", ("a", "b")) == 1
    assert row.place.startswith(f"{path}:")


def test_the_hubs_own_parquet_files(tmp_path: Path) -> None:
    table, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    put(tmp_path, "part-00000-of-00001.parquet", "")
    path = tmp_path / "wmdp" / "part-00000-of-00001.parquet"
    parquet.write_table(table.Table.from_pylist([ROW]), path)
    assert read(tmp_path)[0].values == ROW


def test_csv_with_and_without_a_header_line(tmp_path: Path) -> None:
    put(tmp_path, "part.csv", 'question,answer\n"Who, then?",B\n')
    (row,) = read(tmp_path)
    assert (row.text("question"), row.index("answer", ("a", "b"))) == ("Who, then?", 1)
    rows = read_rows(PLAIN, ("part",), config="", split="", folder=str(tmp_path), header=("first", "second"))
    assert [row.text("first") for row in rows] == ["question", "Who, then?"]


def test_a_missing_column_names_file_line_column_and_format(tmp_path: Path) -> None:
    path = put(tmp_path, "part.jsonl", '{"question": "Who?"}\n')
    (row,) = read(tmp_path)
    with pytest.raises(UserError) as caught:
        row.texts("choices")
    assert caught.value.message == f"{path}:1: has no column `choices`"
    assert caught.value.hint == "wmdp's format (cais/wmdp): question, choices, answer"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "  "}, "`question` holds no text"),
        ({"question": 3}, "`question` holds no text"),
        ({"question": "Who?", "choices": "a"}, "`choices` holds no list of texts"),
        ({"question": "Who?", "choices": []}, "`choices` holds no list of texts"),
        ({"question": "Who?", "choices": ["a", "b"], "answer": 2}, "`answer` is '2', none of 2 options"),
        ({"question": "Who?", "choices": ["a", "b"], "answer": "no"}, "`answer` is 'no', none of 2 options"),
    ],
)
def test_a_cell_of_the_wrong_kind_is_named(row: dict[str, object], words: str) -> None:
    made = PublishedRow("file:7", row, PLAIN)

    def read_it() -> int:
        assert made.text("question")
        return made.index("answer", made.texts("choices"))

    with pytest.raises(UserError, match="file:7: the column") as caught:
        read_it()
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"), [("{", ":1: is not JSON"), ("[]", "has no rows"), ("7\n", ":1: is no JSON object")]
)
def test_a_file_that_is_no_table(tmp_path: Path, text: str, words: str) -> None:
    path = put(tmp_path, "part.json", text)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert caught.value.message.startswith(str(path))
    assert words in caught.value.message


def test_a_folder_without_the_part_says_what_to_download(tmp_path: Path) -> None:
    (tmp_path / "wmdp").mkdir()
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert caught.value.message == f"{tmp_path}/wmdp: has no part.* or other/test.*"
    assert caught.value.hint == f"hf download --repo-type dataset cais/wmdp --local-dir {tmp_path}/wmdp"


@pytest.mark.parametrize("by", ["data.folder", "DUET_DATA"])
def test_a_folder_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    none = tmp_path / "none"
    monkeypatch.setenv("DUET_DATA", str(none))
    with pytest.raises(UserError) as caught:
        read_rows(PLAIN, ("a",), config="a", split="a", folder=str(none) if by == "data.folder" else None)
    assert caught.value.message == f"{none}: no such folder"
    assert caught.value.hint.startswith(f"{by} names it; hf download ")


def test_no_folder_and_no_hub_is_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client reads the variable when it is imported, so its constant is set."""
    import huggingface_hub.constants

    pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("DUET_DATA", raising=False)
    absent = Publisher("wmdp", "duet-unlearn/none-such", "question, choices, answer")
    with pytest.raises(UserError) as caught:
        read_rows(absent, ("part",), config="part", split="test", folder=None)
    start = "wmdp: its files are in no folder, and duet-unlearn/none-such (part, test) cannot be had: "
    assert caught.value.message.startswith(start)
    assert "\n" not in caught.value.message
    download = "hf download --repo-type dataset duet-unlearn/none-such --local-dir DATA/wmdp"
    assert caught.value.hint == f"{download}, then set DUET_DATA (or data.folder) to DATA"


def test_what_is_on_no_hub_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(Publisher("potter", None, "query, answer"), ("a",), config="a", split="a", folder=str(tmp_path))
    assert caught.value.message == f"potter: {tmp_path} holds no potter/, and they are not on the hub"
    assert caught.value.hint == f"put JSON lines into {tmp_path}/potter; query, answer"


def test_references_and_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [scheme_of(text) for text in ("tofu:forget10", "mmlu:", "lab:base", "tofu", "c:/x", "a.jsonl")] == [
        "tofu",
        "mmlu",
        None,
        None,
        None,
        None,
    ]
    monkeypatch.setenv("DUET_DATA", "there")
    assert (home(None), home("here")) == (Path("there"), Path("here"))
    monkeypatch.delenv("DUET_DATA")
    assert home(None) is None
