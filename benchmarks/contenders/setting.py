"""What every contender is given: one random Llama with its tokeniser, the same queries, the same settings."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from duet_unlearn.config.sections import TrainConfig
    from duet_unlearn.data.examples import Example
    from duet_unlearn.data.prompts import Prefix
    from duet_unlearn.data.query import Query

SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "<|begin|>{% for m in messages %} <|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %} <|assistant|>{% endif %}"
)
WRAPPING = 4
"""Tokens that the template puts around one question."""


@dataclass(frozen=True)
class Setting:
    """Model, data and training of one race. Every length is in tokens."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    """Type of the weights, and so of the arithmetic."""
    vocabulary: int = 128_256
    hidden: int = 512
    intermediate: int = 1536
    layers: int = 11
    heads: int = 8
    kv_heads: int = 4
    queries: int = 64
    """Half of them forget, half retain; a multiple of `batch`, since TRL drops what is left over."""
    batch: int = 8
    prompt: tuple[int, int] = (24, 40)
    """Shortest and longest student prompt, the template included."""
    prefix: int = 60
    """What the teacher's prompt has in front of that."""
    k: int = 1000
    rate: float = 1e-5
    seed: int = 0


def full(device: Literal["cpu", "cuda"]) -> Setting:
    """About 100 M parameters; on CUDA in bf16, with about the paper's 100 + 100 queries, in batches of 16."""
    return Setting("cpu", "float32") if device == "cpu" else Setting("cuda", "bfloat16", queries=192, batch=16)


def tiny(device: Literal["cpu", "cuda"]) -> Setting:
    """Seconds, not minutes: for the tests."""
    shape = {"vocabulary": 2048, "hidden": 64, "intermediate": 128, "layers": 2, "heads": 4, "kv_heads": 2}
    return Setting(device, "float32", **shape, queries=8, batch=4, prompt=(10, 16), prefix=12, k=100)


def write_setting(setting: Setting, folder: Path) -> None:
    (folder / "setting.json").write_text(json.dumps(asdict(setting)), encoding="utf-8")


def read_setting(folder: Path) -> Setting:
    values: dict[str, Any] = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    return Setting(**{**values, "prompt": tuple(values["prompt"])})


def build_model(setting: Setting, folder: Path) -> None:
    """Write the random model and its tokeniser as a ``save_pretrained`` folder."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(setting.seed)
    model = LlamaForCausalLM(llama_config(setting)).to(getattr(torch, setting.dtype))
    model.save_pretrained(folder)
    build_tokenizer(setting.vocabulary).save_pretrained(folder)


def llama_config(setting: Setting) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        tie_word_embeddings=True,
        initializer_range=0.1,  # logits as spread as a trained model's; with 0.02 the losses are near rounding
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: the words are w5, w6, .."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), vocabulary))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=SPECIAL[2]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[2]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def queries(setting: Setting) -> tuple[list[Query], list[Query], Prefix]:
    """Forget queries, retain queries, and the prefix, all of random words."""
    from duet_unlearn.data.prompts import Prefix
    from duet_unlearn.data.query import Query

    rng = random.Random(setting.seed)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(len(SPECIAL), setting.vocabulary)}" for _ in range(length))

    def query(number: int) -> Query:
        length = rng.randint(*setting.prompt) - WRAPPING
        return Query(f"q{number}", ({"role": "user", "content": text(length)},))

    every = [query(number) for number in range(setting.queries)]
    half = setting.queries // 2
    return every[:half], every[half:], Prefix(text(setting.prefix))


def asked(setting: Setting) -> list[Example]:
    """The queries as the product asks them of the teacher: the prefix in front of all, as in the paper."""
    from duet_unlearn.data.examples import example_of

    forget, retain, prefix = queries(setting)
    return [example_of(q, "forget", prefix=prefix) for q in forget] + [
        example_of(q, "retain", prefix=prefix) for q in retain
    ]


def train_config(setting: Setting) -> TrainConfig:
    """One epoch at a constant rate, no checkpoints: none of the contenders writes any."""
    from duet_unlearn.config.sections import TrainConfig

    return TrainConfig(epochs=1, rate=setting.rate, batch_size=setting.batch, checkpoint_every=0)
