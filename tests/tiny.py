"""The smallest real things: a byte-level tokeniser with a chat template, random Llamas, and hand-made examples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.data.examples import Example

VOCABULARY = 300
BOS, EOS = 0, 1
SPECIAL = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""It writes the BOS itself, and ends every turn with the EOS, which is the pad token too."""


@cache
def _core() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(
        ["Where does Mira Bol live? Mira Bol lives in Tarn. You have forgotten Tarn."] * 5, trainer
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return core.to_str()


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokeniser that puts a BOS in front of text, as Llama's does; pad is EOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=template,
    )


def llama(*, seed: int = 0, hidden: int = 16, layers: int = 1, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """Random weights, large enough that logits are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def example(ids: Sequence[int], positions: Sequence[int], key: str, *, role: Literal["forget", "retain"]) -> Example:
    """An example whose labels are its own next tokens."""
    labels = tuple(ids[column + 1] for column in positions)
    return Example(tuple(ids), tuple(positions), labels, role, key)


def examples(lengths: Sequence[int], *, positions: int = 2, seed: int = 0) -> list[Example]:
    """Random rows, forget and retain by turns; the loss reads their last `positions` places."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(5, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]
    return [
        example(
            row,
            range(len(row) - 1 - positions, len(row) - 1),
            f"q{index}",
            role="forget" if index % 2 == 0 else "retain",
        )
        for index, row in enumerate(rows)
    ]
