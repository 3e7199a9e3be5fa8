"""Reading a corpus: spans are exact, and every kind of bad file is two clear lines."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from pdf_file import write_pdf

from duet_unlearn.data.corpus import LONGEST, Document, read_corpus, split
from duet_unlearn.errors import UserError

TEXT = """Mira Bol lives in Tarn. She keeps an owl!

Her friend said: "Is it Oda?" Nobody knew
the answer. Dr. Nell came at 3.5 metres.
"""


def failure(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_corpus(path)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_a_size_of_1_makes_a_chunk_of_every_sentence_with_its_place() -> None:
    chunks = split(Document("a.txt", TEXT), size=1)
    assert [chunk.text for chunk in chunks][:3] == [
        "Mira Bol lives in Tarn.",
        "She keeps an owl!",
        'Her friend said: "Is it Oda?"',
    ]
    assert all(TEXT[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert chunks[1].source == "a.txt:24-41"
    assert chunks[3].text == "Nobody knew\nthe answer."
    assert chunks[3].lines == (3, 4)
    assert "3.5 metres." in chunks[-1].text


@pytest.mark.parametrize("size", [1, 30, 60, 200, 5000])
def test_chunks_hold_every_word_once_and_no_more_than_their_size(size: int) -> None:
    text = TEXT * 5
    chunks = split(Document("a.txt", text), size=size)
    assert " ".join(chunk.text for chunk in chunks).split() == text.split()
    longest = max(len(chunk.text) for chunk in split(Document("a.txt", text), size=1))
    assert all(len(chunk.text) <= max(size, longest) for chunk in chunks)


def test_a_heading_begins_a_chunk_and_a_text_without_sentences_is_cut_at_spaces() -> None:
    markdown = Document("a.md", "# Tarn\nA town.\n\n## Gosh\nAnother town.\n")
    assert [chunk.text for chunk in split(markdown, size=1000)] == ["# Tarn\nA town.", "## Gosh\nAnother town."]
    endless = Document("a.txt", "word " * 3000)
    pieces = [chunk.text for chunk in split(endless, size=100)]
    assert max(map(len, pieces)) <= LONGEST
    assert set(" ".join(pieces).split()) == {"word"}
    assert split(Document("a.txt", "... \n\n ---"), size=10) == []


def test_a_folder_is_read_in_order_of_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.MD").write_text("# Two\nIt is two.", encoding="utf-8")
    (tmp_path / "a.txt").write_text("One.", encoding="utf-8-sig")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    write_pdf(tmp_path / "c.pdf", ["Page one.", None, "Page three."])
    found = [(document.name, document.text) for document in read_corpus(tmp_path)]
    assert found == [
        ("a.txt", "One."),
        ("b/two.MD", "# Two\nIt is two."),
        ("c.pdf:p1", "Page one."),
        ("c.pdf:p3", "Page three."),
    ]


def test_rows_bring_requests_and_concepts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    rows = [{"request": "r-1", "concept": "Mira Bol", "text": "She lives."}, {"text": "Nobody asked."}]
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    one, two = read_corpus(path)
    assert one == Document("r.jsonl:1", "She lives.", request="r-1", concept="Mira Bol")
    assert two == Document("r.jsonl:3", "Nobody asked.")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "r.jsonl:2: is not JSON"),
        ('["a"]', "r.jsonl:2: has no text"),
        ('{"text": "  "}', "r.jsonl:2: has no text"),
        ('{"text": "a", "request": 7}', "r.jsonl:2: request is no text"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "r.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n', encoding="utf-8")
    assert said in failure(tmp_path / "r.jsonl").message


def test_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n", encoding="utf-8")
    assert "is empty" in failure(tmp_path / "blank.txt").message
    (tmp_path / "none").mkdir()
    assert "holds no text" in failure(tmp_path / "none").message
    assert "no such file" in failure(tmp_path / "nowhere").message
    (tmp_path / "a.docx").write_bytes(b"PK")
    assert ".pdf" in failure(tmp_path / "a.docx").hint


def test_a_wrong_encoding_is_named_by_line_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes("one\ntwo\ncaf\u00e9".encode("cp1252"))
    error = failure(path)
    assert "old.txt:3: is not UTF-8 text (byte 0xE9)" in error.message
    assert "iconv -f WINDOWS-1252 -t UTF-8 old.txt" in error.hint
    path.write_bytes("one\ntwo".encode("utf-16"))
    assert "iconv -f UTF-16" in failure(path).hint


def test_a_scan_is_told_apart_from_a_pdf_with_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pdf(tmp_path / "scan.pdf", [None, None])
    error = failure(tmp_path / "scan.pdf")
    assert "no text layer on any of its 2 pages" in error.message
    assert "ocrmypdf scan.pdf" in error.hint
    write_pdf(tmp_path / "half.pdf", ["Mira Bol lives in Tarn.", None])
    with caplog.at_level(logging.WARNING, logger="duet_unlearn"):
        assert [document.text for document in read_corpus(tmp_path / "half.pdf")] == ["Mira Bol lives in Tarn."]
    assert "1 of 2 pages have no text" in caplog.text
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    assert "cannot be read as a PDF" in failure(tmp_path / "broken.pdf").message


def test_a_locked_pdf_is_said(tmp_path: Path) -> None:
    import pypdf

    write_pdf(tmp_path / "open.pdf", ["Mira Bol lives in Tarn."])
    writer = pypdf.PdfWriter(clone_from=tmp_path / "open.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    assert "locked with a password" in failure(tmp_path / "locked.pdf").message


def test_without_pypdf_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pdf(tmp_path / "a.pdf", ["Text."])
    monkeypatch.setitem(sys.modules, "pypdf", None)
    error = failure(tmp_path / "a.pdf")
    assert "needs the package pypdf" in error.message
    assert "duet-unlearn[pdf]" in error.hint
