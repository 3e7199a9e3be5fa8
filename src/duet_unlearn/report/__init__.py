"""Reads run folders, and nothing else: one HTML page a run, and plain tables over several runs."""

from duet_unlearn.report.compare import Comparison, compare, summary_text
from duet_unlearn.report.page import render_report, write_report

__all__ = ["Comparison", "compare", "render_report", "summary_text", "write_report"]
