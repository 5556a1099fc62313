"""Compare runs with what is known of the birth of induction heads: a table of phenomena, criteria and numbers.

Give the folder that scripts/repro_birth.sh filled: a save folder with probes.jsonl for each run, named after its
variant and the number of its seed, such as basic-1. Status 3 if a criterion is missed.

  python analysis/birth/phenomena.py outputs/birth
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.birth_criteria import Evidence, check
from fairseq_transnorm.measure.probe_log import read_probes
from fairseq_transnorm.plotting import run_criteria


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, metavar="JSON", help="default: phenomena.json in the folder")
    options = parser.parse_args(argv)

    def compare() -> list[dict[str, Any]]:
        logs = sorted(options.folder.glob("*/probes.jsonl"))
        return check(Evidence({log.parent.name: read_probes(log) for log in logs}))

    return run_criteria(parser.prog, compare, options.out or options.folder / "phenomena.json")


if __name__ == "__main__":
    sys.exit(main())
