"""Before the race: the model, what this machine can do at best, and whether the race is fair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from contenders import ours, two_model
from contenders.machine import describe, parameters, versions
from contenders.setting import Setting, build_model
from duet_unlearn.teacher.targets import weights_id

PACKAGES = ("torch", "transformers", "accelerate", "trl", "duet-unlearn")


def run(setting: Setting, folder: Path, scratch: Path, *, watched: int) -> dict[str, Any]:
    build_model(setting, folder / "model")
    return {
        "machine": describe(setting),
        "versions": versions(PACKAGES),
        "parameters": parameters(two_model.load(setting, folder)),
        "parity": parity(setting, folder, scratch),
    }


def parity(setting: Setting, folder: Path, scratch: Path) -> dict[str, float]:
    """One step of ours and of the two models from the same weights: the loss, and where the weights went.

    `change_difference` is the distance between the two weight changes as a share of the length of the change.
    """
    before = dict(two_model.load(setting, folder).named_parameters())
    model, tokenizer = ours.load(setting, folder)
    targets = ours.teach(setting, model, tokenizer, weights_id(folder / "model"), scratch / "parity")
    loss = ours.learn(setting, model, targets, num_steps=1)[0]
    student, teacher = two_model.load(setting, folder), two_model.load(setting, folder).eval()
    other = two_model.learn(setting, student, teacher, *two_model.prompts(setting, folder), num_steps=1)[0]
    theirs = dict(student.named_parameters())
    with torch.no_grad():
        apart = sum(float((p - theirs[name]).double().square().sum()) for name, p in model.named_parameters())
        moved = sum(float((p - before[name]).double().square().sum()) for name, p in theirs.items())
    return {"loss_ours": loss, "loss_two_model": other, "change_difference": (apart / moved) ** 0.5}
