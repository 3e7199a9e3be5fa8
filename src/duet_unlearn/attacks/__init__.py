"""What is done to a model in order to get back what it forgot."""

from duet_unlearn.attacks.goal import Goal, draw_goal, given_away
from duet_unlearn.attacks.relearn import RATES, Relearned, relearn, worst
from duet_unlearn.attacks.result import AttackResult, Cost, Finding, Instance, NotApplicable, Said, finding
from duet_unlearn.attacks.run import Attack, attack
from duet_unlearn.attacks.suite import ATTACKS, AttackSuite, load_suite, suite_names
from duet_unlearn.evals.generate import share_right

__all__ = [
    "ATTACKS",
    "RATES",
    "Attack",
    "AttackResult",
    "AttackSuite",
    "Cost",
    "Finding",
    "Goal",
    "Instance",
    "NotApplicable",
    "Relearned",
    "Said",
    "attack",
    "draw_goal",
    "finding",
    "given_away",
    "load_suite",
    "relearn",
    "share_right",
    "suite_names",
    "worst",
]
