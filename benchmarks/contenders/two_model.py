"""The straightforward way: teacher and student both in memory, logits of every token, top-K gathered afterwards.

Written without the library's tensors, losses and loop, so that it is also a check of them; only the order of the
batches is taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from contenders.clock import Clock, Marks, watch
from contenders.setting import Setting, asked
from duet_unlearn.data.examples import Example, epochs_source

Rows = dict[str, list[int]]


def run(setting: Setting, folder: Path, scratch: Path, *, watched: int) -> dict[str, Any]:
    """Load both models, train an epoch; then `watched` more steps to see where their time goes."""
    clock = Clock()
    with clock.phase("load"):
        student, teacher = load(setting, folder), load(setting, folder).eval()
        student_rows, teacher_rows = prompts(setting, folder)
    with clock.phase("epoch"):
        losses = learn(setting, student, teacher, student_rows, teacher_rows)
    marks = Marks()
    if watched:
        with watch(student, marks, teacher=teacher):
            learn(setting, student, teacher, student_rows, teacher_rows, num_steps=watched)
    return {
        "seconds": clock.seconds,
        "peak_bytes": clock.peak_bytes,
        "losses": losses,
        "phases": marks.per_step(),
    }


def load(setting: Setting, folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, setting.dtype))
    return model.to(setting.device)


def prompts(setting: Setting, folder: Path) -> tuple[Rows, Rows]:
    """Student's and teacher's token ids by query."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def ids(question: str) -> list[int]:
        chat = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]

    every = asked(setting)
    student = {one.key: ids(one.query.text) for one in every}
    teacher = {one.key: ids(f"{one.prefix.instruction}\n{one.query.text}") for one in every if one.prefix}
    return student, teacher


def learn(
    setting: Setting,
    student: nn.Module,
    teacher: nn.Module,
    student_rows: Rows,
    teacher_rows: Rows,
    *,
    num_steps: int | None = None,
) -> list[float]:
    """The losses of an epoch, or of its first steps."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=setting.rate, weight_decay=0.0, fused=True)
    source, every = epochs_source(
        _examples(setting, student_rows), batch_size=setting.batch, epochs=1, seed=setting.seed
    )
    losses = []
    student.train()
    for step in range(every if num_steps is None else num_steps):
        keys = [example.key for example in source(step)]
        loss = step_loss(setting, student, teacher, [student_rows[k] for k in keys], [teacher_rows[k] for k in keys])
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def step_loss(
    setting: Setting,
    student: nn.Module,
    teacher: nn.Module,
    student_rows: Sequence[list[int]],
    teacher_rows: Sequence[list[int]],
) -> Tensor:
    """Huber distance on the teacher's top-K at each prompt's last token, from logits of the whole prompt."""
    student_ids, student_mask = _padded(student_rows, setting.device)
    teacher_ids, teacher_mask = _padded(teacher_rows, setting.device)
    student_logits = student(input_ids=student_ids, attention_mask=student_mask, use_cache=False).logits
    with torch.no_grad():
        teacher_logits = teacher(input_ids=teacher_ids, attention_mask=teacher_mask, use_cache=False).logits
    top = _last(teacher_logits, teacher_mask).topk(setting.k, dim=-1)
    chosen = _last(student_logits, student_mask).gather(-1, top.indices)
    return F.huber_loss(chosen.float(), top.values.float(), delta=1.0)


def _padded(rows: Sequence[list[int]], device: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def _last(logits: Tensor, mask: Tensor) -> Tensor:
    return logits[torch.arange(len(mask), device=mask.device), mask.sum(-1) - 1]


def _examples(setting: Setting, rows: Rows) -> list[Example]:
    """For the order of the batches alone."""
    return [Example(tuple(rows[one.key]), (), None, one.role, one.key) for one in asked(setting)]
