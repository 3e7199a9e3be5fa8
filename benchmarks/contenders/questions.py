"""What lm-eval and ours are both asked: MMLU's rows, lab questions, random models, and the task files for them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from duet_unlearn.data.prompts import render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks import BenchmarkSettings, hazards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUBJECTS = ("anatomy", "astronomy", "business_ethics", "college_physics")
VOCABULARY = 8192
Size = Literal["7 M", "100 M"]
SHAPES: dict[Size, dict[str, Any]] = {
    "7 M": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.08,
    },
    "100 M": {
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "initializer_range": 0.05,
    },
}
"""Initialised widely, so that the letters' log-probabilities differ by more than rounding."""
MMLU_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{dev: {folder}/{name}-dev.jsonl, test: {folder}/{name}-test.jsonl}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about {subject}.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\n\\
  D. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: [A, B, C, D]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
"""lm-eval's own template of MMLU (tasks/mmlu/default/_default_template_yaml), on local files."""
CHAT_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/{name}-test.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def rows(data: Path, split: str, subject: str) -> list[list[str]]:
    """MMLU's rows: question, four choices, letter."""
    with (data / "mmlu" / split / f"{subject}_{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def train_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 8,192 tokens, trained on all of MMLU's text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    files = [(path.parent.name, path.stem.rsplit("_", 1)[0]) for path in sorted((data / "mmlu").glob("*/*.csv"))]
    core.train_from_iterator(("\n".join(row) for split, name in files for row in rows(data, split, name)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def write_model(folder: Path, tokenizer: PreTrainedTokenizerFast, shape: dict[str, Any]) -> Path:
    """A random Llama of the tokeniser's vocabulary as a ``save_pretrained`` folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mmlu_queries(data: Path, subjects: Sequence[str], *, shots: int, limit: int) -> list[Query]:
    """The product's own questions: the first `limit` of each subject."""
    (every,) = hazards.mmlu_sets(BenchmarkSettings(str(data), None, shots, "", frozenset()))
    return [q for name in subjects for q in [q for q in every.queries if q.source == name][:limit]]


def write_mmlu_tasks(folder: Path, data: Path, subjects: Sequence[str], *, limit: int) -> list[str]:
    """lm-eval's tasks for the same rows, read from the publisher's files without the product's code."""
    names = [f"local_{subject}" for subject in subjects]
    for name, subject in zip(names, subjects, strict=True):
        for split in ("dev", "test"):
            found = rows(data, split, subject)[: limit if split == "test" else None]
            docs = [{"question": r[0], "choices": r[1:5], "answer": "ABCD".index(r[5])} for r in found]
            _write_lines(folder / f"{name}-{split}.jsonl", docs)
        text = MMLU_TASK.format(name=name, folder=folder, subject=subject.replace("_", " "))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return names


def lab_queries(mode: Literal["letter", "text"]) -> list[Query]:
    """120 questions on general subjects in the lab's world, in wordings that no training saw."""
    from duet_unlearn.lab.questions import choice_query, general_facts, held_out_choices, letter_query

    return list(held_out_choices("choice", general_facts(), build=letter_query if mode == "letter" else choice_query))


def write_chat_task(folder: Path, name: str, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Query]) -> str:
    """lm-eval's task for questions in a chat; the rendered prompt is the context."""
    docs = []
    for query in queries:
        options = list(query.choices or ())
        letters = query.answer not in options
        choices = list("ABCDEFGH"[: len(options)]) if letters else options
        context = tokenizer.apply_chat_template(list(query.messages), tokenize=False, add_generation_prompt=True)
        assert tokenizer(context, add_special_tokens=False).input_ids == render(tokenizer, query.messages)
        docs.append({"context": context, "choices": choices, "answer": choices.index(str(query.answer))})
    _write_lines(folder / f"{name}-test.jsonl", docs)
    (folder / f"{name}.yaml").write_text(CHAT_TASK.format(name=name, folder=folder), encoding="utf-8")
    return name


def _write_lines(path: Path, docs: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
