"""Query files, right and wrong: every error names the file and the line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from duet_unlearn.data.files import atomic, atomic_write_json, atomic_write_text, read_text
from duet_unlearn.data.query import Query, read_queries, write_queries
from duet_unlearn.errors import UserError

GOOD = '{"question": "Where?"}'
FULL = Query(
    id="a/1",
    messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wo wohnt Zoë?\nGenau?"}),
    answer="In Tarn.",
    value="Tarn",
    choices=("Tarn", "Gosh"),
    source="story",
    split="train",
)


def write(folder: Path, text: str, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def failure(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_queries(path)
    assert caught.value.hint
    return caught.value


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    queries = [FULL, Query("b", ({"role": "text", "content": "Question: Where?\nAnswer:"},))]
    write_queries(tmp_path / "new" / "q.jsonl", queries)
    assert read_queries(tmp_path / "new" / "q.jsonl") == queries
    assert '{"id": "b", "messages"' in (tmp_path / "new" / "q.jsonl").read_text().splitlines()[1]


def test_a_question_alone_is_enough_and_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, f'{GOOD}\n\n{{"question": "Who?", "answer": "Mira", "id": "mine"}}\n')
    first, second = read_queries(path)
    assert first == Query("q.jsonl:1", ({"role": "user", "content": "Where?"},))
    assert (second.id, second.answer, second.text) == ("mine", "Mira", "Who?")


def test_a_number_as_id_or_request_is_its_text(tmp_path: Path) -> None:
    (query,) = read_queries(write(tmp_path, '{"question": "Where?", "id": 0, "request": 12}'))
    assert (query.id, query.request) == ("0", "12")


def test_a_line_break_inside_a_text_is_no_line_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "one\u2028two"}\n' + GOOD)
    assert [query.id for query in read_queries(path)] == ["q.jsonl:1", "q.jsonl:2"]


def test_csv_with_a_question_column(tmp_path: Path) -> None:
    path = write(tmp_path, 'question,answer,value\n"Where, and\nsince when?","In Tarn.",Tarn\nWho?,,\n', "q.csv")
    first, second = read_queries(path)
    assert (first.text, first.answer, first.value) == ("Where, and\nsince when?", "In Tarn.", "Tarn")
    assert (second.text, second.answer, second.value) == ("Who?", None, None)


@pytest.mark.parametrize(("text", "name"), [(GOOD, "q.jsonl"), ("question\nWhere?\n", "q.csv")])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, text: str, name: str) -> None:
    assert read_queries(write(tmp_path, "\ufeff" + text, name))[0].text == "Where?"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'question': 'Where?'}", "is not JSON"),
        ('{"question": "Where?"', "is not JSON"),
        ('["Where?"]', "is no JSON object"),
        ("{}", "has no messages"),
        ('{"question": "  "}', "has no messages"),
        ('{"question": 3}', "has no messages"),
        ('{"messages": []}', "has no messages"),
        ('{"messages": "Where?"}', "has no messages"),
        ('{"messages": ["Where?"]}', "a message needs a role"),
        ('{"messages": [{"role": "human", "content": "Where?"}]}', "a message needs a role"),
        ('{"messages": [{"role": "user", "content": ""}]}', "a message needs a role"),
        ('{"messages": [{"role": "user"}]}', "a message needs a role"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "the last message is not the user's",
        ),
        (
            '{"messages": [{"role": "text", "content": "a"}, {"role": "user", "content": "b"}]}',
            "a message of role text has others beside it",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "text", "content": "b"}]}',
            "a message of role text has others beside it",
        ),
        ('{"question": "Where?", "choices": "Tarn"}', "choices is no list of texts"),
        ('{"question": "Where?", "choices": [1]}', "choices is no list of texts"),
        ('{"question": "Where?", "answer": 4}', "answer is no text"),
        ('{"question": "Where?", "request": true}', "request is no text"),
        ('{"question": "Where?", "id": "one"}', "id 'one' stands at line 1 already"),
    ],
)
def test_line_17_is_named(tmp_path: Path, line: str, problem: str) -> None:
    first = '{"question": "Where?", "id": "one"}'
    path = write(tmp_path, "\n".join([first, *[GOOD] * 15, line, GOOD]))
    assert failure(path).message.startswith(f"{path}:17: {problem}")


def test_files_that_are_not_there_empty_or_something_else(tmp_path: Path) -> None:
    assert "no such file" in failure(tmp_path / "none.jsonl").message
    assert "is a folder" in failure(tmp_path).message
    assert "is empty" in failure(write(tmp_path, "\n \n")).message
    assert "has no queries" in failure(write(tmp_path, "question\n", "q.csv")).message
    assert "q.csv:1: has no column `question`" in failure(write(tmp_path, "a,b\n1,2\n", "q.csv")).message
    (tmp_path / "q.jsonl").write_bytes(b'{"question": "\xff"}')
    assert "is not UTF-8" in failure(tmp_path / "q.jsonl").message


def test_a_csv_question_that_is_missing_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "question,answer\nWhere?,Tarn\n,Gosh\n", "q.csv")
    assert failure(path).message.startswith(f"{path}:3: has no messages")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk full while writing"),
        (errno.EDQUOT, "disk full while writing"),
        (errno.EACCES, "not allowed to write"),
        (errno.EROFS, "not allowed to write"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, number: int, words: str) -> None:
    path = write(tmp_path, "old", "kept.txt")

    def torn(temporary: Path) -> None:
        temporary.write_text("half of the ne")
        raise OSError(number, "no")

    with pytest.raises(UserError, match=words):
        atomic(path, torn)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_other_failures_keep_their_traceback(tmp_path: Path) -> None:
    def torn(temporary: Path) -> None:
        raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"):
        atomic(tmp_path / "a", torn)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    atomic_write_json(path, {"a": "ä"})
    atomic_write_json(path, [1.5, None])
    assert read_text(path) == "[\n 1.5,\n null\n]\n"
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(path, float("nan"))
    atomic_write_text(path, "b")
    assert os.listdir(path.parent) == ["a.json"]
