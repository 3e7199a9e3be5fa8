"""Queries, how they become token ids, and how examples become batches."""

from duet_unlearn.data.examples import Batch, Example, Source, collate, epochs_source
from duet_unlearn.data.jsonl import read_queries, write_queries
from duet_unlearn.data.prompts import Prefix, render, render_answer, render_query, with_prefix
from duet_unlearn.data.query import Message, Query

__all__ = [
    "Batch",
    "Example",
    "Message",
    "Prefix",
    "Query",
    "Source",
    "collate",
    "epochs_source",
    "read_queries",
    "render",
    "render_answer",
    "render_query",
    "with_prefix",
    "write_queries",
]
