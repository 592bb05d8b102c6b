"""Reports: findings and flows as JSON objects, lines and rows of tables. Plain values out; no terminal library."""

from nat_rewriter.report.actions import action_line, action_object
from nat_rewriter.report.findings import FINDING_COLUMNS, finding_line, finding_object, finding_row
from nat_rewriter.report.flows import FLOW_COLUMNS, flow_line, flow_object, flow_row
from nat_rewriter.report.json_lines import json_line

__all__ = [
    "FINDING_COLUMNS",
    "FLOW_COLUMNS",
    "action_line",
    "action_object",
    "finding_line",
    "finding_object",
    "finding_row",
    "flow_line",
    "flow_object",
    "flow_row",
    "json_line",
]
