"""TRL's self-distillation trainer, set up to do the same job: one token a prompt, the same teacher prompts and K.

What it still does more, by its design: it samples that token from the student at every step, asks the teacher again
at every step (with a second model in memory), and computes two logits a row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from datasets import Dataset
from transformers import AutoTokenizer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from contenders.clock import Clock, Marks, watch
from contenders.setting import Setting, asked
from contenders.two_model import load, prompts
from duet_unlearn.data.examples import Example, epochs_source


def run(setting: Setting, folder: Path, scratch: Path, *, watched: int) -> dict[str, Any]:
    """Load, train an epoch; then `watched` more steps, with a new trainer, to see where their time goes."""
    clock = Clock()
    with clock.phase("load"):
        trainer = make_trainer(setting, folder, scratch)
    with clock.phase("epoch"):
        trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    marks = Marks()
    if watched:
        del trainer
        trainer = make_trainer(setting, folder, scratch, num_steps=watched)
        with watch(trainer.model, marks, teacher=trainer.teacher_model):
            trainer.train()
    return {
        "seconds": clock.seconds,
        "peak_bytes": clock.peak_bytes,
        "losses": logged,
        "phases": marks.per_step(),
    }


def make_trainer(setting: Setting, folder: Path, scratch: Path, *, num_steps: int = -1) -> SDFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    return SDFTTrainer(
        model=load(setting, folder),
        args=trainer_config(setting, scratch, num_steps),
        train_dataset=dataset(setting, folder),
        processing_class=tokenizer,
    )


def trainer_config(setting: Setting, scratch: Path, num_steps: int) -> SDFTConfig:
    """As near to DUET as its options go; the objective stays its own (a Jensen-Shannon divergence)."""
    return SDFTConfig(
        output_dir=str(scratch / "trl"),
        per_device_train_batch_size=setting.batch,
        num_train_epochs=1,
        max_steps=num_steps,
        learning_rate=setting.rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        max_completion_length=1,
        num_generations=1,
        distillation_mode="topk_logits",
        distillation_topk=setting.k,
        teacher_model_kind="base",
        teacher_prompt_template="{privileged_context}\n{prompt}",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=setting.device == "cpu",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=setting.seed,
    )


def dataset(setting: Setting, folder: Path) -> Dataset:
    """The queries in the order in which the other contenders meet them, batch by batch."""
    rows, _ = prompts(setting, folder)
    by_key = {one.key: one for one in asked(setting)}
    examples = [Example(tuple(ids), (), None, by_key[key].role, key) for key, ids in rows.items()]
    source, steps = epochs_source(examples, batch_size=setting.batch, epochs=1, seed=setting.seed)
    order = [by_key[example.key] for step in range(steps) for example in source(step)]
    return Dataset.from_list(
        [
            {"prompt": list(one.query.messages), "privileged_context": one.prefix.instruction}
            for one in order
            if one.prefix
        ]
    )
