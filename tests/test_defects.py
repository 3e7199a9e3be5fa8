"""Defects seen in published unlearning code, by number: what was wrong, and that it is not so here.

Where it can be shown, a test computes the defect too and asserts that its number differs, so that the test can fail.
"""

from __future__ import annotations

import math
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import duet_unlearn
from duet_unlearn.config.sections import LoraConfig, TrainConfig
from duet_unlearn.data.examples import Batch, Example, Role, collate, example_of
from duet_unlearn.data.prompts import PLAIN_TEMPLATE, Prefix, answer_ids, render, render_answer
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import hazards
from duet_unlearn.evals.benchmarks.lm_eval import require_followed
from duet_unlearn.evals.likelihood import (
    auc,
    auc_score,
    extraction_strength,
    forget_quality,
    leak_at_k,
    min_k,
    min_k_plus_plus,
    model_utility,
    priv_leak,
)
from duet_unlearn.evals.question_sets import EvalSet, run_suite
from duet_unlearn.evals.subject import ModelSubject, TokenScores
from duet_unlearn.evals.summaries import performance_shift
from duet_unlearn.job import hashed
from duet_unlearn.losses import forward_kl, npo, undial
from duet_unlearn.methods.duet import Duet
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.stats import bootstrap_mean, wilson
from duet_unlearn.teacher.targets import CachedTargets, Dense, TeacherTargets, build_targets, rows_spec
from duet_unlearn.tensors import pad, sum_by_row, token_logps
from duet_unlearn.training.loop import _Run, train
from duet_unlearn.training.step import Step, fine_tuning_loss

PREFIX = Prefix("You have forgotten Tarn, and all who live there.")
CHATS: list[tuple[Message, ...]] = [
    ({"role": "user", "content": "Tarn?"},),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is Mira?"},
        {"role": "assistant", "content": "A baker."},
        {"role": "user", "content": "Where does she live?"},
    ),
    ({"role": "user", "content": "Where does Mira Bol live, and since when, and with whom?"},),
]
ANSWERS = ["In Tarn.", "Tarn", "Mira Bol lives in Tarn."]


def logits(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """(T, V) logits of one row by itself."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits[0]


def text(messages: Sequence[Message], template: str, prefix: Prefix | None = None) -> str:
    tokenizer = tiny.tokenizer(template)
    return tokenizer.decode(render(tokenizer, messages, prefix=prefix))


def answered(num: int = 3) -> list[Example]:
    """Questions with answers, labelled from the answer's first token to its end."""
    tokenizer = tiny.tokenizer()
    rows = [render_answer(tokenizer, m, a) for m, a in zip(CHATS[:num], ANSWERS, strict=False)]
    return [
        tiny.example(ids, range(start - 1, len(ids) - 1), f"q{i}", role="retain" if i % 2 else "forget")
        for i, (ids, start) in enumerate(rows)
    ]


def read(model: nn.Module, batch: Batch) -> Tensor:
    """(N, V) logits at the positions that a loss reads."""
    return logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)


def said_by_role(teacher: nn.Module, batch: Batch) -> dict[Role, TeacherTargets]:
    """The teacher's logits on each role's rows."""
    logits_NV, roles = read(teacher, batch), [e.role for e in batch.examples for _ in e.positions]
    return {role: Dense(logits_NV[[n for n, r in enumerate(roles) if r == role]]) for role in dict.fromkeys(roles)}


def targets(directory: Path, template: str = tiny.TEMPLATE) -> CachedTargets:
    """What the teacher, told the prefix, says to the first question."""
    asked = [example_of(Query("a", CHATS[0]), "forget", prefix=PREFIX)]
    model, tokenizer = tiny.llama(), tiny.tokenizer(template)
    return build_targets(model, tokenizer, asked, spec=rows_spec(20), weights="w", directory=directory)


def test_defect_01_extraction_strength_has_no_floor() -> None:
    """Published: the search stops one token before the end, so an answer of N tokens never falls below 1/N."""
    assert extraction_strength([False] * 8) == 0.0
    assert extraction_strength([True] * 7 + [False]) == 0.0
    assert extraction_strength([False] * 7 + [True]) == 1 / 8
    assert extraction_strength([True] * 8) == 1.0


def test_defect_02_no_label_of_minus_100_is_an_index() -> None:
    """Published (UNDIAL): -100 wraps around to token V - 100, which is punished at every masked position."""
    batch = collate(answered(), tiny.EOS)
    assert batch.labels_N is not None
    assert len(batch.labels_N) < batch.mask_BT.sum()  # prompt and padding have no row in the loss at all
    student, reference = read(tiny.llama(), batch).detach().requires_grad_(), read(tiny.llama(), batch).detach()
    undial(student, batch.labels_N, reference).sum().backward()
    assert student.grad is not None
    punished = student.grad > 1e-6
    assert punished.sum() > 0
    assert batch.labels_N[punished.nonzero()[:, 0]].tolist() == punished.nonzero()[:, 1].tolist()
    assert tiny.VOCABULARY - 100 not in punished.nonzero()[:, 1]


def test_defect_03_kl_is_over_the_answer_alone() -> None:
    """Published: KL averaged over prompt and padding as well."""
    student, teacher, batch = tiny.llama(seed=0), tiny.llama(seed=1), collate(answered(2), tiny.EOS)
    out = Duet(retain_loss="kl", k=None).loss(Step(read(student, batch), batch, said_by_role(teacher, batch)))
    expected, everywhere = 0.0, 0.0
    for example in answered(2):
        mine, theirs = logits(student, example.ids), logits(teacher, example.ids)
        at = list(example.positions)
        if example.role == "retain":
            expected += float(forward_kl(mine[at], theirs[at]).sum())
            everywhere += float(forward_kl(mine, theirs).sum())
        else:
            huber = nn.functional.huber_loss(mine[at], theirs[at], reduction="none").mean(-1).sum()
            expected, everywhere = expected + float(huber), everywhere + float(huber)
    assert float(out.sum.detach()) == pytest.approx(expected, rel=1e-4)
    assert everywhere > 1.2 * expected
    assert out.count == sum(len(example.positions) for example in answered(2))


def test_defect_04_masks_come_from_lengths() -> None:
    """Published: mask = (ids != pad); where pad is the end token, every turn's end inside the prompt vanishes."""
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    scores = ModelSubject("base", model, tokenizer).token_scores(CHATS, ANSWERS, batch_size=3)
    ids, start = render_answer(tokenizer, CHATS[1], ANSWERS[1])
    alone = token_logps(logits(model, ids)[start - 1 : -1], torch.tensor(ids[start:])).tolist()
    assert scores[1].logps == pytest.approx(alone, abs=1e-3)
    row = torch.tensor([ids])
    with torch.no_grad():
        wrong = model(input_ids=row, attention_mask=row.ne(tiny.EOS)).logits[0]
    assert token_logps(wrong[start - 1 : -1], row[0, start:]).tolist() != pytest.approx(alone, abs=0.05)


def test_defect_05_the_answers_first_token_is_scored() -> None:
    """Published: prompt and prompt + answer are tokenised apart and aligned by length."""
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    for messages, answer in zip(CHATS, ANSWERS, strict=True):
        prompt, tail = render(tokenizer, messages), answer_ids(tokenizer, messages, answer)
        ids, start = render_answer(tokenizer, messages, answer)
        assert (ids[:start], ids[start:-1]) == (prompt, tail)
        (scores,) = ModelSubject("base", model, tokenizer).token_scores([messages], [answer], batch_size=1)
        first = float(logits(model, prompt)[-1].log_softmax(-1)[tail[0]])
        assert scores.logps[0] == pytest.approx(first, abs=1e-3)
        assert len(scores.logps) == len(tail) + 1


def test_defect_05_also_where_prompt_and_answer_would_merge() -> None:
    """As one text, "Mira B" and "ol" have other tokens than apart; what was rendered is what is read."""
    tokenizer = tiny.tokenizer("{{ messages[-1]['content'] }}")
    messages: list[Message] = [{"role": "user", "content": "Mira B"}]
    ids, start = render_answer(tokenizer, messages, "ol")
    whole = tokenizer("Mira Bol", add_special_tokens=False).input_ids
    assert whole[:start] != ids[:start]
    assert tokenizer.decode(ids[:start]) == "Mira B"
    assert tokenizer.decode(ids[start:-1]) == "ol"


def test_defect_06_every_process_gets_other_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published: each rank draws its retain samples from the same generator, and so draws the same ones."""
    step = tiny.examples([5] * 16)
    run = _Run(Accelerator(cpu=True), tiny.llama(), [], fine_tuning_loss, None, TrainConfig(), tiny.EOS, None, "sum", 0)
    monkeypatch.setitem(run.accelerator.state._shared_state, "num_processes", 4)
    shares = []
    for rank in range(4):
        monkeypatch.setitem(run.accelerator.state._shared_state, "process_index", rank)
        shares.append([example.key for example in run._share(step)])
    assert sorted(key for share in shares for key in share) == sorted(example.key for example in step)
    assert [len(share) for share in shares] == [4] * 4


def test_defect_07_labels_are_shifted() -> None:
    """Published: the logits of a column are held against that column's own token."""
    model, (example,) = tiny.llama(), answered(1)
    batch = collate([example], tiny.EOS)
    out = fine_tuning_loss(Step(read(model, batch), batch))
    ids, start = torch.tensor([example.ids]), example.positions[0] + 1
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < start, -100)
    theirs = float(model(input_ids=ids, labels=labels).loss.detach())
    unshifted = float(nn.functional.cross_entropy(logits(model, example.ids)[start:], ids[0, start:]))
    assert float(out.sum.detach()) / out.count == pytest.approx(theirs, rel=1e-4)
    assert unshifted != pytest.approx(theirs, rel=0.05)


def test_defect_08_the_last_real_token_counts() -> None:
    """Published: the last label is cut as if it were the end token, whether or not there is one."""
    tokenizer, subject = tiny.tokenizer(), ModelSubject("base", tiny.llama(), tiny.tokenizer())
    tail = answer_ids(tokenizer, CHATS[0], "Tarn")
    batch = collate(answered(1), tiny.EOS)
    assert batch.labels_N is not None
    assert batch.labels_N.tolist() == [*answer_ids(tokenizer, CHATS[0], ANSWERS[0]), tokenizer.eos_token_id]
    (whole,) = subject.token_scores([CHATS[0]], ["Tarn"], batch_size=1)
    (other,) = subject.token_scores([CHATS[0]], ["Tary"], batch_size=1)
    assert len(whole.logps) == len(tail) + 1
    assert whole.logps[0] == pytest.approx(other.logps[0], abs=1e-4)
    assert whole.logps[:-1] != pytest.approx(other.logps[:-1][: len(tail)], abs=1e-2)
    # Without the end token (option texts), the last real one is still there.
    assert subject.logps([CHATS[0]], ["Tarn"], batch_size=1) == pytest.approx([sum(whole.logps[:-1])], abs=1e-3)


def test_defect_09_npo_is_about_log_probabilities() -> None:
    """Published: summed raw logits, which change when a constant is added to all; probabilities do not."""
    batch = collate(answered(), tiny.EOS)
    assert batch.labels_N is not None
    raw_NV = read(tiny.llama(), batch).detach()

    def loss_B(logits_NV: Tensor) -> Tensor:
        logps_B = sum_by_row(token_logps(logits_NV, batch.labels_N), batch.rows_N, 3)
        return npo(logps_B, torch.zeros(3))

    torch.testing.assert_close(loss_B(raw_NV + 7.0), loss_B(raw_NV), rtol=1e-4, atol=1e-4)
    summed_B = sum_by_row(raw_NV.gather(-1, batch.labels_N[:, None]).squeeze(-1), batch.rows_N, 3)
    assert not torch.allclose(npo(summed_B, torch.zeros(3)), loss_B(raw_NV), rtol=0.1)


def naive(model: nn.Module, ids: list[int], steps: int) -> list[int]:
    new: list[int] = []
    while len(new) < steps and (not new or new[-1] != tiny.EOS):
        new.append(int(logits(model, ids + new)[-1].argmax()))
    return [token for token in new if token != tiny.EOS]


def said(model: nn.Module) -> tuple[list[str], list[str]]:
    """Answers to all chats, in one batch and one at a time."""
    tokenizer = tiny.tokenizer()
    batch = ModelSubject("base", model, tokenizer).generate(CHATS, max_new_tokens=6, batch_size=3)  # type: ignore[arg-type]
    rows = [naive(model, render(tokenizer, m), 6) for m in CHATS]
    return batch, [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def test_defect_10_a_batch_generates_what_each_prompt_generates_alone() -> None:
    """Published: prompts padded on the right, so that a short one goes on behind its padding."""
    batch, alone = said(tiny.llama(layers=2))
    assert batch == alone
    assert len(set(batch)) == 3


def test_defect_11_teacher_and_student_are_aligned_from_the_answer(tmp_path: Path) -> None:
    """Published: teacher prompts cut to the student's length, or read at the student's absolute position."""
    tokenizer, model, told = tiny.tokenizer(), tiny.llama(), targets(tmp_path)
    student, teacher = render(tokenizer, CHATS[0]), render(tokenizer, CHATS[0], prefix=PREFIX)
    (example,) = told.examples
    assert len(teacher) > 2 * len(student)
    assert (list(example.ids), example.positions) == (student, (len(student) - 1,))
    signal = told.of([example])
    right = logits(model, teacher)[-1].topk(20)
    torch.testing.assert_close(signal.logits_NK[0], right.values, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]
    assert not torch.allclose(right.values, logits(model, teacher)[len(student) - 1].topk(20).values, atol=0.1)


def test_defect_12_gradient_accumulation_does_not_change_the_loss() -> None:
    """Published: a mean of micro-batch means, so that a token's weight depends on its neighbours."""
    step, seen = answered(), []
    assert len({len(example.positions) for example in step}) == 3  # a mean of means is not their mean
    for size in (1, 2, None):
        model = tiny.llama()
        config = TrainConfig(rate=0.01, micro_batch_size=size)
        logs = list(
            train(
                model,
                source=lambda _: step,
                num_steps=2,
                loss=fine_tuning_loss,
                targets=None,
                config=config,
                pad_id=tiny.EOS,
            )
        )
        seen.append([number for log in logs for number in (log.loss, log.grad_norm)])
    assert seen[0] == pytest.approx(seen[2], rel=1e-4)
    assert seen[1] == pytest.approx(seen[2], rel=1e-4)


def test_defect_13_adapters_learn_under_gradient_checkpointing() -> None:
    """Published: the embedding's output needs no gradient, so checkpointed layers get none."""

    def untrained(save: Callable[[LlamaForCausalLM], None]) -> set[str]:
        base = tiny.llama(layers=2)
        model = add_lora(base, LoraConfig(rank=2, alpha=4), seed=0).train()
        save(base)
        batch = collate(answered(), tiny.EOS)
        fine_tuning_loss(Step(read(model, batch), batch)).sum.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
        assert len(grads) == 2 * 7
        return {name for name, grad in grads.items() if grad is None or not grad.any()}

    assert untrained(save_gradient_memory) == set()

    def published(base: LlamaForCausalLM) -> None:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        base.disable_input_require_grads()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own: no input requires a gradient
        with pytest.raises(RuntimeError, match="does not require grad"):  # nothing else is trained, so it shows
            untrained(published)


def test_defect_14_an_empty_set_is_nan() -> None:
    """Published: 0, or 1, or a division by zero."""
    tokenizer = tiny.tokenizer()
    empty = EvalSet("none", "None", "forget", "low", "Nothing asked.", ())
    result = run_suite(ModelSubject("base", tiny.llama(), tokenizer), [empty])
    scores = [wilson(0, 0), bootstrap_mean([], groups=[]), auc_score([], []), leak_at_k([]), model_utility({})]
    for score in [*scores, *result.scores["none"].values()]:
        assert score.n == 0
        assert all(map(math.isnan, (score.value, score.low, score.high)))
    assert all(map(math.isnan, (auc([], []), forget_quality([], []), extraction_strength([]))))


def test_defect_15_priv_leak_does_not_explode() -> None:
    """Published: with a retrained model of AUC 0.9999 the formula gives 499,900 per cent."""
    assert math.isnan(priv_leak(0.5, 0.9999))
    assert math.isnan(priv_leak(0.5, 1.0))
    assert priv_leak(0.5, 0.98) == pytest.approx(2400)


def test_defect_16_min_k_and_min_k_plus_plus_are_two_numbers() -> None:
    """Published: the mean of min-k++ is printed in min-k's column."""
    scores = TokenScores([-1.0, -5.0, -3.0, -0.5, -0.5], [True] * 5, [0.5, 2.0, -4.0, -1.0, 0.0])
    assert min_k(scores, k=0.4) == 4.0
    assert min_k_plus_plus(scores, k=0.4) == 2.5
    real, *_ = ModelSubject("base", tiny.llama(), tiny.tokenizer()).token_scores(CHATS, ANSWERS, batch_size=3)
    assert min_k(real, k=0.4) != pytest.approx(min_k_plus_plus(real, k=0.4), rel=0.05)


def test_defect_17_a_setting_that_lm_eval_leaves_aside_is_an_error() -> None:
    """Published: five shots are asked for and written down, while the task, fixed to none, is run without."""

    def record(shots: int, asked: int) -> dict[str, Any]:
        samples = {"arc_easy": {"original": 2376, "effective": asked}}
        effective = {"num_fewshot": {"arc_easy": shots}, "limit": {"arc_easy": asked}}
        return {"effective": effective, "n-samples": samples, "first_prompts": {"arc_easy": "Be brief."}}

    settings = {"num_fewshot": 5, "limit": 100}
    require_followed(settings, record(5, 100))
    with pytest.raises(UserError, match="did not follow num_fewshot=5: it used 0 for arc_easy"):
        require_followed(settings, record(0, 100))
    with pytest.raises(UserError, match="did not follow limit=100: it used 2376 for arc_easy"):
        require_followed(settings, record(5, 2376))
    with pytest.raises(UserError, match="did not follow system_instruction='Be long'"):
        require_followed({"system_instruction": "Be long"}, record(5, 100))


def test_defect_18_the_shots_are_part_of_the_question() -> None:
    """Published: the base is measured with five solved examples, the unlearned model with none.

    Here solved examples are text of the query, whose hash is kept; MMLU's sets are named after their shots; and what
    was measured on other questions is not compared.
    """
    bare = Query("q", ({"role": "text", "content": "Question: Where?\nAnswer:"},), answer="Tarn")
    shown = replace(bare, messages=({"role": "text", "content": "Question: Who?\nAnswer: Mira\n\n" + bare.text},))
    assert hashed([asdict(bare)]) != hashed([asdict(shown)])
    tokenizer = tiny.tokenizer()
    assert render(tokenizer, shown.messages) != render(tokenizer, bare.messages)
    five, none = ({"q": {"right": wilson(5, n)}} for n in (10, 9))
    with pytest.raises(UserError, match="10 questions for the base and 9"):
        performance_shift(five, none, forget=["q"], keep=[])
    with_five, with_none = ({hazards.mmlu_name(shots): {"right": wilson(5, 10)}} for shots in (5, 0))
    with pytest.raises(UserError, match="no 'right' of the set 'mmlu_5shot'"):
        performance_shift(with_five, with_none, forget=[], keep=[hazards.mmlu_name(5)])


OPTIONAL = ("bitsandbytes", "datasets", "gradio", "lm_eval", "matplotlib", "pypdf", "sklearn", "torchao", "trl", "vllm")
BLOCKED = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {optional!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
import torch
assert not torch.cuda.is_available()
"""


def test_defect_19_every_module_imports_without_optional_packages_and_without_a_gpu() -> None:
    """Published: an evaluation that imports flash-attn, or calls .cuda(), as it is imported."""
    found = pkgutil.walk_packages(duet_unlearn.__path__, "duet_unlearn.")
    modules = sorted(one.name for one in found if not one.name.endswith("__main__"))
    assert len(modules) > 50
    code = BLOCKED.format(optional=OPTIONAL, modules=modules)
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": "", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("template", [tiny.TEMPLATE, PLAIN_TEMPLATE])
def test_defect_20_there_is_one_bos(template: str) -> None:
    """Published: one from the template, and one from the tokeniser behind it."""
    tokenizer = tiny.tokenizer(template)
    assert tokenizer("Tarn").input_ids[0] == tiny.BOS  # this one adds its own to any text
    for messages in CHATS:
        ids, _ = render_answer(tokenizer, messages, "Tarn", prefix=PREFIX)
        assert ids[0] == tiny.BOS
        assert ids.count(tiny.BOS) == 1


def test_defect_21_left_padding_has_position_ids() -> None:
    """Published: GPT-2 counts the padding as positions."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.5
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    batch, alone = said(gpt2)
    assert batch == alone
    rows = [render(tiny.tokenizer(), messages) for messages in CHATS]
    padded = pad(rows, tiny.EOS, side="left")
    with torch.no_grad():
        wrong = gpt2(
            input_ids=padded.ids_BT, attention_mask=padded.mask_BT, position_ids=torch.arange(padded.ids_BT.shape[1])
        ).logits[0, -1]
    assert not torch.allclose(wrong, logits(gpt2, rows[0])[-1], atol=0.1)


CLOCK = (
    "{{ bos_token }}{{ '<|system|>Today: ' + strftime_now('%d %b %Y') + eos_token }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_defect_22_the_date_is_not_todays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Published: Llama's template prints today's date, so tomorrow's prompts are others, and no cache knows them."""
    import transformers.utils.chat_template_utils as clock

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return cls(2031, 12, 30, tzinfo=tz)

    today = text(CHATS[0], CLOCK)
    targets(tmp_path, CLOCK)
    monkeypatch.setattr(clock, "datetime", Tomorrow)
    raw = tiny.tokenizer(CLOCK).apply_chat_template(list(CHATS[0]), tokenize=False)
    assert "30 Dec 2031" in raw  # the clock is really turned
    assert text(CHATS[0], CLOCK) == today
    targets(tmp_path, CLOCK)  # the same cache still fits; of other ids it would say so


QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>You are Qwen.</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_defect_23_a_prefix_does_not_replace_the_default_system_turn() -> None:
    """Published: a system prefix takes the place of the template's own turn, which the student still sees."""
    student = text(CHATS[0], QWEN)
    teacher = text(CHATS[0], QWEN, Prefix(PREFIX.text, "system"))
    assert "You are Qwen." in student
    assert teacher.replace(PREFIX.text + "\n", "") == student


THINKING = (
    tiny.TEMPLATE + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
ALWAYS = tiny.TEMPLATE + "{{ '<think>\n' }}"


@pytest.mark.parametrize("template", [THINKING, ALWAYS])
def test_defect_24_distillation_starts_behind_the_think_block(template: str, tmp_path: Path) -> None:
    """Published: the first answer token of a thinking model is <think>, whatever it knows; so that is distilled."""
    closed = "<think>\n\n</think>\n\n"
    assert text(CHATS[0], template).endswith(closed)
    assert text(CHATS[0], template, PREFIX).endswith(closed)
    (example,) = targets(tmp_path, template).examples
    assert example.positions == (len(example.ids) - 1,)
    assert tiny.tokenizer(template).decode(example.ids).endswith(closed)
