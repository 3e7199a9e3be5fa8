"""Who writes the questions: a local model, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from duet_unlearn.data.prompts import render
from duet_unlearn.errors import UserError
from duet_unlearn.lab.references import model_path
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id
from duet_unlearn.tensors import batches, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP_P = 0.95
"""Sampling leaves out the least likely twentieth: what comes from there is seldom a question."""


class Writer(Protocol):
    """Something that answers prompts."""

    @property
    def batch_size(self) -> int:
        """How many prompts it is given at a time."""
        ...

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int, max_new_tokens: int) -> list[str]:
        """An answer to each prompt; `temperature` 0 is greedy."""
        ...


@dataclass(frozen=True)
class LocalWriter:
    """A causal language model with a chat template."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int, max_new_tokens: int) -> list[str]:
        """See ``Writer``. The same prompts in the same order with the same seed give the same answers."""
        rows = [render(self.tokenizer, ({"role": "user", "content": prompt},)) for prompt in prompts]
        if temperature == 0:
            found = greedy(
                self.model,
                rows,
                ends=end_ids(self.model, self.tokenizer),
                filler=pad_id(self.tokenizer),
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_size,
            )
        else:
            found = self._sample(rows, temperature, seed, max_new_tokens)
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in found]

    def _sample(self, rows: list[list[int]], temperature: float, seed: int, max_new_tokens: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in rows]
        cards = [self.model.device] if self.model.device.type == "cuda" else []
        with evaluating(self.model), torch.random.fork_rng(cards):
            torch.manual_seed(seed)
            for indices in batches([len(row) for row in rows], batch_size=self.batch_size):
                padded = pad([rows[index] for index in indices], pad_id(self.tokenizer), side="left")
                ids_BT = self.model.generate(  # type: ignore[operator]
                    padded.ids_BT.to(self.model.device),
                    attention_mask=padded.mask_BT.to(self.model.device),
                    do_sample=True,
                    temperature=temperature,
                    top_p=TOP_P,
                    top_k=0,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=pad_id(self.tokenizer),
                    eos_token_id=sorted(end_ids(self.model, self.tokenizer)),
                )
                for index, row in zip(indices, ids_BT[:, padded.ids_BT.shape[1] :].tolist(), strict=True):
                    found[index] = row
        return found


def local_writer(path: str, *, batch_size: int) -> LocalWriter:
    """A model folder, a hub id or a ``lab:`` model, in bfloat16 on a card and float32 elsewhere.

    Raises:
        UserError: as ``load_model``; a model without a chat template.
    """
    folder = str(model_path(path)) if path.startswith("lab:") else path
    model, tokenizer = load_model(folder, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    if not tokenizer.chat_template:
        raise UserError(
            f"{path}: the tokeniser has no chat template",
            "name a model that follows instructions; it need not be the one that is to forget",
        )
    return LocalWriter(model, tokenizer, batch_size)
