"""The teacher: the base model with a prefix in front; what it says, whether it refuses, and the cache of its words."""

from duet_unlearn.teacher.cache import Targets, build_targets, load_targets
from duet_unlearn.teacher.signals import Dense, Signal

__all__ = ["Dense", "Signal", "Targets", "build_targets", "load_targets"]
