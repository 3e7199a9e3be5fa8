"""A run, or a sweep, as one self-contained HTML page: no script, no network, model text escaped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duet_unlearn.errors import UserError
from duet_unlearn.redact import Shown
from duet_unlearn.report import attack_views, samples, views
from duet_unlearn.report.paper import paper
from duet_unlearn.report.read import SUBJECTS, RunData, method_name, metric_words, read_run, what_was_forgotten
from duet_unlearn.report.recovered import RULE as RECOVERY_RULE
from duet_unlearn.report.recovered import ways
from duet_unlearn.report.redacted import redacted, redactor_of
from duet_unlearn.report.sweep import sweep_context
from duet_unlearn.report.sweep_read import is_sweep
from duet_unlearn.report.verdict import RULE, verdict

if TYPE_CHECKING:
    import jinja2

ENV_FACTS = ("started", "platform", "python", "commit", "device", "threads", "seed")
"""Fields of ``env.json`` shown under Settings, where they are known."""
REDACTED = "report-redacted.html"
"""The page without words."""


def write_report(path: Path, *, shown: Shown = "everything") -> Path:
    """Writes ``report.html`` into a run's or a sweep's folder, whole or not at all, and returns its path; of a run that
    is not to show everything ``report-redacted.html``.

    Raises:
        UserError: no such folder; a sweep that is not to show everything.
    """
    page = render_report(path, shown=shown)
    target = Path(path) / ("report.html" if shown == "everything" else REDACTED)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        # A model can emit half a surrogate pair, which UTF-8 cannot hold: it becomes a question mark.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        hint = "free some space or check the folder's rights"
        raise UserError(f"cannot write {target}: {error.strerror}", hint) from None
    return target


def render_report(path: Path, *, shown: Shown = "everything") -> str:
    """The page of a run folder, or of a sweep's; any other folder is a UserError."""
    if is_sweep(Path(path)):
        if shown != "everything":
            raise UserError(f"{path}: is a sweep, whose report has no answers to redact", "redact a run of it")
        return template("sweep.html.j2").render(sweep_context(Path(path))) + "\n"
    run = read_run(path)
    return render_run(run if shown == "everything" else redacted(run, redactor_of(run, shown)))


def render_run(run: RunData) -> str:
    """The page of a run that was read."""
    return template("report.html.j2").render(_context(run)) + "\n"


def template(name: str) -> jinja2.Template:
    """A page's template; every value is escaped, and one that is not there is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _context(run: RunData) -> dict[str, Any]:
    subjects = [run.subjects[name] for name in SUBJECTS if name in run.subjects]
    return {
        "run": run,
        "name": run.recipe.get("name") or run.path.name,
        "concept": what_was_forgotten(run) if run.recipe.get("concept") else "",
        "method": method_name(run.recipe),
        "verdict": verdict(run),
        "verdict_rule": RULE,
        "tables": [views.table(subjects, columns) for columns in views.parts(views.numbered(run))],
        "empty": [column.title for column in run.columns if column not in views.with_values(run)],
        "limit": (run.recipe.get("evaluate") or {}).get("limit"),
        "missing": [name for name in SUBJECTS if name not in run.subjects],
        "requests": views.requests(run),
        "paper": paper(run),
        "picture": views.picture(run, subjects),
        "bars": views.bars(run, subjects),
        "attacks": attack_views.section(ways(run)),
        "recovery_rule": RECOVERY_RULE,
        "probe": views.probe(run.probe),
        "shifts": views.shifts(run.shifts),
        "curves": views.curves(run),
        "samples": views.sample_answers(run),
        "sample_rule": samples.rule(),
        "clip": views.clip,
        "metric_words": metric_words,
        "timings": [views.timing(name, found) for name, found in run.timings.items()],
        "warnings": run.env.get("warnings", []),
        "facts": {key: run.env[key] for key in ENV_FACTS if run.env.get(key) is not None},
    }
