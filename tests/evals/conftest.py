"""The tiny Llama and the tokeniser as fixtures."""

from __future__ import annotations

from small import model, tokenizer

__all__ = ["model", "tokenizer"]
