"""Small models of many families without weights, and recipes to plan them with."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from duet_unlearn.config.reading import default_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.plan import Workload

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama, tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 8}),
    "gpt2": ("gpt2", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gemma2": ("gemma2", SIZES | {"head_dim": 8}),
    "mixtral": ("mixtral", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", SIZES | EXPERTS),
}
LOAD = Workload(tokens=10, prefix=4, queries=6)


def config_of(family: str) -> PreTrainedConfig:
    kind, sizes = FAMILIES[family]
    return AutoConfig.for_model(kind, **sizes)


def recipe_of(*settings: str) -> Recipe:
    return default_recipe("model", ["method.k=20", "train.batch_size=4", *settings])
