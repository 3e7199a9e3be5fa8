"""Queries from a corpus: a model writes questions about its chunks; what is usable is chosen evenly over it."""

from duet_unlearn.queries.extract import Coverage, ExtractConfig, extract_queries

__all__ = ["Coverage", "ExtractConfig", "extract_queries"]
