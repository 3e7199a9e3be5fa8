"""Metrics of an answer's text alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

FLUENCY_WEIGHTS: Mapping[int, float] = {2: 2 / 3, 3: 4 / 3}
"""Length of n-grams -> weight of their entropy."""
TOKEN = re.compile(r"\w+|[^\w\s]")


def fluency(text: str) -> float:
    """``1/2 (2/3 H_2 + 4/3 H_3)``, H_n the entropy in bits of the text's n-grams; repetition makes it small.

    ROME (arXiv 2202.05262), and RWKU after it. Tokens are words and single punctuation marks; ROME's come from NLTK,
    which parts contractions elsewhere, so compare numbers that one tool made. A text of two tokens has H_3 = 0.
    """
    tokens = TOKEN.findall(text)
    weighted = [weight * ngram_entropy(tokens, n) for n, weight in FLUENCY_WEIGHTS.items()]
    return math.fsum(weighted) / len(weighted)


def ngram_entropy(tokens: Sequence[Hashable], n: int) -> float:
    """Entropy of the tokens' n-grams in bits; 0 where there are none."""
    counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())
