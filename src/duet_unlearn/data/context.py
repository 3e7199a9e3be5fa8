"""A deployer's own turns: the system prompt and the earlier conversation that stand before what a user asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from duet_unlearn.data.query import Message, Query

MARK = "/context"
"""Behind the id of a query that is asked under the deployer's turns."""


def in_context(query: Query, context: Sequence[Message]) -> Query:
    """The query behind the deployer's turns, with an id of its own.

    A query with a system turn keeps it: the deployer's text stands in front of it, as a prefix does.
    """
    turns, own = [dict(turn) for turn in context], list(query.messages)
    if turns and turns[0]["role"] == own[0]["role"] == "system":
        turns[0]["content"] += f"\n{own.pop(0)['content']}"
    elif own[0]["role"] == "system":
        turns.insert(0, own.pop(0))
    return replace(query, id=query.id + MARK, messages=(*turns, *own))


def takes_context(query: Query) -> bool:
    """Whether a query can stand behind other turns: raw text cannot."""
    return query.messages[0]["role"] != "text"


def with_context(queries: Sequence[Query], context: Sequence[Message]) -> tuple[Query, ...]:
    """All queries, and each again behind the deployer's turns, where there are any."""
    return (*queries, *(in_context(query, context) for query in queries if context and takes_context(query)))
