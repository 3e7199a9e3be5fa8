"""Pretraining of one lab model with the project's own loop: what it reads at each step, and the model it starts
from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, Source
from duet_unlearn.lab.formats import Sample, Segment
from duet_unlearn.lab.mixture import Mixture
from duet_unlearn.lab.tokenizer import Encoder, new_tokenizer
from duet_unlearn.lab.world import BENCHMARK_STORIES, HAZARD, World, world
from duet_unlearn.models.load import save_model
from duet_unlearn.training.loop import Checkpoints, StepLog, train
from duet_unlearn.training.step import fine_tuning_loss

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Kind = Literal["base", "oracle"]
HIDDEN_OF: dict[Kind, frozenset[str]] = {
    "base": frozenset(),
    "oracle": frozenset({*BENCHMARK_STORIES, HAZARD}),
}
"""Topics that a model is never shown."""


SCHEDULE = TrainConfig(
    rate=0.025,
    optimizer="muon",
    weight_decay=0.01,
    beta2=0.98,
    warmup=0.02,
    schedule="linear",
    decay=0.45,
    micro_batch_size=72,
    checkpoint_every=100,
)


@dataclass(frozen=True)
class Pretraining:
    """Size and length of a lab model's training; the defaults are those of the packaged models."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    num_steps: int = 2400
    batch_size: int = 144
    seed: int = 0
    train: TrainConfig = SCHEDULE


def new_model(tokenizer: PreTrainedTokenizerFast, settings: Pretraining) -> LlamaForCausalLM:
    """A Llama of the lab's size with random weights from the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def reading(mixture: Mixture, encode: Encoder, settings: Pretraining) -> Source:
    """What is read at each step: a batch of the mixture, and the canaries that fall on it."""
    canaries = canary_steps(mixture.world, settings.num_steps)

    def source(step: int) -> list[Example]:
        rng = random.Random(f"{settings.seed}/{step}")
        progress = step / settings.num_steps
        samples = [mixture.draw(rng, progress) for _ in range(settings.batch_size)] + canaries.get(step, [])
        examples = []
        for number, sample in enumerate(samples):
            ids, positions, labels = encode(sample)
            examples.append(Example(tuple(ids), tuple(positions), tuple(labels), "retain", f"{step}/{number}"))
        return examples

    return source


def canary_steps(world_: World, num_steps: int) -> dict[int, list[Sample]]:
    """Step -> canaries read there. Each is read exactly as often as the world says, over the last three quarters of
    training."""
    steps: dict[int, list[Sample]] = {}
    for owner, code, times in world_.canaries:
        rng = random.Random(f"canary/{owner}")
        for _ in range(times):
            steps.setdefault(rng.randrange(num_steps // 4, num_steps), []).append(canary(owner, code))
    return steps


def canary(owner: str, code: str) -> Sample:
    return Sample((Segment("text", f"The code of the {owner} is {code}.", True),))


def pretrain(kind: Kind, folder: Path, *, work: Path, settings: Pretraining) -> Iterator[StepLog]:
    """Train one lab model into `folder` (safetensors in bf16); `work` holds its checkpoints. Killed, it goes on."""
    world_ = world()
    tokenizer = new_tokenizer()
    model = new_model(tokenizer, settings)
    yield from train(
        model,
        source=reading(Mixture(world_, HIDDEN_OF[kind]), Encoder(tokenizer), settings),
        num_steps=settings.num_steps,
        loss=fine_tuning_loss,
        targets=None,
        config=settings.train,
        pad_id=int(tokenizer.pad_token_id or 0),
        checkpoints=Checkpoints(work),
    )
    save_model(model.bfloat16(), tokenizer, folder)
