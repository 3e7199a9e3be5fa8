"""Runs of the loop on a tiny model, and what they are compared by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from duet_unlearn.config.sections import LoraConfig, TrainConfig
from duet_unlearn.models.lora import add_lora
from duet_unlearn.training.loop import StepLog, train
from duet_unlearn.training.step import fine_tuning_loss

UNEVEN = [
    example
    for count, example in enumerate(tiny.examples([5, 14, 7, 9], positions=1))
    for example in [tiny.example(example.ids, range(count, 2 * count + 1), example.key, role=example.role)]
]
"""1, 2, 3 and 4 positions: a mean of means is not their mean."""
PLAIN = TrainConfig(rate=0.01, max_grad_norm=0.5, weight_decay=0.1)


def fit(model: nn.Module, config: TrainConfig = PLAIN, *, num_steps: int = 3, **changes: Any) -> list[StepLog]:
    return list(steps(model, config, num_steps=num_steps, **changes))


def steps(model: nn.Module, config: TrainConfig = PLAIN, *, num_steps: int = 3, **changes: Any) -> Iterator[StepLog]:
    settings: dict[str, Any] = {
        "source": lambda step: UNEVEN,
        "loss": fine_tuning_loss,
        "targets": None,
        "pad_id": tiny.EOS,
    }
    return train(model, num_steps=num_steps, config=config, **(settings | changes))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_to_the_bit(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


def assert_close(one: nn.Module, two: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(weights(one).items(), weights(two).values(), strict=True):
        torch.testing.assert_close(
            a, b, **(tolerance or {"rtol": 1e-5, "atol": 1e-7}), msg=lambda m, n=name: f"{n} {m}"
        )


def numbers(logs: list[StepLog]) -> list[tuple[float, ...]]:
    return [(log.step, log.loss, log.grad_norm, log.rate, log.tokens) for log in logs]


def lora(model: nn.Module) -> nn.Module:
    """Adapters that say something from the first step on."""
    adapted = add_lora(model, LoraConfig(rank=2, alpha=4), seed=0)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=draw)
    return adapted


def noisy() -> nn.Module:
    """A model with dropout."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config)


MAKERS = {"full": tiny.llama, "lora": lambda: lora(tiny.llama()), "dropout": noisy}
"""What is trained -> how it is made."""
