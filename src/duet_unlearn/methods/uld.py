"""ULD: the logits of a small assistant, which remembers what is to be forgotten, are taken from the model's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.config.sections import Amount, Count, PositiveShare, Settings
from duet_unlearn.data.examples import Example, TrainingData
from duet_unlearn.data.files import atomic
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Deployed, Subject
from duet_unlearn.losses import cross_entropy, maxent
from duet_unlearn.methods.base import Context, Method, Need, Served, token_term
from duet_unlearn.models.load import merged
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.training.loop import put_weights
from duet_unlearn.training.step import LossOut, Step, Term, combine

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass(frozen=True)
class Uld(Method):
    """The model is not trained: an assistant of its first layers learns the forget answers and to know nothing of the
    retain answers, and its logits are subtracted from the model's (ULD, logit difference, arXiv 2406.08607). `train`
    and `model.lora` are the assistant's; embeddings and head are the model's own. The paper also trains it on
    paraphrases of the forget answers, and on wrong ones as retain answers."""

    name: Literal["uld"] = "uld"
    layers: Count = 8
    """Layers of the model that the assistant is a copy of, from the first: the paper's 8 of Llama 2's 32."""
    weight: Amount = 1.0
    """What the assistant's logits are multiplied by: the released code's default, 0.8 in its runs on TOFU."""
    top: PositiveShare = 0.1
    """Tokens whose logits are touched: this share of the vocabulary, the model's likeliest, and what is at least so
    many times as likely as the likeliest; 1: all. The released code's default, 0.01 in its runs on TOFU."""
    retain_weight: Amount = 5.0
    """Weight of KL(uniform || assistant) on the retain answers, against the cross entropy of the forget answers; the
    released code's."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain"})
    changes_weights: ClassVar[bool] = False

    def check_packing(self, settings: Settings, *, quantised: bool) -> None:
        """See ``Method``.

        Raises:
            UserError: quantised weights.
        """
        if quantised:
            raise UserError(
                f"{settings.model.path}: is quantised, and its layers cannot be trained as the assistant of uld",
                "take the unquantised model, and model.quantise: null",
            )

    def trained_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The assistant."""
        return first_layers(model, self.layers)

    def build_examples(self, data: TrainingData) -> list[Example]:
        """The answers of both roles."""
        return data.answers("forget") + data.answers("retain")

    def loss(self, step: Step) -> LossOut:
        """Mean cross entropy of the forget answers' tokens, plus the weighted mean distance from knowing nothing at the
        retain answers'."""
        forget = token_term(step, lambda part: cross_entropy(part.logits_NV, part.tokens_N))
        retain: Term | None = None
        if self.retain_weight:
            retain = token_term(step, lambda part: maxent(part.logits_NV), role="retain", weight=self.retain_weight)
        return combine(step, forget, retain)

    def save_subject(
        self, student: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, context: Context
    ) -> dict[str, Any]:
        """The assistant's own weights: all but the embeddings and the head, which are the model's."""
        assistant: Any = merged(student) if has_adapter(student) else student
        ends = {
            id(p)
            for end in (assistant.get_input_embeddings(), assistant.get_output_embeddings())
            for p in end.parameters()
        }
        inner = {name: p.detach().contiguous() for name, p in assistant.named_parameters() if id(p) not in ends}
        atomic(folder / "assistant.safetensors", lambda path: save_file(inner, path))
        return {}

    def build_subject(self, served: Served) -> Subject:
        """The model, from whose logits the assistant's are taken."""
        assistant = first_layers(served.model, self.layers)
        put_weights(assistant, load_file(served.folder / "assistant.safetensors"))
        less = partial(subtracting, assistant=assistant, weight=self.weight, top=self.top)
        return Deployed(served.bare, altering=less)


def subtract(logits_NV: Tensor, assistant_NV: Tensor, *, weight: float, top: float) -> Tensor:
    """``z - weight (log q + log V)`` on the tokens that count, ``z`` on the others: (N, V) in fp32.

    q is the assistant's distribution: one that is uniform changes nothing. A token counts whose probability under z is
    among the ``top V`` largest, or at least `top` times the largest; with `top` 1 all do.

    ULD, Ji et al., arXiv 2406.08607, with the filter of its released code. That code subtracts the assistant's logits
    as they come; where all tokens count the two differ by a constant, which the softmax takes out again.
    """
    size, logits_NV = logits_NV.shape[-1], logits_NV.float()
    known_NV = torch.log_softmax(assistant_NV.float(), dim=-1) + math.log(size)
    if top < 1.0:
        largest_NK = logits_NV.topk(max(1, int(top * size)), dim=-1).values
        floor_N1 = torch.minimum(largest_NK[..., -1:], largest_NK[..., :1] + math.log(top))
        known_NV = known_NV.masked_fill(logits_NV < floor_N1, 0.0)
    return logits_NV - weight * known_NV


def first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A model of the first `layers` blocks, copied; final norm copied too, embeddings and head shared with the model
    and frozen.

    Raises:
        UserError: the model has no more blocks than that, or is packed in fewer bits.
    """
    whole = model.config.get_text_config(decoder=True)
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            "method uld: the blocks of a quantised model cannot be trained as an assistant",
            "set model.quantise to null, or take the unquantised model",
        )
    if layers >= whole.num_hidden_layers:
        raise UserError(
            f"method.layers is {layers}, but the model has {whole.num_hidden_layers} layers in all",
            "the assistant is a part of them: a quarter, say",
        )
    config = copy.deepcopy(model.config)
    part = config.get_text_config(decoder=True)
    part.num_hidden_layers = layers
    if kinds := vars(part).get("layer_types"):  # of some architectures it follows from the number
        part.layer_types = kinds[:layers]
    small = type(model)(config)
    cast("nn.Module", small).to(device=model.device, dtype=model.dtype)
    kept = small.state_dict().keys()
    small.load_state_dict({name: value for name, value in model.state_dict().items() if name in kept})
    return share_ends(small, model).eval()


def share_ends(small: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """Put the model's own embeddings and head into the assistant, frozen; what acts on them acts on both."""
    embeddings, head = model.get_input_embeddings(), cast("nn.Module", model.get_output_embeddings())
    small.set_input_embeddings(embeddings)
    small.set_output_embeddings(head)
    embeddings.requires_grad_(False)
    head.requires_grad_(False)
    return small


@contextmanager
def subtracting(model: PreTrainedModel, *, assistant: PreTrainedModel, weight: float, top: float) -> Iterator[None]:
    """Inside, the model's logits are those of ``subtract``. The assistant must share its head (``share_ends``), so that
    what picks the head's positions picks both models'.

    The keys and values of both stand in one cache, the assistant's layers behind the model's: rows that leave a batch,
    or share a beginning, do so in both.
    """
    others: list[DynamicCache | None] = []
    layers = assistant.config.get_text_config(decoder=True).num_hidden_layers

    def part(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own, other = _parted(kwargs.get("past_key_values"), layers)
        others.append(other)
        return args, kwargs | {"past_key_values": own}

    def take(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: CausalLMOutputWithPast) -> None:
        assert output.logits is not None
        assistant_output = assistant(**kwargs | {"past_key_values": others.pop()})
        output.logits = subtract(output.logits, assistant_output.logits, weight=weight, top=top)
        output.past_key_values = _joined(output.past_key_values, assistant_output.past_key_values)

    handles = [
        model.register_forward_pre_hook(part, with_kwargs=True),
        model.register_forward_hook(take, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parted(cache: Any, layers: int) -> tuple[DynamicCache | None, DynamicCache | None]:
    """The model's and the assistant's part of a joint cache, of which the last `layers` are the assistant's."""
    if cache is None:
        return None, None
    return _cache(cache.layers[:-layers]), _cache(cache.layers[-layers:])


def _joined(first: Any, second: Any) -> DynamicCache | None:
    """One cache of two.

    Raises:
        UserError: the model keeps something else than keys and values, such as a recurrent state.
    """
    from transformers import DynamicCache

    if first is None:
        return None
    if type(first) is not DynamicCache:
        raise UserError(
            f"method uld: the model keeps its past as {type(first).__name__}, which cannot be joined with another's",
            "take a model of attention layers, or another method",
        )
    return _cache([*first.layers, *second.layers])


def _cache(layers: list[Any]) -> DynamicCache:
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.layers = layers
    return cache
