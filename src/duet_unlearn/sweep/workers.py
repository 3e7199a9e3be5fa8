"""Who does a sweep's runs: this process, several of this machine, or a Slurm array, each a worker on one folder.

``run`` starts the workers and writes the table. A ``Worker`` takes the next run that nobody does, does it to its
``row.json``, and takes another, until none is left. After a test it may show the student half of the forget facts and
ask for the other half (``relearned``).
"""

from __future__ import annotations

import gc
import math
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from duet_unlearn.api import may_run, unlearn
from duet_unlearn.attacks.fine_tuning import relearn
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json, atomic_write_text
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import share_right
from duet_unlearn.evals.question_sets import fact
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.events import Event, OnEvent, duration_text, ignore
from duet_unlearn.job import Job, load_job
from duet_unlearn.report import write_report
from duet_unlearn.runs import InUse
from duet_unlearn.stats import NOTHING, wilson
from duet_unlearn.subjects import load_student, load_subject_model
from duet_unlearn.sweep import claims
from duet_unlearn.sweep.protocol import Relearning, SuiteFile, load_suite
from duet_unlearn.sweep.results import SUBJECTS, finished, head, stages, table_text, write_results
from duet_unlearn.sweep.tasks import JsonObject, SweepFolder, SweepTask, choose_all, open_sweep, seconds_left

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WAIT = 1.0
"""Seconds until a worker that finds nothing to do looks again (others' runs may be the last, or die), and until the
process that started workers looks what they have done."""
PATIENCE = 30.0
"""Seconds that a worker has to give its claim back."""
DEATHS = 3
"""Workers that a run may cost before it counts as failed."""
SICK = 3
"""Errors in a row that nobody expected, after which it is the machine and not the method."""
SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{workers}
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=INT@60
#SBATCH --output={logs}/slurm-%A_%a.log
# Add what your cluster asks for: --partition, --account, --time, --mem, --gres=gpu:1.
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
exec srun {command}
"""


def prepare(suite: str | Path, out: Path | str | None = None) -> SweepFolder:
    """Read a suite, check all that can be checked before hours are spent, and open the sweep's folder.

    Raises:
        UserError: whatever is wrong with the suite, a recipe, the data; the folder is another sweep's.
    """
    file = load_suite(suite)
    check(file)
    return open_sweep(file, Path(out or Path("runs") / f"sweep-{file.suite.name}"))


def check(file: SuiteFile) -> None:
    """Every recipe with every trial, and the data of every method's first run and of every target.

    Raises:
        UserError: as ``load_recipe`` and ``load_job``; tuning reads a set that is not asked.
    """
    suite = file.suite
    for method in suite.methods:
        recipes = [file.recipe(method, None, trial, seed=suite.tune.seed) for trial in method.trials or ({},)]
        for target in suite.test.targets:
            file.recipe(method, target, {}, seed=0)
        if not method.trials:
            continue
        asked = {one.name for one in load_job(recipes[0]).suite()}
        hint = f"asked are {', '.join(sorted(asked))}"
        for key, names in (("forget", suite.tune.forget), ("keep", suite.tune.keep)):
            if not names:
                raise UserError(f"{file.path}: tune.{key} is empty", hint)
            if missing := [name for name in names if name not in asked]:
                raise UserError(f"{file.path}: tune.{key} names the set {missing[0]!r}, which is not asked", hint)
    for target in suite.test.targets:
        job = load_job(file.recipe(suite.methods[0], target, {}, seed=0))
        if suite.after_tests.relearn:
            halves(job, suite.after_tests.relearn.measure)


def run(sweep: SweepFolder, *, workers: int = 1, on_event: OnEvent = ignore) -> JsonObject:
    """Do all that is left, together with whoever else is at it; returns ``results.json``.

    One worker works in this process; more are processes of their own, on the machine's GPUs by turns.

    Raises:
        UserError: the disk is full; the workers ended early.
    """
    # A worker of this process is idle, and holds no claim, when it is counted who else is at work.
    progress = SweepProgress(sweep, on_event, lambda: max(workers, claims.active(sweep.claims) + (workers == 1)))
    progress.begin()
    with _end_requests_as_interrupts():
        if workers == 1:
            Worker(sweep, progress).work()
        else:
            _processes(sweep, workers, progress)
    progress.tell_finished()
    while True:
        with claims.claim(sweep.locks, "results") as held:
            if held:
                results = write_results(sweep)
                write_report(sweep.out)
                break
        time.sleep(WAIT / 10)
    atomic_write_text(sweep.out / "table.txt", table_text(results) + "\n")
    return results


@dataclass
class SweepProgress:
    """What a watcher hears: every run that was finished, by whomever, and the time that is left.

    Events of the phase `sweep` are finished runs; of the phase `now`, what this worker does at the moment.
    """

    sweep: SweepFolder
    on_event: OnEvent
    workers: Callable[[], int]
    """How many are at work."""
    seen: set[SweepTask] = field(default_factory=set, init=False)
    left: str = field(default="", init=False)

    def begin(self) -> None:
        """Count what is done already, and say how long the rest takes."""
        self.seen = {task for task in self.sweep.tasks() if self.sweep.result(task)}
        self.left = duration_text(seconds_left(self.sweep, workers=self.workers()))
        self._tell(f"{self.left} left")

    def tell_finished(self) -> None:
        """Tell every run that was finished since."""
        fresh = [(t, found) for t in self.sweep.tasks() if t not in self.seen and (found := self.sweep.result(t))]
        if fresh:
            self.left = duration_text(seconds_left(self.sweep, workers=self.workers()))
        for task, found in fresh:
            if found["failed"]:
                text = f"failed: {found['failed']}"
            elif task.kind == "tune":
                share = f"(forgot {1 - found['forget']:.0%}, kept {found['keep']:.0%})"
                text = f"score {found['score']:.3f} {share} in {duration_text(found['seconds']['total'])}"
            else:
                text = f"done in {duration_text(found['seconds']['total'])}"
            self.seen.add(task)
            self._tell(f"{task.title}: {text}; {self.left} left")

    def tell_phase(self, task: SweepTask, event: Event) -> None:
        """Tell what this worker is at."""
        self.on_event(Event("now", event.done, event.total, f"{task.title}: {event.phase}; {self.left} left"))

    def _tell(self, text: str) -> None:
        self.on_event(Event("sweep", len(self.seen), self.sweep.num_runs, text))


# A worker -------------------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """One process's part of a sweep."""

    sweep: SweepFolder
    progress: SweepProgress
    sick: int = field(default=0, init=False)
    """Unexpected errors in a row."""

    def work(self) -> None:
        """Everything that is left, with whoever else is at it.

        Raises:
            UserError: the disk is full, or the protocol cannot be followed.
        """
        while True:
            with claims.claim(self.sweep.locks, "choosing") as held:
                if held:
                    choose_all(self.sweep)
            self.progress.tell_finished()
            if not self.sweep.open():
                return
            if not any(self._take(task) for task in self.sweep.tasks() if not self.sweep.result(task)):
                time.sleep(WAIT)

    def _take(self, task: SweepTask) -> bool:
        """Do a run, unless another does; whether this worker did anything."""
        claim = task.folder.replace("/", "--")
        with claims.claim(self.sweep.claims, claim) as held:
            if held is None:
                return False
            try:
                if not self.sweep.result(task):
                    self._do(task, held)
            except claims.Lost:
                return True
            except InUse:  # its former worker was thought dead and lives, or somebody runs it by hand
                return False
        claims.forget(self.sweep.claims, claim)
        # After every run, so that a sweep that is stopped has its results so far. Who finds another worker writing need
        # not wait for it: the next run, or the end, writes all of it again.
        with claims.claim(self.sweep.locks, "results") as writing:
            if writing:
                write_results(self.sweep)
        return True

    def _do(self, task: SweepTask, held: claims.Claim) -> None:
        """One run, to ``row.json``; or what it failed of, to ``failed.json``."""
        recipe, run = self.sweep.recipe(task), self.sweep.run(task)
        may_run(run.path, recipe)  # a folder of other settings is no failure of these

        def watch(event: Event) -> None:
            held.check()
            self.progress.tell_phase(task, event)

        # Where memory runs out, the system kills the process, and nobody is left to write down what failed.
        if held.died >= DEATHS:
            result = self._failed(task, f"{held.died} workers were lost over it, as when memory runs out")
        else:
            result = self._attempt(task, recipe, watch)
        held.check()  # what another worker has taken over is no longer ours to clear up
        # Remove what a scored run needs no more: targets, checkpoints, models on the way; but for a test its student.
        for one in stages(run):
            kept = {one.samples, one.evals, one.path / "attacks", one.path / "before"}
            if task.kind == "test" and not result["failed"] and one == run:
                kept |= {one.model, one.subject}
            for folder in one.path.iterdir() if one.path.is_dir() else ():
                if folder.is_dir() and folder not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
        atomic_write_json(run.path / ("failed.json" if result["failed"] else "row.json"), result)
        # The next run begins with the memory of a fresh process, as if it were alone.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _attempt(self, task: SweepTask, recipe: Recipe, watch: OnEvent) -> JsonObject:
        """The result of a run. What the machine is to blame for is raised; whatever else goes wrong is the result."""
        started, config = time.monotonic(), self.sweep.suite.after_tests.relearn
        try:
            if task.kind == "reference":
                path = recipe.model.path if task.method == "base" else recipe.model.oracle
                assert config
                assert path
                found = relearned(*load_subject_model(path, recipe), recipe, config, seed=task.seed)
                seconds = {"total": time.monotonic() - started}
                result = head(self.sweep, task) | {"failed": None, "relearned": found, "seconds": seconds}
            else:
                unlearn(recipe, out=self.sweep.run(task).path, like=self._donor(task, recipe), on_event=watch)
                if task.kind == "test" and config:
                    self._relearn(task, recipe, config)
                result = finished(self.sweep, task, recipe, wall=time.monotonic() - started)
        except (claims.Lost, InUse):
            raise
        except UserError as error:
            if isinstance(error.__cause__, OSError | SafetensorError):
                raise
            self.sick = 0
            return self._failed(task, error.message, hint=error.hint)
        except (
            torch.OutOfMemoryError,
            MemoryError,
        ) as error:  # of this method, not of the machine: no sign of sickness
            return self._failed(task, f"out of memory: {error}".partition("\n")[0])
        except Exception as error:
            self.sick += 1
            if self.sick >= SICK:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return self._failed(task, reason) | {"traceback": traceback.format_exc()}
        self.sick = 0
        return result

    def _failed(self, task: SweepTask, reason: str, hint: str = "") -> JsonObject:
        return head(self.sweep, task) | {"failed": reason, "hint": hint}

    def _donor(self, task: SweepTask, recipe: Recipe) -> Path | None:
        """A finished run that asked base, prefix and oracle the same questions; the one that asked most of them."""

        def questions(one: Recipe) -> dict[str, Any]:
            model = one.model
            return {
                "model": (model.path, model.oracle, model.dtype, model.chat_template, model.quantise),
                "asked": (one.concept, one.prefix, one.evaluate, one.data.context, one.data.folder),
            }

        alike = [o for o in self.sweep.tasks() if o != task and (o.kind, o.target) == (task.kind, task.target)]
        runs = [self.sweep.run(o) for o in alike if (self.sweep.result(o) or {"failed": True})["failed"] is None]
        runs.sort(key=lambda run: -sum((run.evals / f"{name}.json").exists() for name in SUBJECTS))
        return next((run.path for run in runs if questions(load_recipe(run.recipe)) == questions(recipe)), None)

    def _relearn(self, task: SweepTask, recipe: Recipe, config: Relearning) -> None:
        run = self.sweep.run(task)
        path = run.path / "attacks" / "relearn.json"
        if path.exists():
            return
        student = load_student(run, recipe)
        found: JsonObject = {"not_applicable": "the method changes no weights"}
        if isinstance(student, ModelSubject):
            found = relearned(student.model, student.tokenizer, recipe, config, seed=task.seed)
        atomic_write_json(path, found)


# Several workers ------------------------------------------------------------------------------------------------------


def slurm_script(sweep: SweepFolder, *, workers: int) -> str:
    """A script for ``sbatch``: an array whose every task is the same command, one worker each on one folder. Its log
    folder is made now.

    Nothing is installed for it and nothing listens on a port: a worker needs the shared folder alone, tasks may start,
    end and be put back into the queue at any time, and what one leaves undone another takes over.
    """
    logs = (sweep.out / "logs").resolve()
    logs.mkdir(exist_ok=True)
    command = shlex.join(_command(sweep.file.path.resolve(), sweep.out.resolve()))
    return SLURM.format(name=f"duet-{sweep.suite.name}", workers=workers, logs=logs, command=command)


def environment(number: int, workers: int) -> dict[str, str]:
    """A worker's share of the machine: threads, and where there are GPUs, one of them."""
    # A queue gives a task a part of the machine's cores.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    mine = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
    return {"OMP_NUM_THREADS": str(max(1, cores // workers)), "TOKENIZERS_PARALLELISM": "false", **mine}


def _command(suite: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "duet_unlearn", "sweep", str(suite), "--out", str(out)]


def _processes(sweep: SweepFolder, workers: int, progress: SweepProgress) -> None:
    """Start workers, each the same command with a share of the machine, and tell what they do until the last ends."""
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    for number in range(workers):
        log = sweep.out / "logs" / f"{socket.gethostname()}-{os.getpid()}-{number}.log"
        log.parent.mkdir(exist_ok=True)
        environ = os.environ | environment(number, workers)
        with log.open("wb") as file:
            command, nothing = _command(sweep.file.path, sweep.out), subprocess.DEVNULL
            started.append((subprocess.Popen(command, env=environ, stdin=nothing, stdout=file, stderr=file), log))
    try:
        while any(process.poll() is None for process, _ in started):
            time.sleep(WAIT)
            progress.tell_finished()
    finally:
        # Let workers give their claims back. Ctrl-C in a terminal has reached them already; twice would be once too
        # often. SIGINT they would ignore where a shell started all of this in its background.
        for send, patience in ((None, WAIT), (signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
            for process, _ in started:
                if send and process.poll() is None:
                    process.send_signal(send)
            until = time.monotonic() + patience
            while any(process.poll() is None for process, _ in started) and time.monotonic() < until:
                time.sleep(WAIT / 100)
    if sweep.open():
        log = next((log for process, log in started if process.returncode), started[0][1])
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-2:]
        problem = f"the workers ended before the sweep: {' / '.join(last)}"
        raise UserError(problem, f"see {log}; the same command goes on")


@contextmanager
def _end_requests_as_interrupts() -> Iterator[None]:
    """Take a request to end, as a queue sends it, for Ctrl-C: claims are given back."""
    main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Relearning after a test ----------------------------------------------------------------------------------------------


def halves(job: Job, measure: str | None) -> tuple[tuple[Query, ...], tuple[Query, ...]]:
    """What is shown: the forget queries of half of their facts, drawn by a fixed seed, the same for every method. And
    what is asked: the questions about other facts, of the set `measure` or of the forget queries themselves.

    Raises:
        UserError: queries without answers; no such set; no question about another fact.
    """
    forget = job.train.forget
    for query in forget:
        if not query.answer or not query.value:
            raise UserError(
                f"data.forget: query {query.id!r} has no answer or no value, and relearning needs both",
                'give every query an "answer" and a "value", or take after_tests.relearn out',
            )
    facts = sorted({fact(query) for query in forget})
    chosen = set(random.Random("relearn").sample(facts, len(facts) // 2))
    pool = forget
    if measure is not None:
        sets = {one.name: one.queries for one in job.suite()}
        if measure not in sets:
            problem = f"after_tests.relearn.measure names the set {measure!r}, which is not asked"
            raise UserError(problem, f"asked are {', '.join(sets)}")
        pool = sets[measure]
    shown = tuple(query for query in forget if fact(query) in chosen)
    asked = tuple(query for query in pool if query.value and fact(query) not in chosen)
    if not shown or not asked:
        problem = "relearning has nothing to show, or nothing to ask"
        raise UserError(problem, "it needs two facts, and questions about both")
    return shown, asked


def relearned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, config: Relearning, *, seed: int
) -> JsonObject:
    """What ``attacks/relearn.json`` holds: the share right before, after the last step at each rate, and at the rate
    at which most comes back. A rate at which the loss is no number is left out."""
    (shown, asked), sizes = halves(load_job(recipe), config.measure), recipe.evaluate

    def measure(one: PreTrainedModel) -> dict[str, float]:
        how = {"max_new_tokens": sizes.max_new_tokens, "batch_size": sizes.batch_size}
        return {"right": share_right(one, tokenizer, asked, **how)}

    curve = relearn(model, tokenizer, shown, measure=measure, rates=config.rates, steps=(0, config.steps), seed=seed)
    before, after = NOTHING, {}
    for point in curve:
        score = wilson(round(point.knowledge["right"] * len(asked)), len(asked))
        if point.step == config.steps:
            after[point.rate] = score
        elif before is NOTHING:
            before = score
    worst = max(after, key=lambda rate: after[rate].value, default=math.nan)
    return {
        "steps": config.steps,
        "worst": after.get(worst, NOTHING).to_json(),
        "rate": worst if after else None,
        "before": before.to_json(),
        "rates": {f"{rate:g}": score.to_json() for rate, score in after.items()},
        "shown": len(shown),
        "asked": len(asked),
    }
