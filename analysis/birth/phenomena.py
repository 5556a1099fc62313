"""Compare runs with what is known of the birth of induction heads: a table of phenomena, criteria and numbers.

Give the folder that scripts/repro_birth.sh filled: a save folder with probes.jsonl for each run, named after its
variant and the number of its seed, such as basic-1. Status 3 if a criterion is missed.

  python analysis/birth/phenomena.py outputs/birth
"""

import argparse
import sys
from typing import Any

from fairseq_transnorm.measure.birth_criteria import Evidence, check
from fairseq_transnorm.measure.probe_log import read_probes
from fairseq_transnorm.plotting import criteria_parser, run_criteria


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    logs = sorted(options.folder.glob("*/probes.jsonl"))
    return check(Evidence({log.parent.name: read_probes(log) for log in logs}))


def main(argv: list[str] | None = None) -> int:
    return run_criteria(criteria_parser(str(__doc__)), argv, compare)


if __name__ == "__main__":
    sys.exit(main())
