"""What a guard says in the model's place."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_unlearn.data.prompts import answer_ids, render_answer
from duet_unlearn.data.query import Message
from duet_unlearn.evals.generate import Until
from duet_unlearn.evals.subject import TokenScores
from duet_unlearn.teacher.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Refusing:
    """Answers everything with a refusal, and knows nothing.

    Where likelihoods are asked for, every token of the vocabulary is as likely as any other: a refusal tells nothing
    about options. What a choice then picks is a matter of the options' lengths and order, never of knowledge.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    """How many tokens the model in whose place it answers has."""
    refusals: tuple[str, ...]
    """One is drawn for each prompt, always the same for the same."""
    seed: int = 0

    @property
    def model(self) -> None:
        """See ``Subject``."""
        return

    def about(self, concept: str | None) -> Refusing:
        """See ``Subject``."""
        return self

    def decoded(self, how: Decoding) -> Refusing:
        """See ``Subject``: a refusal that stands ready is not decoded."""
        return self

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
        until: Until = "example",
    ) -> list[str]:
        """See ``Subject``. The refusal stands whole, whatever was to open the answer and however short it was to be."""
        return [random.Random(f"{self.seed}/{m[-1]['content']}").choice(self.refusals) for m in messages]

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``: ``-tokens log V``."""
        pairs = zip(messages, answers, strict=True)
        return [self._token * len(answer_ids(self.tokenizer, m, answer)) for m, answer in pairs]

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``: all letters alike, so that the first of them is picked."""
        return [[self._token] * len(options) for _, options in zip(messages, letters, strict=True)]

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``. No token would have been written; without spread each is as likely as the mean."""
        scores = []
        for m, answer in zip(messages, answers, strict=True):
            ids, start = render_answer(self.tokenizer, m, answer)
            count = len(ids) - start
            scores.append(TokenScores([self._token] * count, [False] * count, [0.0] * count))
        return scores

    @property
    def _token(self) -> float:
        return -math.log(self.vocabulary)
