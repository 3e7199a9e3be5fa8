"""What training a model takes, from its config.json alone."""

from duet_unlearn.plan.walk import Workload, walk_teacher, walk_training
from duet_unlearn.plan.ways import Plan, count, draw, make_plan, plan_text, read_config

__all__ = [
    "Plan",
    "Workload",
    "count",
    "draw",
    "make_plan",
    "plan_text",
    "read_config",
    "walk_teacher",
    "walk_training",
]
