"""Any RunRecord as a table, as JSON and as one offline page: drawn from the record alone, always the same bytes."""

from __future__ import annotations

from edgeexport.report.page import html
from edgeexport.report.table import ladder_table, to_json, verdict_lines

__all__ = ["html", "ladder_table", "to_json", "verdict_lines"]
