"""Small random models of the families that people unlearn, each with a tokeniser of its family's manners.

The configurations are real ones made small; what sets a family apart (sliding windows shorter than a prompt, soft caps,
partial rotary embeddings, tied heads, fused projections) is switched on. The templates are ours, written to behave as
the family's own do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from duet_unlearn.models.load import save_model

WORDS = 300
"""Tokens of every tokeniser."""
TEXT = ["Where does Mira Bol live? Mira Bol lives in Tarn. You have forgotten Tarn."] * 5
LLAMA_3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% set system = '' %}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""It writes the BOS, a system turn in any case, and today's date unless it is told another."""
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""It writes no BOS, and ends turns with the EOS, which is the pad token too."""
QWEN_25 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""It has a default system turn."""
QWEN_3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""The model thinks unless it is told not to: the block is then written, empty."""
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""It refuses a system turn, and calls the assistant `model`."""
GEMMA_3 = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""It puts a system turn in front of the first question."""
PHI_4 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
OLMO_2 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content']"
    " + (eos_token if m['role'] == 'assistant' else '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""BOS and EOS are one token."""
LLAMA_LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@dataclass(frozen=True)
class Family:
    """A model, a tokeniser and what is expected of them."""

    name: str
    kind: str
    """transformers' model_type."""
    settings: dict[str, Any]
    """Of the configuration, beside the sizes."""
    template: str | None
    """None: a base model, which is asked through the plain template."""
    bos: str | None = None
    eos: str = "<|endoftext|>"
    pad: str | None = None
    marks: tuple[str, ...] = ()
    """Further special tokens; the first one ends a turn where the EOS does not."""
    adds_bos: bool = False
    """Whether the tokeniser puts the BOS in front of plain text."""
    tied: bool = True
    layers: tuple[str, ...] = LLAMA_LAYERS
    """The layers that get an adapter by default."""
    per_block: int = 7
    """How many those are in a block."""
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def chat_template(self) -> str | None:
        """What a recipe says for it."""
        return None if self.template else "plain"


LLAMA_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
IM = {"eos": "<|im_end|>", "pad": "<|endoftext|>", "marks": ("<|im_start|>",)}
GEMMA = {
    "bos": "<bos>",
    "eos": "<eos>",
    "pad": "<pad>",
    "marks": ("<end_of_turn>", "<start_of_turn>"),
    "adds_bos": True,
}
FAMILIES = (
    Family(
        "llama-3",
        "llama",
        LLAMA_SIZES
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        LLAMA_3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        marks=("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        adds_bos=True,
    ),
    Family(
        "zephyr",
        "mistral",
        LLAMA_SIZES | {"sliding_window": 32},  # two layers of 8 could not see the prefix
        ZEPHYR,
        bos="<s>",
        eos="</s>",
        pad="</s>",
        adds_bos=True,
        tied=False,
    ),
    Family("qwen-2.5", "qwen2", LLAMA_SIZES, QWEN_25, **IM),
    Family("qwen-3", "qwen3", LLAMA_SIZES | {"head_dim": 16}, QWEN_3, **IM),
    Family(
        "gemma-2",
        "gemma2",
        LLAMA_SIZES
        | {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        GEMMA_2,
        **GEMMA,
    ),
    Family(
        "gemma-3",
        "gemma3_text",
        LLAMA_SIZES
        | {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        GEMMA_3,
        **GEMMA,
    ),
    Family(
        "phi-4",
        "phi3",
        LLAMA_SIZES | {"sliding_window": 16, "partial_rotary_factor": 0.75},
        PHI_4,
        bos="<|endoftext|>",
        pad="<|endoftext|>",
        marks=("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        layers=("down_proj", "gate_up_proj", "o_proj", "qkv_proj"),
        per_block=4,
    ),
    Family(
        "pythia",
        "gpt_neox",
        {key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"} | {"rotary_pct": 0.25},
        None,
        bos="<|endoftext|>",
        tied=False,
        layers=("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"),
        per_block=4,
    ),
    Family(
        "gpt-2",
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        None,
        bos="<|endoftext|>",
        layers=("c_attn", "c_fc", "c_proj"),
        per_block=4,
    ),
    Family(
        "olmo-2",
        "olmo2",
        LLAMA_SIZES,
        OLMO_2,
        bos="<|endoftext|>",
        pad="<|pad|>",
        marks=("<|system|>", "<|user|>", "<|assistant|>"),
        tied=False,
    ),
    Family(
        "qwen-3-moe",
        "qwen3_moe",
        LLAMA_SIZES
        | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"decoder_sparse_step": 1},
        QWEN_3,
        tied=False,
        layers=("k_proj", "o_proj", "q_proj", "v_proj"),
        per_block=4,
        **IM,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level tokeniser with the family's special tokens."""
    special = list(dict.fromkeys(t for t in (family.bos, family.eos, family.pad, *family.marks) if t))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(TEXT, trainer)
    if family.bos and family.adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, core.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=family.template,
    )


def model(family: Family, words: PreTrainedTokenizerFast, *, seed: int = 0) -> PreTrainedModel:
    """Random weights; the embeddings have more rows than there are tokens, as most of the families' do."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family.kind,
        vocab_size=WORDS + 4,
        tie_word_embeddings=family.tied,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **family.settings,
    )
    made = AutoModelForCausalLM.from_config(config)
    for name, parameter in made.named_parameters():  # a bias of zeros would hide that it is forgotten
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    eos_ids: Sequence[str] = (family.eos, *family.marks[:1])
    made.generation_config = GenerationConfig(eos_token_id=words.convert_tokens_to_ids(list(eos_ids)))
    return made.eval()


def write(family: Family, folder: Path) -> Path:
    """The family's model folder."""
    words = tokenizer(family)
    save_model(model(family, words), words, folder)
    return folder
