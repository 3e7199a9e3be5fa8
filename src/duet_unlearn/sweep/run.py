"""A sweep from its suite to its table: checked first, then done in this process or by several beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.errors import UserError
from duet_unlearn.events import OnEvent, ignore
from duet_unlearn.job import load_job
from duet_unlearn.report import write_report
from duet_unlearn.sweep import claims
from duet_unlearn.sweep.board import Board
from duet_unlearn.sweep.relearning import halves
from duet_unlearn.sweep.results import write_results
from duet_unlearn.sweep.suite import Loaded, load_suite
from duet_unlearn.sweep.table import table_text
from duet_unlearn.sweep.tasks import Sweep, open_sweep
from duet_unlearn.sweep.work import Worker

LOOK = 1.0
"""Seconds between two looks at what the workers have done."""
PATIENCE = 30.0
"""Seconds that a worker has to give its claim back."""


def prepare(suite: str | Path, out: Path | str | None = None) -> Sweep:
    """Read a suite, check all that can be checked before hours are spent, and open the sweep's folder.

    Raises:
        UserError: whatever is wrong with the suite, a recipe, the data; the folder is another sweep's.
    """
    loaded = load_suite(suite)
    check(loaded)
    return open_sweep(loaded, Path(out or Path("runs") / f"sweep-{loaded.suite.name}"))


def run(sweep: Sweep, *, workers: int = 1, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Do all that is left, beside whoever else is at it; returns ``results.json``.

    One worker works in this process (it is idle when the board asks who else is); more are processes of their own, on
    the machine's GPUs by turns.

    Raises:
        UserError: the disk is full; the workers ended early.
    """
    board = Board(sweep, on_event, lambda: max(workers, claims.active(sweep.claims) + (workers == 1)))
    board.begin()
    with _polite():
        if workers == 1:
            Worker(sweep, board).work()
        else:
            _beside(sweep, workers, board)
    board.look()
    results = _finish(sweep)
    atomic_write_text(sweep.out / "table.txt", table_text(results) + "\n")
    return results


def check(loaded: Loaded) -> None:
    """Every recipe with every trial, and the data of every method's first run and of every target.

    Raises:
        UserError: as ``load_recipe`` and ``load_job``; tuning reads a set that is not asked.
    """
    suite = loaded.suite
    for method in loaded.methods:
        recipes = [loaded.recipe(method, None, trial, seed=suite.tune.seed) for trial in method.trials or ({},)]
        for target in suite.test.targets:
            loaded.recipe(method, target, {}, seed=0)
        if method.trials:
            _check_sets(loaded, {one.name for one in load_job(recipes[0]).suite()})
    for target in suite.test.targets:
        job = load_job(loaded.recipe(loaded.methods[0], target, {}, seed=0))
        if suite.after_tests.relearn:
            halves(job, suite.after_tests.relearn.measure)


def _check_sets(loaded: Loaded, asked: set[str]) -> None:
    """Tuning reads sets that are asked."""
    hint = f"asked are {', '.join(sorted(asked))}"
    for key, names in (("forget", loaded.suite.tune.forget), ("keep", loaded.suite.tune.keep)):
        if not names:
            raise UserError(f"{loaded.path}: tune.{key} is empty", hint)
        if missing := [name for name in names if name not in asked]:
            raise UserError(f"{loaded.path}: tune.{key} names the set {missing[0]!r}, which is not asked", hint)


def _finish(sweep: Sweep) -> dict[str, Any]:
    while True:
        with claims.claim(sweep.locks, "results") as held:
            if held:
                results = write_results(sweep)
                write_report(sweep.out)
                return results
        time.sleep(LOOK / 10)


@contextmanager
def _polite() -> Iterator[None]:
    """Take a request to end, as a queue sends it, for Ctrl-C: claims are given back."""
    main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]
    log: Path


def _beside(sweep: Sweep, workers: int, board: Board) -> None:
    """Start workers, and tell what they do until the last has ended."""
    started = [_start(sweep, number, workers) for number in range(workers)]
    try:
        while any(one.process.poll() is None for one in started):
            time.sleep(LOOK)
            board.look()
    finally:
        _end(started)
    if sweep.open():
        log = next((one.log for one in started if one.process.returncode), started[0].log)
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-2:]
        raise UserError(
            f"the workers ended before the sweep: {' / '.join(last)}", f"see {log}; the same command goes on"
        )


def _start(sweep: Sweep, number: int, workers: int) -> _Process:
    """One worker: the same command, with a share of the cores and one GPU."""
    log = sweep.out / "logs" / f"{socket.gethostname()}-{os.getpid()}-{number}.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "duet_unlearn", "sweep", str(sweep.loaded.path), "--out", str(sweep.out)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | environment(number, workers), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    return _Process(process, log)


def environment(number: int, workers: int) -> dict[str, str]:
    """A worker's share of the machine: threads, and where there are GPUs, one of them."""
    threads = max(1, _cores() // workers)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    mine = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **mine}


def _cores() -> int:
    """Cores that this process may use; a queue gives a task a part of the machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _end(started: Sequence[_Process]) -> None:
    """Let workers give their claims back. Ctrl-C in a terminal has reached them already; twice would be once too
    often. SIGINT they would ignore where a shell started all of this in its background."""
    for send in (None, signal.SIGTERM, signal.SIGKILL):
        for one in started:
            if send and one.process.poll() is None:
                one.process.send_signal(send)
        _wait(started, PATIENCE if send else LOOK)


def _wait(started: Sequence[_Process], seconds: float) -> None:
    until = time.monotonic() + seconds
    for one in started:
        try:
            one.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
