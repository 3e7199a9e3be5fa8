"""A model as its deployer serves it: behind turns that the asker does not see, or while hooks alter what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duet_unlearn.data.prompts import behind
from duet_unlearn.data.query import Message
from duet_unlearn.evals.generate import Until
from duet_unlearn.evals.subject import ModelSubject, TokenScores
from duet_unlearn.teacher.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Altering = Callable[["PreTrainedModel"], AbstractContextManager[None]]
"""Alters a model for as long as it is asked."""


def unaltered(_model: PreTrainedModel) -> AbstractContextManager[None]:
    """The model as it is."""
    return nullcontext()


@dataclass(frozen=True)
class Deployed:
    """A model with something around it; its weights are not changed."""

    voice: ModelSubject
    shots: tuple[Message, ...] = ()
    """Earlier questions and answers, in front of what is asked."""
    altering: Altering = unaltered

    @property
    def name(self) -> str:
        """See ``Subject``."""
        return self.voice.name

    @property
    def model(self) -> None:
        """See ``Subject``."""
        return

    def about(self, concept: str | None) -> Deployed:
        """See ``Subject``."""
        return replace(self, voice=self.voice.about(concept))

    def decoded(self, how: Decoding) -> Deployed:
        """See ``Subject``."""
        return replace(self, voice=self.voice.decoded(how))

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
        until: Until = "example",
    ) -> list[str]:
        """See ``Subject``."""
        with self.altering(self.voice.model):
            return self.voice.generate(
                self._shown(messages),
                prefill=prefill,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                until=until,
            )

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``."""
        with self.altering(self.voice.model):
            return self.voice.logps(self._shown(messages), answers, batch_size=batch_size)

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``."""
        with self.altering(self.voice.model):
            return self.voice.letter_logps(self._shown(messages), letters, batch_size=batch_size)

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``."""
        with self.altering(self.voice.model):
            return self.voice.token_scores(self._shown(messages), answers, batch_size=batch_size)

    def _shown(self, messages: Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
        """Behind the shots, once where the same object stands several times: a question with its options."""
        if not self.shots:
            return list(messages)
        shown = {id(m): behind(m, self.shots) for m in messages}
        return [shown[id(m)] for m in messages]
