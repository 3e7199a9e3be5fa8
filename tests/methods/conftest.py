"""The tiny Llama and the tokeniser of the evaluation's tests."""

from __future__ import annotations

from small import model, tokenizer

__all__ = ["model", "tokenizer"]
