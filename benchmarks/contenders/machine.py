"""What this machine is, and what it can do at best."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contenders.clock import wait
from contenders.setting import Setting

BF16_PEAK = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Dense bf16 operations a second by NVIDIA's data sheets, without sparsity; the first name that fits counts."""


def describe(setting: Setting) -> dict[str, Any]:
    """Name, threads, and the best rates of a matrix product and of moving memory."""
    name = device_name(setting.device)
    return {
        "name": name,
        "threads": torch.get_num_threads(),
        "matmul_flops": matmul_rate(setting),
        "bytes_per_second": bandwidth(setting),
        "bf16_peak": next((rate for card, rate in BF16_PEAK.items() if card in name), None),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's and the installed packages' versions."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name(device: str) -> str:
    """The card's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def parameters(model: nn.Module) -> dict[str, int]:
    """All weights; those of the embedding, which is also the head; the matrices of the layers; the trained ones."""
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    every = list(model.parameters())
    return {
        "total": sum(p.numel() for p in every),
        "embedding": embedding.numel(),
        "body": sum(p.numel() for p in every if p.ndim == 2 and p is not embedding),
        "trained": sum(p.numel() for p in every if p.requires_grad),
    }


def matmul_rate(setting: Setting) -> float:
    """Operations a second of a large square product of random numbers in the weights' type: the best of some."""
    size = 1024 if setting.hidden < 256 else {"cpu": 2048, "cuda": 8192}[setting.device]
    dtype = getattr(torch, setting.dtype)
    a, b = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: torch.mm(a, b))


def bandwidth(setting: Setting) -> float:
    """Bytes a second, read and written: the better of a long copy and of a change in place."""
    count = 1 << (24 if setting.hidden < 256 else {"cpu": 26, "cuda": 29}[setting.device])
    a = torch.zeros(count, device=setting.device)
    b = torch.empty_like(a)
    return 2 * a.numel() * a.element_size() / min(_best(lambda: b.copy_(a)), _best(lambda: a.add_(1.0)))


def _best(work: Callable[[], object], *, times: int = 8) -> float:
    best = float("inf")
    for _ in range(times):
        wait()
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
    return best
