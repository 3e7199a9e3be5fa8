"""Many methods under one protocol: tuned alike on validation questions, tested once, by workers that share a folder."""

from duet_unlearn.sweep.results import problems_text, table_text
from duet_unlearn.sweep.tasks import announcement
from duet_unlearn.sweep.workers import prepare, run, slurm_script

__all__ = ["announcement", "prepare", "problems_text", "run", "slurm_script", "table_text"]
