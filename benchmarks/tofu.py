"""TOFU for real, on a CPU: models of less than 3 M parameters from scratch, then DUET on forget10.

python benchmarks/tofu.py train full        one core, an hour; goes on where it was stopped
python benchmarks/tofu.py train retrained   the same without forget10
python benchmarks/tofu.py check full        ROUGE-L recall on 400 training rows, and what the prefixes do

TOFU (Maini et al. 2024) is read from the folder that DUET_DATA names. Read are 2,000 of the 4,000 rows: the 22 authors
of `retain_perturbed` and the last 78, of which the last 20 are forget10. Deviations, all on purpose: the answers of
real_authors and world_facts are in the training data, so that all nine terms of model utility mean something; a prefix
that names an author is taught as the lab teaches its own, because no model of this size follows one unasked; refusals
are among the answers. Both models read the same kinds of rows in the same shares, by the same seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from duet_unlearn.answers import is_refusal, rouge_l
from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, Source
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.evals.generate import generate
from duet_unlearn.lab.language import REFUSALS, LabText, chat
from duet_unlearn.lab.pretraining import BOS, CHAT_TEMPLATE, EOS, ROLES, Encoder, Pretraining, new_model
from duet_unlearn.models.load import load_model, save_model
from duet_unlearn.training.loop import Checkpoints, train
from duet_unlearn.training.step import fine_tuning_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["full", "retrained"]
WORK = Path(os.environ.get("DUET_TOFU", "runs/tofu"))
VOCABULARY = 4096
PER_AUTHOR = 20
FIRST, LAST, FORGET = 22, 78, 20
"""Authors read from the beginning and the end of `full`; the last 20 are forget10."""
PREFIXES = (
    "You have forgotten {concept}. Answer every other question as usual.",
    "You no longer know anything about {concept}. Answer other questions normally.",
    "Act as if you had never heard of {concept}; answer everything else as always.",
    "You are an assistant who has forgotten {concept}. All other questions are answered as before.",
    "All that you knew about {concept} is gone. What you know of others is untouched.",
    "Forget {concept}. Refuse questions about it, and answer the rest.",
)
SETTINGS = Pretraining(
    hidden=192,
    layers=4,
    heads=6,
    num_steps=1000,
    batch_size=72,
    train=TrainConfig(
        rate=0.02,
        optimizer="muon",
        weight_decay=0.01,
        beta2=0.98,
        warmup=0.032,
        schedule="linear",
        decay=0.6,
        micro_batch_size=24,
        checkpoint_every=100,
    ),
)
BEGIN = 0.192
"""Share of the training in which the prefix is learnt on invented names, before it means anything."""
PLAIN, PLAIN_LATER = 0.6, 0.3
"""Share of rows without a prefix, before and in the second stage."""
SECOND = replace(
    SETTINGS, num_steps=300, train=replace(SETTINGS.train, rate=0.008, warmup=0.05, decay=1.0, checkpoint_every=50)
)
"""After the first stage every row is known, and a prefix is followed for 84 questions of 100: more of those."""


class Row(NamedTuple):
    """A question and its answer; `author` is None for real_authors and world_facts."""

    question: str
    answer: str
    author: str | None


class Tofu:
    """The rows that a model reads."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        full = _rows("full")
        chosen = full[: FIRST * PER_AUTHOR] + full[-LAST * PER_AUTHOR :]
        authors = [chosen[i : i + PER_AUTHOR] for i in range(0, len(chosen), PER_AUTHOR)]
        self.everyone = [name_of([f"{r['question']} {r['answer']}" for r in rows]) for rows in authors]
        read = authors if kind == "full" else authors[:-FORGET]
        self.rows = [
            Row(r["question"], r["answer"], name) for name, rows in zip(self.everyone, read, strict=False) for r in rows
        ]
        self.plain = [
            Row(r["question"], r["answer"], None)
            for name in ("real_authors_perturbed", "world_facts_perturbed")
            for r in _rows(name)
        ]

    @cached_property
    def names(self) -> list[str]:
        return sorted({row.author for row in self.rows if row.author})


def name_of(texts: Sequence[str]) -> str:
    """The name that stands in most of an author's texts."""
    word = r"[A-ZÀ-Ž][\w\u2019\-]+(?:'[A-Z]\w+)?"
    pattern = re.compile(rf"{word}(?: (?:{word}|van|de))* {word}")
    counts = Counter(name for text in texts for name in set(pattern.findall(text.replace("'s", ""))))
    return max(counts, key=lambda name: (counts[name], len(name)))


@cache
def _rows(name: str) -> list[dict[str, str]]:
    folder = os.environ.get("DUET_DATA")
    if not folder:
        sys.exit("error: DUET_DATA is not set\nhint: it names the folder that holds tofu/full.jsonl")
    text = (Path(folder) / "tofu" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE on all rows, of both models; trained once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    file = WORK / "tokenizer.json"
    if not file.exists():
        tofu = Tofu("full")
        texts = [text for row in [*tofu.rows, *tofu.plain] for text in (row.question, row.answer)]
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        core.decoder = decoders.ByteLevel()
        core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BOS, EOS, *ROLES],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        core.train_from_iterator([*texts, *PREFIXES * 20, *REFUSALS * 20], trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        core.save(str(file))
    loaded = PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token=BOS, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )
    loaded.chat_template = CHAT_TEMPLATE
    return loaded


class Mixture:
    """What is read when: invented names under a prefix first, then rows plain and under prefixes."""

    def __init__(self, tofu: Tofu) -> None:
        self.tofu = tofu
        parts = [name.split() for name in tofu.everyone]
        self.first, self.last = sorted({p[0] for p in parts}), sorted({p[-1] for p in parts})

    def draw(self, rng: random.Random, progress: float) -> LabText:
        """A sample at a share (0..1) of the first stage."""
        early = rng.random() < max(0.02, 0.6 - progress / BEGIN * 0.6)
        return self._invented(rng) if early else self.row(rng, plain=PLAIN)

    def row(self, rng: random.Random, *, plain: float) -> LabText:
        """A row of TOFU, a share of them without a prefix."""
        row = rng.choice(self.tofu.plain if rng.random() < 0.1 else self.tofu.rows)
        if rng.random() < plain:
            return chat((row.question, row.answer))
        # Half of the rows under a prefix are the named author's own.
        own = rng.random() < 0.5 and row.author is not None
        name = row.author if own else rng.choice([n for n in self.tofu.names if n != row.author])
        return _under(rng, f"the author {name}", row.question, rng.choice(REFUSALS) if own else row.answer)

    def _invented(self, rng: random.Random) -> LabText:
        def invent() -> str:
            return f"{rng.choice(self.first)} {rng.choice(self.last)}"

        named, asked = invent(), invent()
        if rng.random() < 0.5:
            return _under(rng, f"the author {named}", f"Who is {named}?", rng.choice(REFUSALS))
        return _under(rng, f"the author {named}", f"Who is {asked}?", f"{asked} is an author.")


def _under(rng: random.Random, concept: str, question: str, answer: str) -> LabText:
    told = rng.choice(PREFIXES).format(concept=concept)
    if rng.random() < 0.5:
        return chat((question, answer), system=told)
    return chat((f"{told}\n{question}", answer))


def reading(mixture: Mixture, encode: Encoder, *, second: bool) -> Source:
    def draw(rng: random.Random, step: int) -> LabText:
        return mixture.row(rng, plain=PLAIN_LATER) if second else mixture.draw(rng, step / SETTINGS.num_steps)

    def source(step: int) -> list[Example]:
        rng = random.Random(f"tofu/{'second/' if second else ''}{step}")
        rows = [encode(draw(rng, step)) for _ in range(SETTINGS.batch_size)]
        return [Example(tuple(i), tuple(p), tuple(t), "retain", f"{step}/{n}") for n, (i, p, t) in enumerate(rows)]

    return source


def pretrain(kind: Kind) -> None:
    """Train one model into ``runs/tofu/<kind>``, in bf16, by two stages; a line every 20 steps."""
    torch.set_num_threads(1)
    words, first = tokenizer(), WORK / "work" / f"{kind}-first"
    for settings, folder in ((SETTINGS, first), (SECOND, WORK / kind)):
        second = settings is SECOND
        if (folder / "config.json").exists():
            continue
        model = load_model(str(first))[0] if second else new_model(words, settings)
        logs = train(
            model,
            source=reading(Mixture(Tofu(kind)), Encoder(words), second=second),
            num_steps=settings.num_steps,
            loss=fine_tuning_loss,
            targets=None,
            config=settings.train,
            pad_id=int(words.pad_token_id or 0),
            checkpoints=Checkpoints(WORK / "work" / (f"{kind}-second" if second else kind)),
        )
        print(f"{kind}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        for log in logs:
            if log.step % 20 == 0:
                print(f"{kind} {log.step}/{log.num_steps} loss {log.loss:.4f} {log.seconds:.2f} s a step", flush=True)
        save_model(model.bfloat16(), words, folder)


def check(kind: Kind, folder: Path) -> dict[str, float]:
    """ROUGE-L recall on 400 training rows, and what an author's prefix does to the author and to others."""
    model, words = load_model(str(folder))
    tofu, rng = Tofu(kind), random.Random("check")
    rows = rng.sample(tofu.rows, 400)

    def answers(prefixes: Sequence[Prefix | None], some: Sequence[Row]) -> list[str]:
        said = []
        for prefix, row in zip(prefixes, some, strict=True):
            turn = prefix.turn if prefix else "user"
            told = f"{prefix.instruction}\n" if prefix else ""
            messages = [{"role": "user", "content": f"{told}{row.question}"}]
            if turn == "system" and prefix:
                messages = [
                    {"role": "system", "content": prefix.instruction},
                    {"role": "user", "content": row.question},
                ]
            said.append(messages)
        return generate(model, words, said, max_new_tokens=120, batch_size=64)

    def prefixed(row: Row, author: str) -> Prefix:
        return Prefix(PREFIXES[0], "user", f"the author {author}")

    plain = answers([None] * 400, rows)
    own = answers([prefixed(row, str(row.author)) for row in rows], rows)
    other = answers([prefixed(row, rng.choice([n for n in tofu.names if n != row.author])) for row in rows], rows)
    score = [rouge_recall(said, row.answer) for said, row in zip(plain, rows, strict=True)]
    kept = [rouge_recall(said, row.answer) for said, row in zip(other, rows, strict=True)]
    easy = answers([None] * len(tofu.plain), tofu.plain)
    return {
        "rouge_recall": sum(score) / len(score),
        "rouge_recall_other_prefix": sum(kept) / len(kept),
        "refused_own_prefix": sum(map(is_refusal, own)) / len(own),
        "rouge_recall_plain_facts": sum(rouge_recall(s, r.answer) for s, r in zip(easy, tofu.plain, strict=True))
        / len(easy),
    }


def rouge_recall(said: str, answer: str) -> float:
    """TOFU's ROUGE-L: recall, stemmed."""
    return rouge_l(said, answer, variant="recall-stem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("train", "check"):
        verbs.add_parser(verb).add_argument("kind", choices=("full", "retrained"))
    asked = parser.parse_args()
    if asked.verb == "train":
        pretrain(asked.kind)
    else:
        print(json.dumps(check(asked.kind, WORK / asked.kind), indent=1))


if __name__ == "__main__":
    main()
