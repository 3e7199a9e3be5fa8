"""What each section of a sweep's page shows, as plain values for the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duet_unlearn.report import sweep_figures
from duet_unlearn.report.beside import paper_table
from duet_unlearn.report.expectations import RULE, expectations
from duet_unlearn.report.figures import safe
from duet_unlearn.report.sweep_read import Sweep, read_sweep
from duet_unlearn.report.sweep_tables import tables
from duet_unlearn.report.sweep_words import facts, failures, headline, not_relearned, progress, protocol

LEVELS = {"confirmed": "good", "refuted": "bad", "not decidable": "mixed"}


def sweep_context(path: Path) -> dict[str, Any]:
    """Everything that ``sweep.html.j2`` names.

    Raises:
        UserError: the folder's results cannot be read.
    """
    sweep = read_sweep(path)
    return {
        "sweep": sweep,
        "headline": headline(sweep),
        "progress": progress(sweep),
        "expectations": expectations(sweep),
        "levels": LEVELS,
        "rule": RULE,
        "tables": [*tables(sweep), *filter(None, [paper_table(sweep)])],
        "pictures": pictures(sweep),
        "failures": failures(sweep),
        "not_relearned": not_relearned(sweep),
        "facts": facts(sweep),
        "packages": sweep.facts.get("packages") or {},
        "protocol": protocol(sweep),
    }


def pictures(sweep: Sweep) -> list[tuple[str, list[Any], str]]:
    """(title, figures, caption) of those that have a dot."""
    drawn = (
        ("Forgetting against keeping", sweep_figures.forget_keep(sweep), sweep_figures.FORGET_KEEP),
        ("Robustness against cost", sweep_figures.robust_cost(sweep), sweep_figures.ROBUST_COST),
    )
    return [(title, [*map(safe, svgs)], f"{caption} {sweep_figures.PARETO}") for title, svgs, caption in drawn if svgs]
