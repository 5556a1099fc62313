"""Drawings of tables of numbers; nothing here knows a model, torch or fairseq."""

from .axes import MARKED, count_axis, describe, legend, log_axis, mark_ticks, panel_title, shared_legend
from .bands import BAND, count_seeds, mean_curve, with_seeds
from .command import (
    add_sentence_options,
    analysis_parser,
    at_least,
    criteria_parser,
    run_analysis,
    run_criteria,
    run_tables,
)
from .figure import figure, panels
from .labels import Labelled, check_distinct, check_runs, file_names, labelled, show_symbol, text_name
from .scores import Rows, run_score_table, score_parser
from .styles import BASELINE, DASHES, LIMIT, line_style, line_styles, ordered_colours, ordered_markers
from .tables import (
    Table,
    format_cell,
    format_markdown,
    format_table,
    load_table,
    same_origin,
    save_csv,
    save_table,
    save_text,
)

__all__ = [
    "BAND",
    "BASELINE",
    "DASHES",
    "LIMIT",
    "MARKED",
    "Labelled",
    "Rows",
    "Table",
    "add_sentence_options",
    "analysis_parser",
    "at_least",
    "check_distinct",
    "check_runs",
    "count_axis",
    "count_seeds",
    "criteria_parser",
    "describe",
    "figure",
    "file_names",
    "format_cell",
    "format_markdown",
    "format_table",
    "labelled",
    "legend",
    "line_style",
    "line_styles",
    "load_table",
    "log_axis",
    "mark_ticks",
    "mean_curve",
    "ordered_colours",
    "ordered_markers",
    "panel_title",
    "panels",
    "run_analysis",
    "run_criteria",
    "run_score_table",
    "run_tables",
    "same_origin",
    "save_csv",
    "save_table",
    "save_text",
    "score_parser",
    "shared_legend",
    "show_symbol",
    "text_name",
    "with_seeds",
]
