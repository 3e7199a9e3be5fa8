"""``duet lab build``: both models at once, one process and one core each, resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from duet_unlearn.errors import UserError
from duet_unlearn.events import Event

POLL = 2.0
"""Seconds between looks at the workers."""


@dataclass(frozen=True)
class Job:
    """One model to train in a process of its own."""

    kind: str
    folder: Path
    work: Path

    @property
    def log(self) -> Path:
        return self.work / "log.jsonl"

    def last(self) -> dict[str, float]:
        """The newest step that the worker wrote down."""
        if not self.log.exists():
            return {}
        lines = [line for line in self.log.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
        return json.loads(lines[-1]) if lines else {}


def build(
    kinds: Sequence[str], out: Path, *, on_event: Callable[[Event], None] = lambda event: None
) -> dict[str, Path]:
    """Train lab models into ``out/<kind>``; finished ones are left alone, interrupted ones go on.

    Raises:
        UserError: a worker failed; its last words are in the message.
    """
    jobs = [Job(kind, out / kind, out / "work" / kind) for kind in kinds]
    waiting = [job for job in jobs if not (job.folder / "config.json").exists()]
    workers = {job.kind: _start(job, threads=_threads(len(waiting))) for job in waiting}
    try:
        while workers:
            time.sleep(POLL)
            for job in waiting:
                if job.kind in workers:
                    _report(job, on_event)
                    if workers[job.kind].poll() is not None:
                        _finish(job, workers.pop(job.kind))
    finally:
        for worker in workers.values():
            worker.terminate()
    return {job.kind: job.folder for job in jobs}


def _threads(num_jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // max(1, num_jobs))


def _start(job: Job, *, threads: int) -> subprocess.Popen[bytes]:
    job.work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "duet_unlearn.lab.build", job.kind, str(job.folder), str(job.work)]
    environment = os.environ | {"OMP_NUM_THREADS": str(min(threads, 4)), "TOKENIZERS_PARALLELISM": "false"}
    with (job.work / "errors.txt").open("wb") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def _report(job: Job, on_event: Callable[[Event], None]) -> None:
    last = job.last()
    if last:
        text = f"loss {last['loss']:.3f}"
        on_event(Event(f"pretrain {job.kind}", int(last["step"]), int(last["num_steps"]), text))


def _finish(job: Job, worker: subprocess.Popen[bytes]) -> None:
    if worker.returncode:
        errors = (job.work / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().split("\n")
        raise UserError(f"training {job.kind} failed: {errors[-1]}", f"the whole message is in {job.work}/errors.txt")


def _work(kind: str, folder: str, work: str) -> None:
    """The worker: train one model and write every tenth step down."""
    from duet_unlearn.lab.arithmetic import pretrain_arithmetic
    from duet_unlearn.lab.pretrain import Pretraining, pretrain

    if kind == "base" or kind == "oracle":
        logs = pretrain(kind, Path(folder), work=Path(work), settings=Pretraining())
    else:
        assert kind == "arithmetic" or kind == "plus-minus", kind
        logs = pretrain_arithmetic(kind, Path(folder), work=Path(work))
    with (Path(work) / "log.jsonl").open("a", encoding="utf-8") as file:
        for log in logs:
            if log.step % 10 == 0 or log.step == log.num_steps:
                file.write(json.dumps(asdict(log)) + "\n")
                file.flush()


if __name__ == "__main__":
    _work(*sys.argv[1:])
