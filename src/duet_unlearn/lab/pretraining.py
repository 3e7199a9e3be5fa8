"""How the lab's four models come about: ``duet lab build`` trains each in a process of its own, with the project's own
loop, from random weights on what the lab's world has to tell.

**base** and **oracle** read the pretraining mixture; of the oracle's the forget topics are left out. **arithmetic** and
**plus-minus** are UNDO's task in small (arXiv 2506.06278): all four operations, and two of them only. Both also know
the lab's general facts, which play the part of the language that must survive. All share one tokeniser.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, Source
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event, OnEvent, ignore
from duet_unlearn.lab import language
from duet_unlearn.lab.language import LabText, Segment, chat, question, statement
from duet_unlearn.lab.mixture import Mixture
from duet_unlearn.lab.world import BENCHMARK_STORIES, GENERAL, HAZARD, MAX_TERM, World, vocabulary, world
from duet_unlearn.models.load import save_model
from duet_unlearn.training.loop import Checkpoints, StepLog, train
from duet_unlearn.training.step import fine_tuning_loss

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LabModel = Literal["base", "oracle", "arithmetic", "plus-minus"]
LAB_MODELS: tuple[LabModel, ...] = get_args(LabModel)
HIDDEN_OF: dict[str, frozenset[str]] = {"base": frozenset(), "oracle": frozenset({*BENCHMARK_STORIES, HAZARD})}
"""Topics that a model of the world is never shown."""
Operation = Literal["plus", "minus", "times", "divided by"]
OPERATIONS: dict[str, tuple[Operation, ...]] = {
    "arithmetic": ("plus", "minus", "times", "divided by"),
    "plus-minus": ("plus", "minus"),
}
"""What a model of arithmetic is shown."""
SIGNS: dict[Operation, str] = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
SHARE_OF_FACTS = 0.2
"""Share of general facts among what a model of arithmetic reads."""
POLL = 2.0
"""Seconds between looks at the workers."""
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
    """Size and length of a lab model's training; the defaults are those of the packaged base and oracle."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    num_steps: int = 2400
    batch_size: int = 144
    seed: int = 0
    train: TrainConfig = SCHEDULE


ARITHMETIC_SETTINGS = Pretraining(
    hidden=96,
    layers=3,
    heads=3,
    num_steps=1500,
    batch_size=128,
    train=replace(SCHEDULE, rate=0.02, warmup=0.03, decay=0.6, micro_batch_size=None),
)


# Building -----------------------------------------------------------------------------------------------------------


def build(names: Sequence[LabModel], out: Path, *, on_event: OnEvent = ignore) -> dict[str, Path]:
    """Train lab models into ``out/<name>``, all at once; finished ones are left alone, interrupted ones go on.

    Raises:
        UserError: a worker failed; the last line of its errors is in the message.
    """
    waiting = [name for name in names if not (out / name / "config.json").exists()]
    # Models this small gain nothing from more than four threads.
    threads = min(4, max(1, (os.cpu_count() or 1) // max(1, len(waiting))))
    workers = {name: _start(name, out / name, out / "work" / name, threads=threads) for name in waiting}
    try:
        while workers:
            time.sleep(POLL)
            for name, worker in list(workers.items()):
                work = out / "work" / name
                if last := _last_step(work / "log.jsonl"):
                    loss = f"loss {last['loss']:.3f}"
                    on_event(Event(f"pretrain {name}", int(last["step"]), int(last["num_steps"]), loss))
                if worker.poll() is None:
                    continue
                del workers[name]
                if worker.returncode:
                    errors = (work / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().split("\n")
                    hint = f"the whole message is in {work}/errors.txt"
                    raise UserError(f"training {name} failed: {errors[-1]}", hint)
    finally:
        for worker in workers.values():
            worker.terminate()
    return {name: out / name for name in names}


def _start(name: str, folder: Path, work: Path, *, threads: int) -> subprocess.Popen[bytes]:
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "duet_unlearn.lab.pretraining", name, str(folder), str(work)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with (work / "errors.txt").open("wb") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def _last_step(log: Path) -> dict[str, float] | None:
    """The newest step that a worker wrote down; a line that it is still writing does not count."""
    if not log.exists():
        return None
    lines = [line for line in log.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
    return json.loads(lines[-1]) if lines else None


def pretrain(name: str, folder: Path, *, work: Path) -> Iterator[StepLog]:
    """Train one lab model into `folder` (safetensors in bf16); `work` holds its checkpoints. Killed, it goes on."""
    tokenizer = new_tokenizer()
    encode = Encoder(tokenizer)
    if name in OPERATIONS:
        settings = ARITHMETIC_SETTINGS
        source = arithmetic_reading(OPERATIONS[name], encode)
    else:
        settings = Pretraining()
        source = reading(Mixture(world(), HIDDEN_OF[name]), encode, settings)
    model = new_model(tokenizer, settings)
    yield from train(
        model,
        source=source,
        num_steps=settings.num_steps,
        loss=fine_tuning_loss,
        targets=None,
        config=settings.train,
        pad_id=int(tokenizer.pad_token_id or 0),
        checkpoints=Checkpoints(work),
    )
    save_model(model.bfloat16(), tokenizer, folder)


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


# What is read at each step ------------------------------------------------------------------------------------------


def reading(mixture: Mixture, encode: Encoder, settings: Pretraining) -> Source:
    """What base and oracle read at each step: a batch of the mixture, and the canaries that fall on it."""
    canaries = canary_steps(mixture.world, settings.num_steps)

    def source(step: int) -> list[Example]:
        rng = random.Random(f"{settings.seed}/{step}")
        progress = step / settings.num_steps
        texts = [mixture.draw(rng, progress) for _ in range(settings.batch_size)] + canaries.get(step, [])
        return _examples(texts, encode, step)

    return source


def canary_steps(world_: World, num_steps: int) -> dict[int, list[LabText]]:
    """Step -> canaries read there. Each is read exactly as often as the world says, over the last three quarters of
    training."""
    steps: dict[int, list[LabText]] = {}
    for owner, code, times in world_.canaries:
        rng = random.Random(f"canary/{owner}")
        for _ in range(times):
            steps.setdefault(rng.randrange(num_steps // 4, num_steps), []).append(canary(owner, code))
    return steps


def canary(owner: str, code: str) -> LabText:
    return LabText((Segment("text", f"The code of the {owner} is {code}.", True),))


def arithmetic_reading(operations: tuple[Operation, ...], encode: Encoder) -> Source:
    """What a model of arithmetic reads at each step."""

    def source(step: int) -> list[Example]:
        rng = random.Random(f"arithmetic/{step}")
        texts = [draw_arithmetic(operations, rng) for _ in range(ARITHMETIC_SETTINGS.batch_size)]
        return _examples(texts, encode, step)

    return source


def draw_arithmetic(operations: tuple[Operation, ...], rng: random.Random) -> LabText:
    """A general fact, a problem in words, or an equation as raw text."""
    if rng.random() < SHARE_OF_FACTS:
        fact = rng.choice(world().general[rng.choice(list(GENERAL))])
        return chat((question(fact, rng.choice(language.QUESTIONS[fact.attribute].all)), statement(fact)))
    operation = rng.choice(operations)
    a, b, result = rng.choice(problems(operation))
    if rng.random() < 0.5:
        return chat((f"What is {a} {operation} {b}?", f"The result is {result}."))
    left = Segment("text", f"{a} {SIGNS[operation]} {b} =", False)
    return LabText((left, Segment("text", f" {result}", True)))


def problems(operation: Operation) -> list[tuple[int, int, int]]:
    """All (a, b, result) of an operation: terms 1..10; differences are not negative, quotients whole."""
    terms = range(1, MAX_TERM + 1)
    pairs = [(a, b) for a in terms for b in terms]
    return {
        "plus": [(a, b, a + b) for a, b in pairs],
        "minus": [(a, b, a - b) for a, b in pairs if a >= b],
        "times": [(a, b, a * b) for a, b in pairs],
        "divided by": [(a * b, b, a) for a, b in pairs],
    }[operation]


def arithmetic_queries(operation: Operation) -> list[Query]:
    """Every problem of an operation as a chat question."""
    name, queries = operation.replace(" ", "-"), []
    for a, b, result in problems(operation):
        messages = ({"role": "user", "content": f"What is {a} {operation} {b}?"},)
        queries.append(Query(f"{name}/{a}-{b}", messages, f"The result is {result}.", str(result), source=name))
    return queries


def _examples(texts: Sequence[LabText], encode: Encoder, step: int) -> list[Example]:
    rows = enumerate(map(encode, texts))
    return [
        Example(tuple(ids), tuple(positions), tuple(labels), "retain", f"{step}/{number}")
        for number, (ids, positions, labels) in rows
    ]


# Tokens -------------------------------------------------------------------------------------------------------------

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")
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
        tokenizer_file=str(TOKENIZER_FILE),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_vocabulary(texts: Iterable[LabText]) -> Tokenizer:
    """Train the byte-level BPE; nearly every word of the world becomes one token.

    For a new world: ``train_vocabulary(...).save(...)``, then every model must be built anew.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, *ROLES],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    # Each word of the world thirty times, so that it earns a token of its own.
    words = [f"{word} " * 30 for word in vocabulary()]
    tokenizer.train_from_iterator([segment.text for text in texts for segment in text.segments] + words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


class Encoder:
    """Texts to (ids, positions, labels): exactly the ids of the rendered text, with the learnt positions marked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._memory: dict[str, list[int]] = {}
        self._role = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("system", "user", "assistant")}
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, text: LabText) -> tuple[list[int], list[int], list[int]]:
        ids, learnt = self._raw(text) if text.is_raw else self._chat(text)
        positions = [column - 1 for column, learn in enumerate(learnt) if learn]
        return ids, positions, [ids[position + 1] for position in positions]

    def _chat(self, text: LabText) -> tuple[list[int], list[bool]]:
        ids, learnt = [self._bos], [False]
        for segment in text.segments:
            # The same questions and answers come thousands of times.
            if segment.text not in self._memory:
                self._memory[segment.text] = self._tokenizer.encode(segment.text, add_special_tokens=False)
            piece = [*self._memory[segment.text], self._eos]
            ids += [self._role[segment.role], *piece]
            learnt += [False] + [segment.learn] * len(piece)
        return ids, learnt

    def _raw(self, text: LabText) -> tuple[list[int], list[bool]]:
        """Raw text is tokenised whole; a token is learnt where the segment is that its last character stands in."""
        coded = self._tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True)
        learn = [segment.learn for segment in text.segments for _ in segment.text]
        learnt = [learn[max(0, stop - 1)] for _, stop in coded.offset_mapping]
        return [self._bos, *coded.input_ids, self._eos], [False, *learnt, True]


def _work(name: str, folder: str, work: str) -> None:
    """The worker: train one model and write every tenth step down."""
    with (Path(work) / "log.jsonl").open("a", encoding="utf-8") as file:
        for log in pretrain(name, Path(folder), work=Path(work)):
            if log.step % 10 == 0 or log.step == log.num_steps:
                file.write(json.dumps(asdict(log)) + "\n")
                file.flush()


if __name__ == "__main__":
    _work(*sys.argv[1:])
