"""Make a table of fine-tunings on MNLI, QQP and RACE: accuracy on each part, mean and spread over seeds.

Give the folders that scripts/finetune_{mnli,qqp,race}.sh wrote, each with train.log and finetune.json. Folders whose
names differ in the seed alone, as lr2e-5_seed1 and lr2e-5_seed2, are seeds of one line, of all tasks; so are those with
the same LABEL; they must start from the same weights and have different seeds. A run counts with its best validation.
MNLI is matched and mismatched together, RACE both levels. Writes the table as STEM.md and STEM.json and prints it.

  python analysis/dslm/fine_tuning.py checkpoints/finetune/*/lr*
  python analysis/dslm/fine_tuning.py dslm=runs/dslm/RACE/lr2e-5_seed1 vanilla=runs/vanilla/RACE/lr2e-5_seed1
"""

import argparse
import re
import sys

from fairseq_transnorm.measure.logs import SCORES
from fairseq_transnorm.measure.scores import score_runs
from fairseq_transnorm.plotting import Rows, run_score_table, score_parser

ORDER = ("MNLI-m", "MNLI-mm", "MNLI", "QQP", "RACE-m", "RACE-h", "RACE")


def measure(options: argparse.Namespace) -> Rows:
    """Return one row a line of the table and column; errors as of ``score_runs``."""
    runs = [(re.sub(r"[_-]?seed\d+$", "", label) or label, path) for label, path in options.inputs]
    return score_runs(runs, dict(options.metric), options.last, overall=True)


def main(argv: list[str] | None = None) -> int:
    return run_score_table(score_parser(str(__doc__), "outputs/fine_tuning", SCORES), argv, measure, ORDER)


if __name__ == "__main__":
    sys.exit(main())
