"""From a model's answer to questions: lists with numbers, bullets or quotes, JSON, one line or many."""

from __future__ import annotations

import json
import re

THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
MARK = re.compile(r"^(?:[-*+\u2022\u2013]\s+|\(?\d{1,3}[.):]\s*|(?:Q|Question)\s*\d*\s*[.:)]\s*)", re.IGNORECASE)
ANSWER = re.compile(r"(?<=[?.])\s*(?:\(?(?:A|Answer)\s*[:)].*|\([^()]*\))$", re.IGNORECASE)
"""What stands behind a question on its line: its answer, or a remark in brackets."""
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
WRAPPING = "\"'`*_\u201c\u201d\u2018\u2019\u00ab\u00bb, "


def parse_questions(answer: str) -> list[str]:
    """The lines of an answer, each without its number, bullet, quotes and answer; of a JSON list, its items.

    Whether a line is a question is for ``filters`` to say.
    """
    text = THOUGHT.sub("", answer).strip()
    listed = _json_items(text)
    lines = text.splitlines() if listed is None else listed
    return [question for line in lines if (question := _bare(line))]


def _json_items(text: str) -> list[str] | None:
    """The items of a JSON list, even of one that was cut off; None where there is no list."""
    start = text.find("[")
    if start < 0 or not re.fullmatch(r"\s*(?:```\w*\s*)?", text[:start]):
        return None
    try:
        found = json.loads(text[start : text.rfind("]") + 1])
    except json.JSONDecodeError:
        return QUOTED.findall(text[start:])
    return [str(item.get("question", "")) if isinstance(item, dict) else str(item) for item in found]


def _bare(line: str) -> str:
    line = line.strip().strip(WRAPPING).strip()
    while found := MARK.match(line):
        line = line[found.end() :].strip(WRAPPING)
    return "" if line.startswith("```") else ANSWER.sub("", line).strip(WRAPPING)
