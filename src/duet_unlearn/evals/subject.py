"""What is asked: a model, with or without a prefix, behind one interface: one code measures them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from duet_unlearn.data.prompts import Prefix, answer_ids, behind, render, render_answer
from duet_unlearn.data.query import Message
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import Until, generate, marked
from duet_unlearn.teacher.decoding import GREEDY, Decoding, evaluating, pad_id
from duet_unlearn.teacher.shared import Answers, answer_logits, next_logits
from duet_unlearn.tensors import sum_by_row, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 2**28
"""Numbers of one chunk of logits in fp32, of which a few are held at a time: 1 GiB each."""
SMALLEST_SIGMA = 1e-6
"""Standard deviations below it are rounding: a model that is certain."""


class TokenScores(NamedTuple):
    """How a model takes an answer, token by token, the end token among them."""

    logps: list[float]
    """Log-probability of each token, in nats."""
    greedy: list[bool]
    """Whether the model, shown all before it, would have written that token."""
    standardised: list[float]
    """``(log p - mu) / sigma``, mean and standard deviation of log p under the predicted distribution (min-k++)."""


class Subject(Protocol):
    """Something that answers: base, base with a prefix, oracle, student."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> PreTrainedModel | None:
        """The weights, where unlearning changed them; None where it stands beside them (a prefix, a detector, noise, a
        second model): who has the weights has the knowledge then, and an attack on weights does not apply."""
        ...

    def about(self, concept: str | None) -> Subject:
        """The subject as it speaks of a concept: one with a prefix names it, others are themselves."""
        ...

    def decoded(self, how: Decoding) -> Subject:
        """The subject with answers that are made in another way than greedily; likelihoods are what they were."""
        ...

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
        until: Until = "example",
    ) -> list[str]:
        """Answers without their prefill: greedy ones, where ``decoded`` said nothing else."""
        ...

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """Summed log-probability of each answer's tokens after its prompt, without the end token, in nats."""
        ...

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """Per question, the log-probability that the answer begins with each letter, in nats."""
        ...

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """Each answer's tokens and its end token after its prompt, as the model takes them."""
        ...


@dataclass(frozen=True)
class ModelSubject:
    """A causal language model; a prefix is rendered into every prompt."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prefix: Prefix | None = None
    mark: int = 0
    """Added to the ids of a prompt's tokens, all but the last, never to an answer's: by such ids ``corrupting`` knows
    what to corrupt."""
    how: Decoding = GREEDY

    def about(self, concept: str | None) -> ModelSubject:
        """See ``Subject``."""
        return replace(self, prefix=self.prefix.about(concept)) if self.prefix and concept else self

    def decoded(self, how: Decoding) -> ModelSubject:
        """See ``Subject``."""
        return replace(self, how=how)

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
        return generate(
            self.model,
            self.tokenizer,
            messages,
            prefix=self.prefix,
            prefill=prefill,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            until=until,
            mark=self.mark,
            how=self.how,
        )

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``. Prompt and answer are joined as ids, so the answer's first token is never lost."""
        prompts = self._prompts(messages)
        tails = [answer_ids(self.tokenizer, m, a) for m, a in zip(messages, answers, strict=True)]
        rows = [(head + tail, len(head)) for head, tail in zip(prompts, tails, strict=True)]
        values = [0.0] * len(rows)
        with evaluating(self.model):
            for indices, at in self._answers(rows, batch_size):
                sums_B = sum_by_row(token_logps(at.logits_NV, at.labels_N), at.rows_N, len(indices))
                for index, value in zip(indices, sums_B.tolist(), strict=True):
                    values[index] = value
        return values

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``."""
        pairs = zip(messages, answers, strict=True)
        rendered = [render_answer(self.tokenizer, m, a, prefix=self.prefix) for m, a in pairs]
        rows = [(marked(ids, start, self.mark), start) for ids, start in rendered]
        scores = [TokenScores([], [], []) for _ in rows]
        with evaluating(self.model):
            for indices, at in self._answers(rows, batch_size):
                taken = _token_scores(at.logits_NV, at.labels_N)
                for row, *token in zip(at.rows_N.tolist(), *taken, strict=True):
                    for numbers, number in zip(scores[indices[row]], token, strict=True):
                        numbers.append(number)
        return scores

    def _answers(self, rows: Sequence[tuple[list[int], int]], batch_size: int) -> Iterator[tuple[list[int], Answers]]:
        """Batch by batch, indices of rows (ids, where the answer starts) and the model's words on their answers."""
        return answer_logits(self.model, rows, padding_id=pad_id(self.tokenizer), batch_size=batch_size)

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``. A letter's token is the one by which its rendered answer (" A" or "A") differs.

        Tokens that all the letters of a question open with (a lone space) are given, not scored.

        Raises:
            UserError: two letters of a question cannot be told apart by one token.
        """
        kinds = [(m[0]["role"], tuple(options)) for m, options in zip(messages, letters, strict=True)]
        firsts = dict(zip(kinds, messages, strict=True))  # all of a kind have the same letters' tokens
        tokens = {kind: self._letter_tokens(m, kind[1]) for kind, m in firsts.items()}
        parts = [tokens[kind] for kind in kinds]
        prompts = [prompt + common for prompt, (common, _) in zip(self._prompts(messages), parts, strict=True)]
        values: list[list[float]] = [[] for _ in prompts]
        with evaluating(self.model):
            padding_id = pad_id(self.tokenizer)
            for indices, logits_BV in next_logits(self.model, prompts, padding_id=padding_id, batch_size=batch_size):
                logps_BV = torch.log_softmax(logits_BV.float(), dim=-1).cpu()
                for row, index in enumerate(indices):
                    values[index] = logps_BV[row, parts[index][1]].tolist()
        return values

    def _prompts(self, messages: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Each rendered, once where the same object stands several times: a question with its options."""
        rendered = {id(m): m for m in messages}
        ids = {key: render(self.tokenizer, m, prefix=self.prefix) for key, m in rendered.items()}
        whole = {key: marked(row, len(row), self.mark) for key, row in ids.items()}
        return [whole[id(m)] for m in messages]

    def _letter_tokens(self, messages: Sequence[Message], letters: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens that all letters open with, and the next token of each."""
        ids = [answer_ids(self.tokenizer, messages, letter) for letter in letters]
        columns = list(zip(*ids, strict=False))
        same = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
        if same == len(columns) or len(set(columns[same])) < len(letters):
            raise UserError(
                f"{self.name}: one token does not tell the letters {', '.join(letters)} apart",
                "measure this set with the protocol `text`, which compares the options themselves",
            )
        return ids[0][:same], list(columns[same])


def _token_scores(logits_NV: Tensor, labels_N: Tensor) -> TokenScores:
    """The three numbers of N tokens, in fp32, chunk by chunk. A distribution without spread leaves a standardised 0."""
    scores, size = TokenScores([], [], []), max(1, CHUNK // logits_NV.shape[-1])
    for chunk in zip(logits_NV.split(size), labels_N.split(size), strict=True):
        more = _chunk_scores(*chunk)
        scores.logps.extend(more.logps)
        scores.greedy.extend(more.greedy)
        scores.standardised.extend(more.standardised)
    return scores


def _chunk_scores(logits_NV: Tensor, labels_N: Tensor) -> TokenScores:
    logps_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    probs_NV, logps_N = logps_NV.exp(), logps_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    mu_N = (probs_NV * logps_NV).sum(-1)
    sigma_N = (probs_NV * (logps_NV - mu_N[:, None]).square()).sum(-1).sqrt()
    standardised_N = (logps_N - mu_N) / sigma_N.clamp_min(SMALLEST_SIGMA)
    return TokenScores(logps_N.tolist(), (logits_NV.argmax(-1) == labels_N).tolist(), standardised_N.tolist())


Altering = Callable[["PreTrainedModel"], AbstractContextManager[None]]
"""Alters a model for as long as it is asked."""


def unaltered(_model: PreTrainedModel) -> AbstractContextManager[None]:
    """The model as it is."""
    return nullcontext()


@dataclass(frozen=True)
class Deployed:
    """A model with something around it; its weights are not changed."""

    subject: ModelSubject
    shots: tuple[Message, ...] = ()
    """Earlier questions and answers, in front of what is asked."""
    altering: Altering = unaltered

    @property
    def name(self) -> str:
        """See ``Subject``."""
        return self.subject.name

    @property
    def model(self) -> None:
        """See ``Subject``."""
        return

    def about(self, concept: str | None) -> Deployed:
        """See ``Subject``."""
        return replace(self, subject=self.subject.about(concept))

    def decoded(self, how: Decoding) -> Deployed:
        """See ``Subject``."""
        return replace(self, subject=self.subject.decoded(how))

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
        with self.altering(self.subject.model):
            return self.subject.generate(
                self._shown(messages),
                prefill=prefill,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                until=until,
            )

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``."""
        with self.altering(self.subject.model):
            return self.subject.logps(self._shown(messages), answers, batch_size=batch_size)

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``."""
        with self.altering(self.subject.model):
            return self.subject.letter_logps(self._shown(messages), letters, batch_size=batch_size)

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``."""
        with self.altering(self.subject.model):
            return self.subject.token_scores(self._shown(messages), answers, batch_size=batch_size)

    def _shown(self, messages: Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
        """Behind the shots, once where the same object stands several times: a question with its options."""
        if not self.shots:
            return list(messages)
        shown = {id(m): behind(m, self.shots) for m in messages}
        return [shown[id(m)] for m in messages]
