"""Attacks that change weights without training: rounding, pruning, noise. What only covers knowledge may not survive
them."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.copies import Way, altered, asked, bare, linear_layers
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.packing import PACKINGS, Packing, can_pack, packed
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.config.sections import Count, Positive, Share, named
from duet_unlearn.data.prompts import render_answer
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.evals.summaries import quantisation_robustness
from duet_unlearn.teacher.decoding import evaluating

Rounding = Literal["int8", "int4", "int4-64", "int4-32", "nf4"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
GROUPED: dict[Rounding, tuple[int, int | None]] = {
    "int8": (8, None),
    "int4": (4, None),
    "int4-64": (4, 64),
    "int4-32": (4, 32),
}
"""Rounding -> bits, and how many weights of an output share a step size; None: all."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels as QLoRA publishes them (arXiv 2305.14314, appendix E)."""
NF4_GROUP = 64
Criterion = Literal["magnitude", "wanda"]
CALIBRATION = 32
"""Answered questions by whose activations Wanda weighs weights, at most; ours, where the paper has 128 long texts."""


@dataclass(frozen=True)
class Quantisation:
    """Round the weights of every linear layer of the blocks, and ask.

    Unlearning moves weights a little, and coarse rounding may put them back where they were (arXiv 2410.16454).
    Embeddings and head stay. The numbers: ``before``, the share right without rounding, and ``robustness``, as
    ``quantisation_robustness`` has it.
    """

    name: Literal["quantisation"] = "quantisation"
    formats: tuple[Rounding | Packing, ...] = (*ROUNDINGS, *PACKINGS)
    """`int8`, `int4`: to the nearest of the steps of an output (a channel); `int4-64`, `int4-32`: so many weights of
    an output share a step size; `nf4`: QLoRA's 16 levels, 64 weights share a scale. Of these weights alone are rounded,
    and computed with as before. `bitsandbytes-int8`, `bitsandbytes-nf4`: as that package packs them and computes with
    them; left out where it is not installed."""
    title: ClassVar[str] = "Quantisation"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "formats")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return (1 + len(self.formats)) * len(goal.wanted) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        held = bare(subject)
        ways = [Way(to, partial(_rounded, to)) for to in ROUNDINGS if self.formats.count(to)]
        packings = [to for to in PACKINGS if self.formats.count(to) and can_pack()]
        if not ways and not packings:
            raise NotApplicable("bitsandbytes is not installed (extra `quant`)")
        before = asked(held, goal, "before").score.value
        found = altered(held, goal, lambda done, _: watch(done, len(ways) + len(packings)), ways)
        for to in packings:
            found.append(asked(replace(held, model=packed(held.model, to)), goal, to))
            watch(len(found), len(ways) + len(packings))
        return [_with_robustness(one, before) for one in found]

    def beside(self) -> list[Any]:
        """See ``Dependent``: whether bitsandbytes is there, where it is wanted."""
        return [can_pack()] if {*self.formats} & {*PACKINGS} else []


@dataclass(frozen=True)
class Pruning:
    """Put the least weights of every linear layer of the blocks to zero, and ask.

    ``magnitude`` takes the smallest of a matrix (arXiv 1506.02626). ``wanda`` takes those of each output with the
    smallest ``|weight| * norm of its input`` (arXiv 2306.11695), the norms over answered questions about anything else;
    all layers are weighed on the whole model, in the paper each behind the pruned ones below it. That safety training
    goes before knowledge does was seen in arXiv 2402.05162.
    """

    name: Literal["pruning"] = "pruning"
    criteria: tuple[Criterion, ...] = ("magnitude", "wanda")
    """By what the least weights are chosen."""
    sparsities: tuple[Share, ...] = (0.3, 0.5, 0.7)
    """Shares of the weights that become zero; ours."""
    title: ClassVar[str] = "Pruning"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "criteria", "sparsities")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return (len(self.criteria) * len(self.sparsities) * len(goal.wanted) + CALIBRATION) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        held = bare(subject)
        norms = input_norms(held, goal) if "wanda" in self.criteria else []

        def pruned(criterion: Criterion, share: float, place: int, weight_OI: Tensor) -> Tensor:
            return smallest_out(weight_OI, share) if criterion == "magnitude" else wanda(weight_OI, norms[place], share)

        ways = [
            Way(f"{criterion}, {share:.0%} zero", partial(pruned, criterion, share))
            for criterion in self.criteria
            for share in self.sparsities
        ]
        return altered(held, goal, watch, ways)


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise to every linear layer of the blocks, and ask.

    Noise breaks what is thin first, and a learnt silence may be thinner than what lies under it: so do models that
    only feign ignorance give themselves away (arXiv 2412.01784).
    """

    name: Literal["noise"] = "noise"
    sigmas: tuple[Positive, ...] = (0.1, 0.2, 0.4)
    """Standard deviations, relative to that of each matrix's weights; ours."""
    draws: Count = 2
    """How often noise is drawn at each of them; ours."""
    title: ClassVar[str] = "Noise on weights"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "sigmas")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return len(self.sigmas) * self.draws * len(goal.wanted) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        ways = [
            Way(f"sigma {sigma:g}, draw {draw + 1}", partial(_noisy, sigma, goal.seed + draw))
            for sigma in self.sigmas
            for draw in range(self.draws)
        ]
        return altered(subject, goal, watch, ways)


def rounded(weight_OI: Tensor, to: Rounding) -> Tensor:
    """A matrix as it is after quantising and dequantising, in fp32."""
    if to == "nf4":
        return nf4(weight_OI, group=NF4_GROUP)
    bits, group = GROUPED[to]
    return nearest_step(weight_OI, bits=bits, group=group)


def nearest_step(weight_OI: Tensor, *, bits: int, group: int | None) -> Tensor:
    """``step * round(w / step)``, ``step = max |w| / (2^(bits - 1) - 1)`` over `group` neighbouring weights of an
    output (None: all; the last group may be smaller): symmetric, so 15 values of 16 at 4 bits.

    arXiv 2410.16454 divides by ``2^(bits - 1)``, where the largest weight has no step of its own.
    """
    grouped_OGI = _grouped(weight_OI, group)
    largest = 2 ** (bits - 1) - 1
    step_OG1 = grouped_OGI.abs().amax(-1, keepdim=True) / largest
    codes_OGI = torch.round(grouped_OGI / step_OG1.clamp_min(torch.finfo(torch.float32).tiny))
    return _flat(codes_OGI.clamp(-largest, largest) * step_OG1, weight_OI)


def nf4(weight_OI: Tensor, *, group: int) -> Tensor:
    """The nearest of ``NF4`` times the largest magnitude of `group` neighbouring weights of an output, as QLoRA has it
    without its second quantisation, that of the scales (arXiv 2305.14314)."""
    grouped_OGI = _grouped(weight_OI, group)
    scale_OG1 = grouped_OGI.abs().amax(-1, keepdim=True)
    levels = torch.tensor(NF4, dtype=torch.float32, device=weight_OI.device)
    borders = (levels[1:] + levels[:-1]) / 2
    unit_OGI = grouped_OGI / scale_OG1.clamp_min(torch.finfo(torch.float32).tiny)
    return _flat(levels[torch.bucketize(unit_OGI, borders)] * scale_OG1, weight_OI)


def smallest_out(weight_OI: Tensor, share: float) -> Tensor:
    """A matrix with the `share` of its weights that is smallest in magnitude put to 0."""
    return _least_out(weight_OI.reshape(1, -1), weight_OI.abs().reshape(1, -1), share).reshape(weight_OI.shape)


def wanda(weight_OI: Tensor, norms_I: Tensor, share: float) -> Tensor:
    """A matrix with the `share` of each output's weights of which ``|w| norm`` is smallest put to 0."""
    return _least_out(weight_OI, weight_OI.abs() * norms_I, share)


def input_norms(held: ModelSubject, goal: Goal) -> list[Tensor]:
    """Of every linear layer the 2-norm of each input over all tokens of some answered questions.

    Raises:
        NotApplicable: there are none.
    """
    shown = (goal.others or goal.neighbours)[:CALIBRATION]
    if not shown:
        raise NotApplicable("no question about anything else has an answer, so wanda has nothing to weigh weights on")
    layers, sums = linear_layers(held.model), {}

    def add(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        squares_I = inputs[0].detach().float().flatten(0, -2).square().sum(0)
        sums[layer] = sums.get(layer, 0) + squares_I

    with ExitStack() as hooks, evaluating(held.model):
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(add).remove)
        for query in shown:  # one by one: padding would count
            ids, _ = render_answer(held.tokenizer, query.messages, query.answer or "")
            held.model(input_ids=torch.tensor([ids], device=held.model.device), use_cache=False)
    return [torch.as_tensor(sums.get(layer, 1.0)).sqrt() for layer in layers]


def _rounded(to: Rounding, _place: int, weight_OI: Tensor) -> Tensor:
    return rounded(weight_OI, to)


def _noisy(sigma: float, seed: int, place: int, weight_OI: Tensor) -> Tensor:
    draw = torch.Generator(weight_OI.device).manual_seed(seed * 100_003 + place)
    noise_OI = torch.randn(weight_OI.shape, generator=draw, device=weight_OI.device)
    return weight_OI + sigma * weight_OI.std() * noise_OI


def _with_robustness(one: Instance, before: float) -> Instance:
    robustness = quantisation_robustness(before=before, after=one.score.value)
    numbers = {"before": before} | ({} if math.isnan(robustness) else {"robustness": robustness})
    return replace(one, numbers=numbers)


def _grouped(weight_OI: Tensor, group: int | None) -> Tensor:
    """(O, G, I) groups of an output's weights, the last filled with zeros."""
    size = group or weight_OI.shape[1]
    return nn.functional.pad(weight_OI, (0, -weight_OI.shape[1] % size)).unflatten(1, (-1, size))


def _flat(grouped_OGI: Tensor, like_OI: Tensor) -> Tensor:
    return grouped_OGI.flatten(1)[:, : like_OI.shape[1]]


def _least_out(weight_OI: Tensor, score_OI: Tensor, share: float) -> Tensor:
    least_OK = score_OI.topk(int(share * score_OI.shape[1]), dim=1, largest=False).indices
    return weight_OI.scatter(1, least_OK, 0.0)
