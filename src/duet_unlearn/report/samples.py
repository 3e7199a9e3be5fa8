"""Which answers a page shows: chosen by a rule that cannot see them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from duet_unlearn.report.read import RunData

NUM_SAMPLES = 20
SHOWN = ("base", "prefix", "student")
RULE = (
    "Every k-th question of each set in order of its id hash (SHA-256). The {num} questions are shared out "
    "over the sets as evenly as they go, and k is a set's size divided by its share. "
    "No answer was looked at to choose them."
)


def rule(num: int = NUM_SAMPLES) -> str:
    """The rule in words, for the page."""
    return RULE.format(num=num)


def every_kth(ids: Sequence[str], num: int) -> list[str]:
    """``num`` of the ids, or all: every k-th in order of its SHA-256, k = len(ids) // num."""
    ordered = sorted(set(ids), key=lambda query_id: hashlib.sha256(query_id.encode()).hexdigest())
    num = min(num, len(ordered))
    return ordered[:: len(ordered) // num][:num] if num else []


def shares(sizes: Mapping[str, int], num: int) -> dict[str, int]:
    """How many questions each set shows: one a set in turn, until ``num`` are given or all questions are."""
    given = dict.fromkeys(sizes, 0)
    while sum(given.values()) < min(num, sum(sizes.values())):
        for name in sizes:
            if given[name] < sizes[name] and sum(given.values()) < num:
                given[name] += 1
    return given


def pick(run: RunData, num: int = NUM_SAMPLES) -> list[dict[str, Any]]:
    """The chosen questions, in the order of the table's columns, each with the answers of ``SHOWN``."""
    found = {subject: run.samples.get(subject, ()) for subject in SHOWN}
    rows = {subject: {(row["set"], row["id"]): row for row in found[subject]} for subject in SHOWN}
    asked = rows["student"] or rows["base"]
    ids: dict[str, list[str]] = {column.name: [] for column in run.columns}
    for set_name, query_id in [key for key, row in asked.items() if "output" in row]:
        ids.setdefault(set_name, []).append(query_id)
    given = shares({name: len(set(members)) for name, members in ids.items()}, num)
    chosen = [(name, query_id) for name in ids for query_id in every_kth(ids[name], given[name])]
    titles = {column.name: column.title for column in run.columns}
    return [
        {
            "set": titles.get(key[0], key[0]),
            "prompt": asked[key].get("prompt", ""),
            "right": asked[key].get("value") or asked[key].get("answer"),
            "answers": [(subject, rows[subject].get(key)) for subject in SHOWN],
        }
        for key in chosen
    ]
