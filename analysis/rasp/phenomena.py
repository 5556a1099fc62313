"""Compare runs with what is known of transformers on formal languages: a table of phenomena, criteria and numbers.

Give the folder that scripts/repro_rasp.sh filled: a save folder with results.json for each run, named after its variant
and the number of its seed, such as reverse-1. Status 3 if a criterion is missed.

  python analysis/rasp/phenomena.py outputs/rasp
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.epoch_log import RESULTS, read_epochs
from fairseq_transnorm.measure.language_attention import heat_map_diagonal, load_language_run, target_masses
from fairseq_transnorm.measure.language_criteria import MEASURED, SEQUENCE, Evidence, LanguageRun, check
from fairseq_transnorm.measure.language_runs import CHECKPOINTS, evaluated, read_results
from fairseq_transnorm.plotting import criteria_parser, run_criteria


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    folders = sorted(path.parent for path in options.folder.glob(f"*/{RESULTS}"))
    return check(Evidence({folder.name: evidence(folder) for folder in folders}))


def evidence(folder: Path) -> LanguageRun:
    """Read the logs of a run and measure what has to be measured of its best model."""
    results = read_results(folder)
    accuracy = evaluated(results, "test", "accuracy")
    if results is None or accuracy is None:
        raise LookupError(f"the run in {folder} was not evaluated; train it to its end")
    settings = results["arguments"]
    measured: dict[str, Any] = {}
    wanted = MEASURED.get(folder.name.rpartition("-")[0])
    if wanted:
        quiet()
        run = load_language_run(folder / CHECKPOINTS["best"])
        measured[wanted] = target_masses(run) if wanted == "masses" else heat_map_diagonal(run, SEQUENCE)
    return LanguageRun(folder.name, read_epochs(folder), accuracy, settings["lr"], settings["gamma"], **measured)


def main(argv: list[str] | None = None) -> int:
    return run_criteria(criteria_parser(str(__doc__)), argv, compare)


if __name__ == "__main__":
    sys.exit(main())
