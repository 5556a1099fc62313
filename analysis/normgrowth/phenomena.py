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
from fairseq_transnorm.plotting import format_table, load_table, save_table

TABLES = {
    "trajectory": ("run", "scope", "stack", "layer", "updates", "norm", "step_norm", "alignment", "direction_cosine"),
    "scores": ("model", "updates", "saturation", "collapse", "perplexity_later_words"),
    "heads": ("model", "network", "head", "positions_attended", "forbidden_weight"),
}


def load(folder: Path, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read a table and its other parts."""
    parts = sorted(folder.glob(f"{name}_*.json"))
    return [row for path in (folder / f"{name}.json", *parts) for row in load_table(path, columns)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int, default=31, help="positions of a sentence in heads.json (default: 31)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="default: phenomena.json in the folder")
    options = parser.parse_args(argv)
    try:
        tables = {name: load(options.folder, name, columns) for name, columns in TABLES.items()}
        rows = check(Evidence(**tables, length=options.length))
    except (OSError, ValueError, LookupError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    save_table(options.out or options.folder / "phenomena.json", rows)
    print(format_table(rows))
    missed = sum(row["ok"] != "yes" for row in rows)
    if missed:
        print(f"{parser.prog}: {missed} of {len(rows)} criteria are missed", file=sys.stderr)
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
