"""What training a model takes, from its config.json alone."""

from duet_unlearn.plan.blueprint import Counts, count, draw, read_config
from duet_unlearn.plan.machine import Machine
from duet_unlearn.plan.table import Plan, Row, make_plan
from duet_unlearn.plan.text import plan_text
from duet_unlearn.plan.walk import Asking, Training, Workload, walk_asking, walk_training

__all__ = [
    "Asking",
    "Counts",
    "Machine",
    "Plan",
    "Row",
    "Training",
    "Workload",
    "count",
    "draw",
    "make_plan",
    "plan_text",
    "read_config",
    "walk_asking",
    "walk_training",
]
