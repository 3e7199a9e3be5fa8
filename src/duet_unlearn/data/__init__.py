"""Queries, how they become token ids, and how examples become batches."""
