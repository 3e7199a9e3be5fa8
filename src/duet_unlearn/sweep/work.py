"""A worker: takes the next run that nobody does, does it, and takes another, until none is left."""

from __future__ import annotations

import gc
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from duet_unlearn.api import may_run, unlearn
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.events import Event, OnEvent
from duet_unlearn.subjects import load_student, load_subject_model
from duet_unlearn.sweep import claims
from duet_unlearn.sweep.board import Board
from duet_unlearn.sweep.relearning import relearned
from duet_unlearn.sweep.results import write_results
from duet_unlearn.sweep.rows import clear_up, failed_row, finished_row, head
from duet_unlearn.sweep.tasks import Row, Sweep, Task, choose_all

WAIT = 1.0
"""Seconds until a worker that finds nothing to do looks again: others' runs may be the last, or die."""
DEATHS = 3
"""Workers that a run may cost before it counts as failed."""
SICK = 3
"""Errors in a row that nobody expected, after which it is the machine and not the method."""
BASELINES = ("base", "prefix", "oracle")


@dataclass
class Worker:
    """One process's part of a sweep."""

    sweep: Sweep
    board: Board
    stale: float = claims.STALE
    beat: float = claims.BEAT
    sick: int = field(default=0, init=False)
    """Unexpected errors in a row."""

    def work(self) -> None:
        """Everything that is left, with whoever else is at it.

        Raises:
            UserError: the disk is full, or the protocol cannot be followed.
        """
        while True:
            with claims.claim(self.sweep.locks, "choosing", stale=self.stale) as held:
                if held:
                    choose_all(self.sweep)
            self.board.look()
            if not self.sweep.open():
                return
            if not any(self._take(task) for task in self.sweep.tasks() if not self.sweep.done(task)):
                time.sleep(WAIT)

    def _take(self, task: Task) -> bool:
        """Do a run, unless another does; whether this worker did anything."""
        with claims.claim(self.sweep.claims, task.id, stale=self.stale, beat=self.beat) as held:
            if held is None:
                return False
            try:
                if not self.sweep.done(task):
                    self._do(task, held)
            except claims.Lost:
                return True
        claims.forget(self.sweep.claims, task.id)
        with claims.claim(self.sweep.locks, "results", stale=self.stale) as writing:
            if writing:
                write_results(self.sweep)
        return True

    def _do(self, task: Task, held: claims.Claim) -> None:
        """One run, to its row; what it fails of is its row."""
        recipe, run = self.sweep.recipe(task), self.sweep.run(task)
        may_run(run.path, recipe)  # a folder of other settings is no failure of these

        def watch(event: Event) -> None:
            held.check()
            self.board.inner(task, event)

        if held.died >= DEATHS:
            row = failed_row(self.sweep, task, f"{held.died} workers were lost over it, as when memory runs out")
        else:
            row = self._attempt(task, recipe, watch)
        held.check()
        clear_up(run, keep_model=task.kind == "test" and not row["failed"])
        atomic_write_json(run.path / ("failed.json" if row["failed"] else "row.json"), row)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _attempt(self, task: Task, recipe: Recipe, watch: OnEvent) -> Row:
        started = time.monotonic()
        try:
            if task.kind == "reference":
                row = self._reference(task, recipe)
            else:
                unlearn(recipe, out=self.sweep.run(task).path, like=self._donor(task, recipe), on_event=watch)
                if task.kind == "test":
                    self._relearn(task, recipe)
                row = None
        except UserError as error:
            if isinstance(error.__cause__, OSError | SafetensorError):  # the machine's failure, not the run's
                raise
            self.sick = 0
            return failed_row(self.sweep, task, error.message, hint=error.hint)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return failed_row(self.sweep, task, f"out of memory: {error}".partition("\n")[0])
        except claims.Lost:
            raise
        except Exception as error:
            self.sick += 1
            if self.sick >= SICK:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return failed_row(self.sweep, task, reason, trace=traceback.format_exc())
        self.sick = 0
        wall = time.monotonic() - started
        return row | {"seconds": {"total": wall}} if row else finished_row(self.sweep, task, recipe, wall=wall)

    def _donor(self, task: Task, recipe: Recipe) -> Path | None:
        """A finished run that asked base, prefix and oracle the same questions; the one that asked most of them."""
        others = [o for o in self.sweep.tasks() if o.kind == task.kind and o.target == task.target and o != task]
        runs = [
            self.sweep.run(other) for other in others if (self.sweep.row(other) or {"failed": True})["failed"] is None
        ]
        counted = sorted(runs, key=lambda run: -sum((run.evals / f"{name}.json").exists() for name in BASELINES))
        wanted = _asks(recipe)
        return next((run.path for run in counted if _asks(load_recipe(run.recipe)) == wanted), None)

    def _relearn(self, task: Task, recipe: Recipe) -> None:
        config, run = self.sweep.loaded.suite.after_tests.relearn, self.sweep.run(task)
        path = run.path / "attacks" / "relearn.json"
        if config is None or path.exists():
            return
        student = load_student(run, recipe)
        if isinstance(student, ModelSubject):
            found = relearned(student.model, student.tokenizer, recipe, config, seed=task.seed)
        else:
            found = {"not_applicable": "the method changes no weights"}
        atomic_write_json(path, found)

    def _reference(self, task: Task, recipe: Recipe) -> Row:
        config = self.sweep.loaded.suite.after_tests.relearn
        path = recipe.model.path if task.method == "base" else recipe.model.oracle
        assert config
        assert path
        model, tokenizer = load_subject_model(path, recipe)
        found = relearned(model, tokenizer, recipe, config, seed=task.seed)
        return head(self.sweep, task) | {"failed": None, "relearned": found}


def _asks(recipe: Recipe) -> dict[str, Any]:
    """What decides what base, prefix and oracle are asked and say."""
    model = recipe.model
    return {
        "model": (model.path, model.oracle, model.dtype, model.chat_template, model.quantise),
        "asked": (recipe.concept, recipe.prefix, recipe.evaluate, recipe.data.context, recipe.data.folder),
    }
