"""What is asked: a model, with or without a prefix, behind one interface: one code measures them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from duet_unlearn.data.prompts import Prefix, answer_ids, render
from duet_unlearn.data.query import Message
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import generate
from duet_unlearn.teacher.decode import batches, evaluating, next_logits, pad_id
from duet_unlearn.tensors import logits_at, pad, sum_by_row, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Subject(Protocol):
    """Something that answers: base, base with a prefix, oracle, student."""

    @property
    def name(self) -> str: ...

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
    ) -> list[str]:
        """Greedy answers, without their prefill."""
        ...

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """Summed log-probability of each answer's tokens after its prompt, without the end token, in nats."""
        ...

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """Per question, the log-probability that the answer begins with each letter, in nats."""
        ...


@dataclass(frozen=True)
class ModelSubject:
    """A causal language model; a prefix is rendered into every prompt."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prefix: Prefix | None = None

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
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
        )

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``. Prompt and answer are joined as ids, so the answer's first token is never lost."""
        prompts = [render(self.tokenizer, m, prefix=self.prefix) for m in messages]
        tails = [answer_ids(self.tokenizer, m, a) for m, a in zip(messages, answers, strict=True)]
        rows = [head + tail for head, tail in zip(prompts, tails, strict=True)]
        values = [0.0] * len(rows)
        with evaluating(self.model):
            for indices in batches([len(row) for row in rows], batch_size=batch_size):
                batch = self._logps_batch([rows[i] for i in indices], [len(prompts[i]) for i in indices])
                for index, value in zip(indices, batch, strict=True):
                    values[index] = value
        return values

    def _logps_batch(self, rows: list[list[int]], starts: list[int]) -> list[float]:
        """Sums over columns ``start - 1 .. end - 2``, whose logits predict the answer's tokens."""
        device = self.model.device
        padded = pad(rows, pad_id(self.tokenizer), side="right")
        spots = [(r, c - 1, row[c]) for r, row in enumerate(rows) for c in range(starts[r], len(row))]
        rows_N, cols_N, labels_N = torch.tensor(spots, dtype=torch.long, device=device).reshape(-1, 3).unbind(-1)
        logits_NV = logits_at(self.model, padded.ids_BT.to(device), padded.mask_BT.to(device), rows_N, cols_N)
        return sum_by_row(token_logps(logits_NV, labels_N), rows_N, len(rows)).tolist()

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``. A letter's token is the one by which its rendered answer (" A" or "A") differs.

        Tokens that all the letters of a question open with (a lone space) are given, not scored.

        Raises:
            UserError: two letters of a question cannot be told apart by one token.
        """
        parts = [self._letter_tokens(m, options) for m, options in zip(messages, letters, strict=True)]
        prompts = [
            render(self.tokenizer, m, prefix=self.prefix) + lead for m, (lead, _) in zip(messages, parts, strict=True)
        ]
        values: list[list[float]] = [[] for _ in prompts]
        with evaluating(self.model):
            filler = pad_id(self.tokenizer)
            for indices, logits_BV in next_logits(self.model, prompts, filler=filler, batch_size=batch_size):
                logps_BV = torch.log_softmax(logits_BV.float(), dim=-1).cpu()
                for row, index in enumerate(indices):
                    values[index] = logps_BV[row, parts[index][1]].tolist()
        return values

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
