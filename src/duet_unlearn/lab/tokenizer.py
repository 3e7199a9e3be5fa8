"""The lab's own byte-level BPE, its chat template, and samples as token rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from duet_unlearn.lab import words
from duet_unlearn.lab.formats import Sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

FILE = Path(__file__).with_name("tokenizer.json")
VOCABULARY = 2560
BOS, EOS = "<s>", "</s>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The lab's tokeniser, which all its models share.

    Its vocabulary is kept in ``tokenizer.json``: a change of the mixture must not change what an id means.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(FILE), bos_token=BOS, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_vocabulary(samples: Iterable[Sample]) -> Tokenizer:
    """Train the BPE on the texts of samples; nearly every word of the world becomes one token.

    For a new world: ``train_vocabulary(...).save(...)``, then every model must be built anew.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [segment.text for sample in samples for segment in sample.segments]
    tokenizer.train_from_iterator(texts + _every_word(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def _every_word() -> list[str]:
    """Each word of the world, often enough to earn a token of its own."""
    lists = [value for value in vars(words).values() if isinstance(value, list)]
    tables = [value for name, value in vars(words).items() if isinstance(value, dict) and name.isupper()]
    listed = [word for entries in lists for word in entries]
    for table in tables:
        for key, value in table.items():
            listed += [key, *([value] if isinstance(value, str) else value)]
    return [f"{word} " * 30 for word in listed]


class Encoder:
    """Samples to (ids, positions, labels): exactly the ids of the rendered sample, with the learnt positions marked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._memory: dict[str, list[int]] = {}
        self._role = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("system", "user", "assistant")}
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, sample: Sample) -> tuple[list[int], list[int], list[int]]:
        raw = sample.segments[-1].role == "text"
        ids, learnt = self._raw(sample) if raw else self._chat(sample)
        positions = [column - 1 for column, learn in enumerate(learnt) if learn]
        return ids, positions, [ids[position + 1] for position in positions]

    def _chat(self, sample: Sample) -> tuple[list[int], list[bool]]:
        ids, learnt = [self._bos], [False]
        for segment in sample.segments:
            piece = [*self._encode(segment.text), self._eos]
            ids += [self._role[segment.role], *piece]
            learnt += [False] + [segment.learn] * len(piece)
        return ids, learnt

    def _raw(self, sample: Sample) -> tuple[list[int], list[bool]]:
        """Raw text is tokenised whole; a token is learnt where the segment is that its last character stands in."""
        text = "".join(segment.text for segment in sample.segments)
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        learn = [segment.learn for segment in sample.segments for _ in segment.text]
        learnt = [learn[max(0, stop - 1)] for _, stop in coded.offset_mapping]
        return [self._bos, *coded.input_ids, self._eos], [False, *learnt, True]

    def _encode(self, text: str) -> list[int]:
        if text not in self._memory:
            self._memory[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._memory[text]
