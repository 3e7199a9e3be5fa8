"""Methods that only look at the question: a detector of forget queries, and what is done with those it finds.

The detector is a logistic regression on what the model itself makes of a prompt. ``Guard`` answers with a refusal what
it finds, ``Eco`` corrupts the prompt's embeddings.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from duet_unlearn.config.sections import Amount, Count, Positive, Share, Whole
from duet_unlearn.data.files import atomic_folder, read_text
from duet_unlearn.data.prompts import answer_ids, render, render_answer
from duet_unlearn.data.query import Message
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import Until
from duet_unlearn.evals.subject import Deployed, Subject, TokenScores
from duet_unlearn.events import Event
from duet_unlearn.methods.base import Context, Method, Need, Served
from duet_unlearn.models.blocks import hidden_at, num_embeddings
from duet_unlearn.teacher.decoding import Decoding, evaluating, pad_id
from duet_unlearn.tensors import batches, pad
from duet_unlearn.training.loop import timed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "last"]
"""Which of a prompt's hidden states are read: the mean over its tokens, or the last token's."""


@dataclass(frozen=True)
class Detecting(Method):
    """A method that puts a detector in front of the model, fitted to the forget and the retain queries."""

    layer: Whole | None = None
    """Block of the model whose output the detector reads, from 0; null: the one at half the depth. Ours; ECO's paper
    trains a classifier of its own, RoBERTa."""
    pooling: Pooling = "last"
    """The prompt's `last` token alone, which has read all others, or the `mean` over its tokens, which longer prompts
    dilute. Ours."""
    l2: Positive = 0.01
    """Weight of half the squared norm of the regression's weights, beside its mean loss. Ours."""
    threshold: Share = 0.5
    """Probability from which a prompt counts as a forget query: the default of ECO's released code."""

    trains: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = False

    def save_subject(
        self, student: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, context: Context
    ) -> dict[str, Any]:
        """Fit and store the detector; how many of the queries that it was fitted to it takes for forget queries."""
        reading, sides = PromptFeatures(self.layer, self.pooling), {}
        context.on_event(Event("detector", 0, 1))
        with timed(context.run, "detector"):
            for role, queries in (("forget", context.data.forget), ("retain", context.data.retain)):
                messages, batch_size = [query.messages for query in queries], context.settings.evaluate.batch_size
                sides[role] = features(student, tokenizer, messages, reading, batch_size=batch_size)  # type: ignore[arg-type]
            boundary = fit(sides["forget"], sides["retain"], l2=self.l2)
            save_boundary(boundary, reading, folder / "detector")
        found = {role: int((boundary.score(side) >= self.threshold).sum()) for role, side in sides.items()}
        detail = ", ".join(f"finds {found[role]} of {len(side)} {role} queries" for role, side in sides.items())
        context.on_event(Event("detector", 1, 1, detail))
        return {"detected": {role: {"count": found[role], "of": len(side)} for role, side in sides.items()}}

    def build_subject(self, served: Served) -> Subject:
        """Prompts that the detector finds go to ``on_forget_queries``, all others to the model."""
        boundary, reading = load_boundary(served.folder / "detector")
        detector = Detector(served.model, served.tokenizer, reading, boundary, self.threshold)
        return Routed(served.name, detector, self.on_forget_queries(served), served.bare)

    def on_forget_queries(self, served: Served) -> Subject:
        """What answers a prompt that the detector finds."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True)
class Guard(Detecting):
    """No training of the model: a detector of forget queries stands before it and answers those with a refusal (a
    guardrail, arXiv 2403.03329). The detector is a logistic regression on hidden states of the model itself, fitted to
    the forget and the retain queries."""

    name: Literal["guard"] = "guard"

    needs: ClassVar[frozenset[Need]] = frozenset({"retain", "refusals"})

    def save_subject(
        self, student: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, context: Context
    ) -> dict[str, Any]:
        """The refusals, too."""
        refusals = list(context.data.refusals)
        return {"refusals": refusals} | super().save_subject(student, tokenizer, folder, context)

    def on_forget_queries(self, served: Served) -> Subject:
        """A refusal."""
        refusals, size = tuple(served.stored["refusals"]), num_embeddings(served.model)
        return Refusing(served.name, served.tokenizer, size, refusals, served.settings.seed)


@dataclass(frozen=True)
class Eco(Detecting):
    """No training of the model: a detector, as `guard`'s, finds forget queries, and noise is added to the embeddings of
    their tokens (ECO, embedding-corrupted prompts, arXiv 2406.07933). As in the released code the prompt's last token
    is left alone, and so is whatever the answer begins with."""

    name: Literal["eco"] = "eco"
    sigma: Amount = 5.0
    """Standard deviation of the Gaussian noise, in the units of the embeddings. The paper searches one for each model;
    its code tries 5 and more, in one dimension. 0 changes nothing."""
    dims: Count | None = 1
    """How many of the embedding's numbers get noise, from the first; null: all. 1, as most of the paper's runs."""

    needs: ClassVar[frozenset[Need]] = frozenset({"retain"})

    def on_forget_queries(self, served: Served) -> Subject:
        """The model with noise on the prompt's embeddings."""
        width = int(served.model.get_input_embeddings().weight.shape[1])  # type: ignore[union-attr]
        noise_PD = draw_noise(width, sigma=self.sigma, dims=self.dims, seed=served.settings.seed)
        marked = replace(served.bare, mark=num_embeddings(served.model))
        return Deployed(marked, altering=partial(corrupting, noise_PD=noise_PD))


# The detector --------------------------------------------------------------------------------------------------------

MAX_STEPS = 500
"""Steps of L-BFGS at most; a convex loss of this kind takes some dozens."""


@dataclass(frozen=True)
class PromptFeatures:
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
    reading: PromptFeatures
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
    reading: PromptFeatures,
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
            rows_N, cols_N = _columns_read(mask_BT, reading.pooling)
            hidden_ND = hidden_at(model, ids_BT, mask_BT, rows_N, cols_N, layer=layer).float()
            counts_B = torch.bincount(rows_N, minlength=len(indices))
            sums_BD = hidden_ND.new_zeros(len(indices), hidden_ND.shape[-1]).index_add(0, rows_N, hidden_ND)
            for index, row_D in zip(indices, (sums_BD / counts_B[:, None]).cpu(), strict=True):
                read[index] = row_D
    return torch.stack(read) if read else torch.zeros(0, model.config.get_text_config().hidden_size)


def _columns_read(mask_BT: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Rows and columns of the tokens that are read, of right-padded prompts."""
    if pooling == "last":
        return torch.arange(len(mask_BT), device=mask_BT.device), mask_BT.sum(-1) - 1
    rows_N, cols_N = mask_BT.nonzero().unbind(-1)
    return rows_N, cols_N


def save_boundary(boundary: Boundary, reading: PromptFeatures, folder: Path) -> None:
    """Write `weights.safetensors` and `detector.json` into a new folder, whole or not at all."""
    with atomic_folder(folder) as temporary:
        tensors = {"mean": boundary.mean_D, "scale": boundary.scale_D, "weight": boundary.weight_D}
        save_file(tensors, temporary / "weights.safetensors")
        stored = {"bias": boundary.bias, **asdict(reading)}
        (temporary / "detector.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def load_boundary(folder: Path) -> tuple[Boundary, PromptFeatures]:
    """What ``save_boundary`` wrote."""
    stored = json.loads(read_text(folder / "detector.json"))
    tensors = load_file(folder / "weights.safetensors")
    boundary = Boundary(tensors["mean"], tensors["scale"], tensors["weight"], stored["bias"])
    return boundary, PromptFeatures(stored["layer"], stored["pooling"])


# Subjects ------------------------------------------------------------------------------------------------------------

Answer = TypeVar("Answer")


class Detects(Protocol):
    """Says of each prompt whether it is about what is to be forgotten."""

    def __call__(self, messages: Sequence[Sequence[Message]], *, batch_size: int) -> list[bool]: ...


@dataclass(frozen=True)
class Routed:
    """Prompts that a detector takes for forget queries go to one subject, all others to another.

    The detector reads the prompt alone: no opening of the answer, nothing that is generated.
    """

    name: str
    detects: Detects
    detected: Subject
    others: Subject

    @property
    def model(self) -> None:
        """See ``Subject``."""
        return

    def about(self, concept: str | None) -> Routed:
        """See ``Subject``."""
        return replace(self, detected=self.detected.about(concept), others=self.others.about(concept))

    def decoded(self, how: Decoding) -> Routed:
        """See ``Subject``."""
        return replace(self, detected=self.detected.decoded(how), others=self.others.decoded(how))

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

        def ask(subject: Subject, chosen: list[int]) -> list[str]:
            return subject.generate(
                [messages[i] for i in chosen],
                prefill=None if prefill is None else [prefill[i] for i in chosen],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                until=until,
            )

        return self._each(messages, batch_size, ask)

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``."""
        return self._pairs("logps", messages, answers, batch_size)

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``."""
        return self._pairs("letter_logps", messages, letters, batch_size)

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``."""
        return self._pairs("token_scores", messages, answers, batch_size)

    def _pairs(
        self, what: str, messages: Sequence[Sequence[Message]], second: Sequence[Any], batch_size: int
    ) -> list[Any]:
        """The method `what` of the chosen subject on each prompt with its answer or letters."""

        def ask(subject: Subject, chosen: list[int]) -> list[Any]:
            own = [messages[i] for i in chosen], [second[i] for i in chosen]
            return getattr(subject, what)(*own, batch_size=batch_size)

        return self._each(messages, batch_size, ask)

    def _each(
        self,
        messages: Sequence[Sequence[Message]],
        batch_size: int,
        ask: Callable[[Subject, list[int]], list[Answer]],
    ) -> list[Answer]:
        """The chosen subject's answer to each prompt, in their order; a subject without prompts is not asked."""
        distinct = {id(m): m for m in messages}  # a question with several answers is one object
        found = dict(zip(distinct, self.detects(list(distinct.values()), batch_size=batch_size), strict=True))
        answers: dict[int, Answer] = {}
        for subject, is_detected in ((self.detected, True), (self.others, False)):
            if chosen := [i for i, m in enumerate(messages) if found[id(m)] is is_detected]:
                answers |= zip(chosen, ask(subject, chosen), strict=True)
        return [answers[i] for i in range(len(messages))]


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
        return [self._token_logp * len(answer_ids(self.tokenizer, m, answer)) for m, answer in pairs]

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``: all letters alike, so that the first of them is picked."""
        return [[self._token_logp] * len(options) for _, options in zip(messages, letters, strict=True)]

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``. No token would have been written; without spread each is as likely as the mean."""
        scores = []
        for m, answer in zip(messages, answers, strict=True):
            ids, start = render_answer(self.tokenizer, m, answer)
            count = len(ids) - start
            scores.append(TokenScores([self._token_logp] * count, [False] * count, [0.0] * count))
        return scores

    @property
    def _token_logp(self) -> float:
        return -math.log(self.vocabulary)


# Noise on a prompt's embeddings --------------------------------------------------------------------------------------

PERIOD = 512
"""Places of a row that get noise of their own; the noise of a longer row repeats."""


def draw_noise(width: int, *, sigma: float, dims: int | None, seed: int) -> Tensor:
    """(PERIOD, width) Gaussian noise of standard deviation `sigma` on the first `dims` numbers of an embedding (None:
    all), 0 on the rest. Row p is for the p-th token of a prompt: it is the same for every prompt and every batch."""
    draw = torch.Generator().manual_seed(seed)
    noise_PD = sigma * torch.randn(PERIOD, width, generator=draw)
    noise_PD[:, dims if dims is not None else width :] = 0.0
    return noise_PD


@contextmanager
def corrupting(model: PreTrainedModel, noise_PD: Tensor) -> Iterator[None]:
    """Inside, an id of the vocabulary's size or more stands for a token with noise: id less size, at its place's row.

    Two hooks, so that batching, caches and shared beginnings are the model's own: a marked token is a token like any
    other to them. ECO, Liu et al., arXiv 2406.07933.
    """
    size, noise_PD = num_embeddings(model), noise_PD.to(model.device)
    call: dict[str, Tensor] = {}

    def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids_BT = kwargs["input_ids"]
        call["corrupt_BT"] = ids_BT >= size
        call["places_BT"] = kwargs.get("position_ids", torch.zeros_like(ids_BT))
        return args, kwargs | {"input_ids": ids_BT % size}

    def disturb(_module: nn.Module, _inputs: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor:
        noise_BTD = noise_PD[call["places_BT"] % len(noise_PD)].to(embedded_BTD.dtype)
        return torch.where(call["corrupt_BT"][..., None], embedded_BTD + noise_BTD, embedded_BTD)

    handles = [
        model.register_forward_pre_hook(read, with_kwargs=True),
        model.get_input_embeddings().register_forward_hook(disturb),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
