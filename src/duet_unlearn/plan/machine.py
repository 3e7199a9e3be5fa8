"""What this machine has and can do."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from duet_unlearn.models.load import default_device
from duet_unlearn.training.loop import peak_memory


@dataclass(frozen=True)
class Machine:
    """What it is compared with."""

    device: str
    memory: int
    """Bytes: of the GPU, or of the machine or container."""
    imports: int
    """Bytes that Python and the libraries hold before a model is loaded; 0 on CUDA, where they are elsewhere."""
    rates: dict[str, float]
    """Operations a second in fp32 and bf16: of a large matrix product measured here, or as given."""
    measured: bool


def this_machine(rate: float | None) -> Machine:
    """The GPU, or the CPU where there is none; `rate` is operations a second, and where it is None it is measured."""
    imports = 0 if torch.cuda.is_available() else peak_memory()
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = {name: rate or _matmul_rate(dtype) for name, dtype in kinds.items()}
    return Machine(str(default_device()), _memory_size(), imports, rates, measured=rate is None)


def _memory_size() -> int:
    """Bytes of the GPU's memory; else of the machine's, or of the share that its container may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
    return min(whole, int(text)) if text.isdecimal() else whole


def _matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large linear layer: the best of what half a second allows."""
    device = default_device()
    size = 8192 if device.type == "cuda" else 512
    rows, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight).sum().item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
