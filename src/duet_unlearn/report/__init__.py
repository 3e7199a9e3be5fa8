"""Reads run folders, and nothing else: one HTML page a run, and plain tables over several runs."""

from duet_unlearn.report.run_page import render_report, write_report
from duet_unlearn.report.text_tables import Comparison, compare, summary_text

__all__ = ["Comparison", "compare", "render_report", "summary_text", "write_report"]
