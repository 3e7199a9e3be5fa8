"""The one training loop, for every method, for relearning and for the lab's pretraining."""

from duet_unlearn.train.checkpoint import Checkpoints
from duet_unlearn.train.loop import StepLog, train
from duet_unlearn.train.model import load_model, save_model

__all__ = ["Checkpoints", "StepLog", "load_model", "save_model", "train"]
