"""Compare small models with what is known of norm growth and saturation: a table of phenomena, criteria and numbers.

Give the folder that scripts/repro_normgrowth.sh filled: trajectory.json, scores.json and heads.json, each also in
parts such as scores_others.json. Status 3 if a criterion is missed.

  python analysis/normgrowth/phenomena.py outputs/normgrowth
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.growth_criteria import Evidence, check
from fairseq_transnorm.plotting import criteria_parser, load_table, run_criteria

TABLES = {
    "trajectory": ("run", "scope", "stack", "layer", "updates", "norm", "step_norm", "alignment", "direction_cosine"),
    "scores": ("model", "updates", "saturation", "collapse", "perplexity_later_words"),
    "heads": ("model", "network", "head", "positions_attended", "forbidden_weight"),
}


def load(folder: Path, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read a table and its other parts."""
    parts = sorted(folder.glob(f"{name}_*.json"))
    return [row for path in (folder / f"{name}.json", *parts) for row in load_table(path, columns)]


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    tables = {name: load(options.folder, name, columns) for name, columns in TABLES.items()}
    return check(Evidence(**tables, length=options.length))


def main(argv: list[str] | None = None) -> int:
    parser = criteria_parser(str(__doc__))
    parser.add_argument("--length", type=int, default=31, help="positions of a sentence in heads.json (default: 31)")
    return run_criteria(parser, argv, compare)


if __name__ == "__main__":
    sys.exit(main())
