"""Finds forget queries: a logistic regression on what the model itself makes of a prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from duet_unlearn.data.files import atomic_folder, read_text
from duet_unlearn.data.prompts import render
from duet_unlearn.data.query import Message
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import hidden_at
from duet_unlearn.teacher.decoding import evaluating, pad_id
from duet_unlearn.tensors import batches, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "last"]
"""Which of a prompt's hidden states are read: the mean over its tokens, or the last token's."""
MAX_STEPS = 500
"""Steps of L-BFGS at most; a convex loss of this kind takes some dozens."""


@dataclass(frozen=True)
class Reading:
    """Which numbers a prompt becomes."""

    layer: int | None
    """Block whose output is read, from 0; None: the middle one."""
    pooling: Pooling


@dataclass(frozen=True, eq=False)
class Boundary:
    """``p(forget) = sigmoid(weight (x - mean) / scale + bias)``, in fp64."""

    mean_D: Tensor
    scale_D: Tensor
    weight_D: Tensor
    bias: float

    def score(self, features_ND: Tensor) -> Tensor:
        """(N,) probabilities that a prompt is a forget query."""
        standard_ND = (features_ND.double() - self.mean_D) / self.scale_D
        return torch.sigmoid(standard_ND @ self.weight_D + self.bias)


def fit(forget_ND: Tensor, retain_ND: Tensor, *, l2: float) -> Boundary:
    """The minimum of ``(mean loss on forget + mean loss on retain) / 2 + l2 / 2 |weight|^2``, on features of mean 0 and
    standard deviation 1.

    Each side weighs a half however many queries it has. The loss is convex and starts at 0, so nothing is drawn.

    Raises:
        UserError: a side without queries.
    """
    for role, side_ND in (("forget", forget_ND), ("retain", retain_ND)):
        if not len(side_ND):
            raise UserError(
                f"data.{role}: the detector has no {role} queries to learn from", f"name them in data.{role}"
            )
    features_ND = torch.cat([forget_ND, retain_ND]).double()
    mean_D, scale_D = features_ND.mean(0), features_ND.std(0, correction=0).clamp_min(1e-6)
    standard_ND = (features_ND - mean_D) / scale_D
    label_N = torch.cat([torch.ones(len(forget_ND)), torch.zeros(len(retain_ND))]).double()
    share_N = torch.where(label_N == 1, 0.5 / len(forget_ND), 0.5 / len(retain_ND)).double()
    weight_D = torch.zeros(features_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_1 = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_D, bias_1],
        max_iter=MAX_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        loss_N = F.binary_cross_entropy_with_logits(standard_ND @ weight_D + bias_1, label_N, reduction="none")
        total = (share_N * loss_N).sum() + 0.5 * l2 * weight_D.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return Boundary(mean_D, scale_D, weight_D.detach(), float(bias_1.detach()))


@dataclass(frozen=True, eq=False)
class Detector:
    """Says of prompts whether they are forget queries."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reading: Reading
    boundary: Boundary
    threshold: float

    def __call__(self, messages: Sequence[Sequence[Message]], *, batch_size: int) -> list[bool]:
        """Whether the probability reaches the threshold."""
        return [score >= self.threshold for score in self.scores(messages, batch_size=batch_size)]

    def scores(self, messages: Sequence[Sequence[Message]], *, batch_size: int) -> list[float]:
        """Each prompt's probability of being a forget query."""
        read_ND = features(self.model, self.tokenizer, messages, self.reading, batch_size=batch_size)
        return self.boundary.score(read_ND).tolist()


@torch.no_grad()
def features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Sequence[Message]],
    reading: Reading,
    *,
    batch_size: int,
) -> Tensor:
    """(N, D) what a block puts out about each prompt, in fp32 on the CPU: a mean over its tokens, or its last token."""
    prompts = [render(tokenizer, m) for m in messages]
    layer, read = "middle" if reading.layer is None else reading.layer, [torch.zeros(0)] * len(prompts)
    with evaluating(model):
        for indices in batches([len(ids) for ids in prompts], batch_size=batch_size):
            padded = pad([prompts[i] for i in indices], pad_id(tokenizer), side="right")
            ids_BT, mask_BT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
            rows_N, cols_N = _spots(mask_BT, reading.pooling)
            hidden_ND = hidden_at(model, ids_BT, mask_BT, rows_N, cols_N, layer=layer).float()
            counts_B = torch.bincount(rows_N, minlength=len(indices))
            sums_BD = hidden_ND.new_zeros(len(indices), hidden_ND.shape[-1]).index_add(0, rows_N, hidden_ND)
            for index, row_D in zip(indices, (sums_BD / counts_B[:, None]).cpu(), strict=True):
                read[index] = row_D
    return torch.stack(read) if read else torch.zeros(0, model.config.get_text_config().hidden_size)


def _spots(mask_BT: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Rows and columns of the tokens that are read, of right-padded prompts."""
    if pooling == "last":
        return torch.arange(len(mask_BT), device=mask_BT.device), mask_BT.sum(-1) - 1
    rows_N, cols_N = mask_BT.nonzero().unbind(-1)
    return rows_N, cols_N


def save_boundary(boundary: Boundary, reading: Reading, folder: Path) -> None:
    """Write `weights.safetensors` and `detector.json` into a new folder, whole or not at all."""
    with atomic_folder(folder) as temporary:
        tensors = {"mean": boundary.mean_D, "scale": boundary.scale_D, "weight": boundary.weight_D}
        save_file(tensors, temporary / "weights.safetensors")
        said = {"bias": boundary.bias, **asdict(reading)}
        (temporary / "detector.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def load_boundary(folder: Path) -> tuple[Boundary, Reading]:
    """What ``save_boundary`` wrote."""
    said = json.loads(read_text(folder / "detector.json"))
    tensors = load_file(folder / "weights.safetensors")
    boundary = Boundary(tensors["mean"], tensors["scale"], tensors["weight"], said["bias"])
    return boundary, Reading(said["layer"], said["pooling"])
