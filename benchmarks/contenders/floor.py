"""The least that a step must do, by counting: operations of the matrix products, bytes of weights and optimiser.

A product of (a, b) and (b, c) matrices is 2abc operations. A backward pass has two products for each of the forward
pass. Activations, norms, softmax and the loss itself are left out: the floor is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from contenders.setting import Setting


class Work(NamedTuple):
    """Operations of matrix products, and bytes that must come from or go to memory."""

    flops: float
    bytes: float


def body_flops(setting: Setting, tokens: float, width: float, matrices: int) -> float:
    """Forward pass of the layers: every token through every matrix, and attention of each with `width` others."""
    return 2 * tokens * matrices + 4 * tokens * width * setting.hidden * setting.layers


def head_flops(setting: Setting, positions: float) -> float:
    return 2 * positions * setting.hidden * setting.vocabulary


def step_flops(setting: Setting, parameters: Mapping[str, int], shape: Mapping[str, float]) -> dict[str, float]:
    """Operations of one training step of each contender, the targets of ours spread over their one epoch."""
    rows, student, teacher = shape["rows"], shape["student_tokens"], shape["teacher_tokens"]

    def body(tokens: float) -> float:
        return body_flops(setting, tokens, tokens / rows, parameters["body"])

    ask = body(teacher)
    return {
        "ours": 3 * body(student) + 3 * head_flops(setting, rows),
        "targets of ours": ask + head_flops(setting, rows),
        "two_model": 3 * body(student) + 3 * head_flops(setting, student) + ask + head_flops(setting, teacher),
        "sdft": (
            body(student)
            + head_flops(setting, rows)
            + 3 * body(student + rows)
            + 3 * head_flops(setting, 2 * rows)
            + body(teacher + rows)
            + head_flops(setting, 2 * rows)
        ),
    }


def phase_work(setting: Setting, parameters: Mapping[str, int], shape: Mapping[str, float]) -> dict[str, Work]:
    """What each phase of our step must do. AdamW reads weight, gradient and two moments and writes all but one."""
    size = 4 if setting.dtype == "float32" else 2
    rows, student = shape["rows"], shape["student_tokens"]
    body = body_flops(setting, student, student / rows, parameters["body"])
    head = head_flops(setting, rows)
    return {
        "forward of the body": Work(body, size * parameters["body"]),
        "forward of the head": Work(head, size * parameters["embedding"]),
        "backward of the head": Work(2 * head, 2 * size * parameters["embedding"]),
        "backward of the body": Work(2 * body, 2 * size * parameters["body"]),
        "scaling and clipping gradients": Work(0, size * parameters["total"]),
        "optimiser": Work(0, 7 * size * parameters["total"]),
    }


def memory_floor(setting: Setting, total: int) -> int:
    """Bytes of weights, gradients and AdamW's two moments: training all weights takes that without any activation."""
    return 4 * total * (4 if setting.dtype == "float32" else 2)


def floor_seconds(work: Work, machine: Mapping[str, float]) -> float:
    """At the best rates that were measured on the machine in the same run; arithmetic and memory may overlap."""
    return max(work.flops / machine["matmul_flops"], work.bytes / machine["bytes_per_second"])


def compare(
    setting: Setting,
    parameters: Mapping[str, int],
    shape: Mapping[str, float],
    machine: Mapping[str, float],
    phases: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Phase by phase: measured seconds, the floor, and the share of the floor that is reached."""
    work = phase_work(setting, parameters, shape)
    rows = {
        name: {
            "seconds": seconds,
            "flops": work[name].flops if name in work else 0.0,
            "bytes": work[name].bytes if name in work else 0.0,
            "floor": floor_seconds(work[name], machine) if name in work else 0.0,
        }
        for name, seconds in phases.items()
    }
    rows["whole step"] = {key: sum(row[key] for row in rows.values()) for key in ("seconds", "flops", "bytes", "floor")}
    return {name: {**row, "share": row["floor"] / row["seconds"]} for name, row in rows.items()}
