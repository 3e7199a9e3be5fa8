"""Scripts that put no space between words, so that what is a word in them cannot be read off."""

from __future__ import annotations

UNSPACED = (
    "\u0e01-\u0e4e"  # Thai
    "\u0e81-\u0ece"  # Lao
    "\u1000-\u109d"  # Burmese
    "\u1780-\u17d3"  # Khmer
    "\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\uac00-\ud7a3"  # Hangul, whose particles follow any word without a space
)
"""Ranges of letters for a set in a regular expression."""
SPACED = rf"[^\W_{UNSPACED}]"
"""A letter or digit of all other scripts, as a regular expression: next to one of its kind no word ends."""
