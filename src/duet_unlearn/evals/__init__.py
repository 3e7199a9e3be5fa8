"""Measuring: subjects, question sets, scores."""

from duet_unlearn.evals.score import Score, bootstrap_mean, normalise, outcome, rouge_l, value_match, wilson
from duet_unlearn.evals.shift import performance_shift
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.evals.suite import EvalSet, SuiteResult, run_suite, score_samples, suite_json

__all__ = [
    "EvalSet",
    "ModelSubject",
    "Score",
    "Subject",
    "SuiteResult",
    "bootstrap_mean",
    "normalise",
    "outcome",
    "performance_shift",
    "rouge_l",
    "run_suite",
    "score_samples",
    "suite_json",
    "value_match",
    "wilson",
]
