"""One attack on one subject, whatever happens inside."""

from __future__ import annotations

import gc
import logging
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from duet_unlearn.attacks.cost import metered
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.result import Access, AttackResult, Instance, Metric, NotApplicable, Status, Watch, unwatched
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Subject

LOG = logging.getLogger("duet_unlearn")


class Attack(Protocol):
    """A frozen dataclass of settings, and what is done with them. The docstring says what the attacker does."""

    title: ClassVar[str]
    """Its name for people, unless ``title_of`` knows a better one."""
    access: ClassVar[Access]
    metric: ClassVar[Metric]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    def tokens(self, goal: Goal) -> int:
        """About how many tokens go through the model, for the estimate of time; one with a backward pass counts
        three times."""
        ...

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """Try every instance. The subject's own weights stay as they are: what changes weights works on a copy.

        Raises:
            NotApplicable: the attack does not fit this subject or goal.
        """
        ...


@runtime_checkable
class Dependent(Protocol):
    """An attack whose result depends on more than its settings: then it is done again when that has changed."""

    def beside(self) -> list[Any]:
        """What else there is, as JSON says it."""
        ...


def attack(subject: Subject, config: Attack, goal: Goal, watch: Watch = unwatched) -> AttackResult:
    """Carry an attack out. One that breaks or runs out of memory is a result too: `failed`, with its reason."""
    found: list[Instance] = []
    status: Status = "done"
    reason = ""
    with metered(subject) as meter:
        try:
            found = config.carry_out(subject, goal, watch)
        except NotApplicable as error:
            status, reason = "not applicable", str(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            status, reason = "failed", _worded(error)
            LOG.warning("warning: attack %s on %s failed: %s", config.name, subject.name, reason)
    if status == "failed":
        _free()
    return AttackResult(config.name, subject.name, status, reason, config.metric, tuple(found), meter.cost())


def _worded(error: Exception) -> str:
    """An error as one line."""
    if isinstance(error, UserError):
        return error.message
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
