"""Writes an audit: ``audit.json``, and ``audit.html`` made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet_unlearn.audit.record import audit_record, finished_run
from duet_unlearn.data.files import atomic_write_json, atomic_write_text
from duet_unlearn.redact import Shown
from duet_unlearn.report.run_data import read_run, redactor_of

SCHEMA = Path(__file__).with_name("audit.schema.json")
"""JSON Schema (2020-12) of ``audit.json``."""
ACCESS = {
    "chat": "asks",
    "opening": "opens the answer too",
    "decoding": "draws or reads tokens too",
    "weights": "has the weights",
    "": "as the set asks",
}


@dataclass(frozen=True)
class Audit:
    """What was written."""

    page: Path
    record_path: Path
    record: dict[str, Any]


def write_audit(path: Path | str, *, shown: Shown = "everything") -> Audit:
    """Write ``audit.html`` and ``audit.json`` into a finished run's folder; of one that is not to show everything
    ``audit-redacted.html`` and ``.json``.

    Raises:
        UserError: no such run, not finished, or purged; disk full.
    """
    run = finished_run(path)
    by = None if shown == "everything" else redactor_of(read_run(run.path), shown)
    return write_record(audit_record(path, by), run.path, "audit" if by is None else "audit-redacted")


def write_record(record: dict[str, Any], folder: Path, stem: str) -> Audit:
    """Write a record and its page."""
    page, record_path = folder / f"{stem}.html", folder / f"{stem}.json"
    atomic_write_json(record_path, record)
    atomic_write_text(page, audit_page(record))
    return Audit(page, record_path, record)


def audit_page(record: Mapping[str, Any]) -> str:
    """The page of a record: loads nothing, runs nothing, prints on A4."""
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings = yaml.safe_dump(dict(record["done"]["settings"]), sort_keys=False, allow_unicode=True, width=90)
    template = environment.get_template("audit.html.j2")
    # A model can emit half a surrogate pair, which UTF-8 cannot hold.
    text = template.render(
        record=record, settings=settings, access=ACCESS, value=value, inside=inside, size=size, level=LEVELS
    )
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


LEVELS = {
    "recoverable": "bad",
    "recoverable in part": "mixed",
    "not recovered": "good",
    "inconclusive": "mixed",
    "not attacked": "mixed",
}


UNITS = {"auc": (1, 2, ""), "bits": (1, 1, " bits"), "points": (1, 1, "")}
"""Scale, decimals and unit of measures that are no shares."""


def value(score: Mapping[str, Any] | None, metric: str = "right", *, sign: str = "") -> str:
    """``45.0 %``, or ``n/a``."""
    if not score or score["value"] is None:
        return "n/a"
    scale, digits, unit = UNITS.get(metric, (100, 1, " %"))
    return f"{scale * score['value']:{sign}.{digits}f}{unit}"


def inside(score: Mapping[str, Any] | None, metric: str = "right", *, sign: str = "") -> str:
    """The interval, ``31.0 to 60.0``, and n; what there is of both."""
    if not score or score["value"] is None:
        return ""
    scale, digits, _ = UNITS.get(metric, (100, 1, ""))
    ends = [f"{scale * score[end]:{sign}.{digits}f}" for end in ("low", "high") if score[end] is not None]
    return ", ".join([*([" to ".join(ends)] if ends else []), *([f"n {score['n']}"] if not sign else [])])


def size(tokens: float | None) -> str:
    """Tokens with thousands apart; empty where unknown."""
    return "" if tokens is None else f"{tokens:,.0f}"
