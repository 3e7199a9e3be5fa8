"""Attacks that change weights without training: rounding, pruning, noise. What only covers knowledge may not survive
them.

Every such attack works on a copy, whose weights are put in place anew for each way of changing them. How a subject is
held whose weights an attacker has (``merged_subject``) stands at the end, for the attacks of other chapters too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.attack_base import QUESTION_TOKENS, Attack, AttackGoal, ask_plainly, require_own_weights
from duet_unlearn.attacks.result import Instance, NotApplicable, OnProgress, no_progress
from duet_unlearn.config.sections import Count, Positive, Share
from duet_unlearn.data.prompts import render_answer
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.evals.summaries import quantisation_robustness
from duet_unlearn.models.blocks import blocks_of
from duet_unlearn.models.load import is_quantised, merged
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.models.quantise import fits_blocks, import_bitsandbytes, use_plain_kernels
from duet_unlearn.teacher.decoding import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

Rounding = Literal["int8", "int4", "int4-64", "int4-32", "nf4"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
Packing = Literal["bitsandbytes-int8", "bitsandbytes-nf4"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
GROUPED: dict[Rounding, tuple[int, int | None]] = {
    "int8": (8, None),
    "int4": (4, None),
    "int4-64": (4, 64),
    "int4-32": (4, 32),
}
"""Rounding -> bits, and how many weights of an output share a step size; None: all."""
# fmt: off
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
"""The levels as QLoRA publishes them (arXiv 2305.14314, appendix E)."""
NF4_GROUP = 64
OUTLIERS = 6.0
"""Inputs as large as this are multiplied in 16 bits, as LLM.int8 has it (arXiv 2208.07339)."""
Criterion = Literal["magnitude", "wanda"]
CALIBRATION = 32
"""Answered questions by whose activations Wanda weighs weights, at most; ours, where the paper has 128 long texts."""


# The attacks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantisation(Attack):
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
    title = "Quantisation"
    access = "weights"
    not_empty = ("formats",)

    def num_tokens(self, goal: AttackGoal) -> int:
        return (1 + len(self.formats)) * len(goal.target_facts) * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        def round_to(to: Rounding, _place: int, weight_OI: Tensor) -> Tensor:
            return rounded(weight_OI, to)

        attacked = merged_subject(subject)
        changes = [WeightChange(to, partial(round_to, to)) for to in ROUNDINGS if to in self.formats]
        packings = [to for to in PACKINGS if to in self.formats and can_pack()]
        total = len(changes) + len(packings)
        if not total:
            raise NotApplicable("bitsandbytes is not installed (extra `quant`)")
        before = ask_plainly(attacked, goal).score.value
        found = ask_changed(attacked, goal, lambda done, _: on_progress(done, total), changes)
        for to in packings:
            found.append(ask_plainly(replace(attacked, model=packed(attacked.model, to)), goal, to))
            on_progress(len(found), total)
        instances = []
        for one in found:
            robustness = quantisation_robustness(before=before, after=one.score.value)
            numbers = {"before": before} | ({} if math.isnan(robustness) else {"robustness": robustness})
            instances.append(replace(one, numbers=numbers))
        return instances

    def other_inputs(self) -> list[Any]:
        """Whether bitsandbytes is there, where one of its formats is asked for."""
        return [can_pack()] if {*self.formats} & {*PACKINGS} else []


@dataclass(frozen=True)
class Pruning(Attack):
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
    title = "Pruning"
    access = "weights"
    not_empty = ("criteria", "sparsities")

    def num_tokens(self, goal: AttackGoal) -> int:
        return (len(self.criteria) * len(self.sparsities) * len(goal.target_facts) + CALIBRATION) * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        attacked = merged_subject(subject)
        norms = input_norms(attacked, goal) if "wanda" in self.criteria else []

        def pruned(criterion: Criterion, share: float, place: int, weight_OI: Tensor) -> Tensor:
            return smallest_out(weight_OI, share) if criterion == "magnitude" else wanda(weight_OI, norms[place], share)

        changes = [
            WeightChange(f"{criterion}, {share:.0%} zero", partial(pruned, criterion, share))
            for criterion in self.criteria
            for share in self.sparsities
        ]
        return ask_changed(attacked, goal, on_progress, changes)


@dataclass(frozen=True)
class Noise(Attack):
    """Add Gaussian noise to every linear layer of the blocks, and ask.

    Noise breaks what is thin first, and a learnt silence may be thinner than what lies under it: so do models that
    only feign ignorance give themselves away (arXiv 2412.01784).
    """

    name: Literal["noise"] = "noise"
    sigmas: tuple[Positive, ...] = (0.1, 0.2, 0.4)
    """Standard deviations, relative to that of each matrix's weights; ours."""
    draws: Count = 2
    """How often noise is drawn at each of them; ours."""
    title = "Noise on weights"
    access = "weights"
    not_empty = ("sigmas",)

    def num_tokens(self, goal: AttackGoal) -> int:
        return len(self.sigmas) * self.draws * len(goal.target_facts) * QUESTION_TOKENS

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        def noisy(sigma: float, seed: int, place: int, weight_OI: Tensor) -> Tensor:
            # Every matrix of every draw has a seed of its own: what was tried before changes nothing.
            draw = torch.Generator(weight_OI.device).manual_seed(seed * 100_003 + place)
            noise_OI = torch.randn(weight_OI.shape, generator=draw, device=weight_OI.device)
            return weight_OI + sigma * weight_OI.std() * noise_OI

        changes = [
            WeightChange(f"sigma {sigma:g}, draw {draw + 1}", partial(noisy, sigma, goal.seed + draw))
            for sigma in self.sigmas
            for draw in range(self.draws)
        ]
        return ask_changed(subject, goal, on_progress, changes)


# Rounding ------------------------------------------------------------------------------------------------------------


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
    return (codes_OGI.clamp(-largest, largest) * step_OG1).flatten(1)[:, : weight_OI.shape[1]]


def nf4(weight_OI: Tensor, *, group: int) -> Tensor:
    """The nearest of ``NF4`` times the largest magnitude of `group` neighbouring weights of an output, as QLoRA has it
    without its second quantisation, that of the scales (arXiv 2305.14314)."""
    grouped_OGI = _grouped(weight_OI, group)
    scale_OG1 = grouped_OGI.abs().amax(-1, keepdim=True)
    levels = torch.tensor(NF4, dtype=torch.float32, device=weight_OI.device)
    borders = (levels[1:] + levels[:-1]) / 2
    unit_OGI = grouped_OGI / scale_OG1.clamp_min(torch.finfo(torch.float32).tiny)
    return (levels[torch.bucketize(unit_OGI, borders)] * scale_OG1).flatten(1)[:, : weight_OI.shape[1]]


def _grouped(weight_OI: Tensor, group: int | None) -> Tensor:
    """(O, G, I) groups of an output's weights, the last filled with zeros."""
    size = group or weight_OI.shape[1]
    return nn.functional.pad(weight_OI, (0, -weight_OI.shape[1] % size)).unflatten(1, (-1, size))


def can_pack() -> bool:
    """Whether bitsandbytes is installed (extra `quant`); it computes on a CPU too."""
    return find_spec("bitsandbytes") is not None


def packed(model: PreTrainedModel, to: Packing) -> PreTrainedModel:
    """A copy with every linear layer of its blocks packed by bitsandbytes, on the same device: what ``from_pretrained``
    makes with ``load_in_8bit``, or with ``nf4`` and double quantisation in 4 bits. Activations are packed in 8 bits
    too."""
    import_bitsandbytes()
    import bitsandbytes
    from transformers.pytorch_utils import Conv1D

    packing: Any = bitsandbytes.nn  # some of its types are not declared
    own = copy.deepcopy(model)
    names = {layer: name for name, layer in own.named_modules()}
    for layer in linear_layers(own):
        if to == "bitsandbytes-nf4" and own.device.type == "cpu" and not fits_blocks(layer):
            continue  # computed wrongly there; `from_pretrained` is told to leave it whole too
        weight_OI = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        weight_OI, shape = weight_OI.contiguous().clone(), (*weight_OI.T.shape, layer.bias is not None)
        if to == "bitsandbytes-int8":
            new = packing.Linear8bitLt(*shape, has_fp16_weights=False, threshold=OUTLIERS)
            new.weight = packing.Int8Params(weight_OI, requires_grad=False, has_fp16_weights=False)
        else:
            new = packing.Linear4bit(*shape, compute_dtype=weight_OI.dtype, quant_type="nf4")
            new.weight = packing.Params4bit(weight_OI, requires_grad=False, quant_type="nf4", module=new)
        new.bias = layer.bias
        # Moving the layer to its device packs it.
        own.set_submodule(names[layer], new.to(layer.weight.device).train(layer.training))
    use_plain_kernels(own)
    return own


# Pruning -------------------------------------------------------------------------------------------------------------


def smallest_out(weight_OI: Tensor, share: float) -> Tensor:
    """A matrix with the `share` of its weights that is smallest in magnitude put to 0."""
    return _least_out(weight_OI.reshape(1, -1), weight_OI.abs().reshape(1, -1), share).reshape(weight_OI.shape)


def wanda(weight_OI: Tensor, norms_I: Tensor, share: float) -> Tensor:
    """A matrix with the `share` of each output's weights of which ``|w| norm`` is smallest put to 0."""
    return _least_out(weight_OI, weight_OI.abs() * norms_I, share)


def _least_out(weight_OI: Tensor, score_OI: Tensor, share: float) -> Tensor:
    least_OK = score_OI.topk(int(share * score_OI.shape[1]), dim=1, largest=False).indices
    return weight_OI.scatter(1, least_OK, 0.0)


def input_norms(subject: ModelSubject, goal: AttackGoal) -> list[Tensor]:
    """Of every linear layer the 2-norm of each input over all tokens of some answered questions.

    Raises:
        NotApplicable: there are none.
    """
    calibration = (goal.others or goal.neighbours)[:CALIBRATION]
    if not calibration:
        raise NotApplicable("no question about anything else has an answer, so wanda has nothing to weigh weights on")
    layers, sums = linear_layers(subject.model), {}

    def add(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        squares_I = inputs[0].detach().float().flatten(0, -2).square().sum(0)
        sums[layer] = sums.get(layer, 0) + squares_I

    with ExitStack() as hooks, evaluating(subject.model):
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(add).remove)
        for query in calibration:  # one by one: padding would count
            ids, _ = render_answer(subject.tokenizer, query.messages, query.answer or "")
            subject.model(input_ids=torch.tensor([ids], device=subject.model.device), use_cache=False)
    return [torch.as_tensor(sums.get(layer, 1.0)).sqrt() for layer in layers]


# A model that an attacker has ----------------------------------------------------------------------------------------


class WeightChange(NamedTuple):
    """One way of changing every matrix."""

    name: str
    change: Callable[[int, Tensor], Tensor]
    """The number of a matrix, and the matrix (outputs x inputs, fp32) -> the matrix in its place."""


def ask_changed(
    subject: Subject, goal: AttackGoal, on_progress: OnProgress, changes: Sequence[WeightChange]
) -> list[Instance]:
    """Ask plainly after every way of changing the weights; one copy serves for all of them."""
    original = merged_subject(subject)
    own = replace(original, model=copy.deepcopy(original.model))
    found = []
    for done, one in enumerate(changes, start=1):
        with torch.no_grad():
            pairs = zip(matrices(own.model), matrices(original.model), strict=True)
            for place, (mine_OI, weight_OI) in enumerate(pairs):
                mine_OI.copy_(one.change(place, weight_OI.float()))
        found.append(ask_plainly(own, goal, one.name))
        on_progress(done, len(changes))
    return found


def merged_subject(subject: Subject) -> ModelSubject:
    """The subject with its adapters merged into a copy; without adapters itself, not to be altered.

    Raises:
        NotApplicable: what it forgot is not in its weights; these are packed, or held by another program.
    """
    own = require_own_weights(subject)
    if not isinstance(own.model, nn.Module):
        raise NotApplicable("another program holds the weights, so nothing can be done to them here")
    if is_quantised(own.model):
        raise NotApplicable("the weights are packed (model.quantise); attack the model as it is saved")
    if not has_adapter(own.model):
        return own
    return replace(own, model=merged(copy.deepcopy(own.model)))


def linear_layers(model: nn.Module) -> list[nn.Linear | Conv1D]:
    """Every linear layer of the decoder's blocks, GPT-2's kind too. Embeddings, head and norms are not among them, nor
    are experts that are one fused parameter."""
    from transformers.pytorch_utils import Conv1D

    return [layer for layer in blocks_of(model).modules() if isinstance(layer, nn.Linear | Conv1D)]


def matrices(model: nn.Module) -> list[Tensor]:
    """The weights of ``linear_layers``, outputs x inputs, as views to write into; GPT-2's lie transposed."""
    return [
        layer.weight.detach() if isinstance(layer, nn.Linear) else layer.weight.detach().T
        for layer in linear_layers(model)
    ]
