"""Put trained language models side by side: parameters, perplexity by each convention, speed and time of training.

Give the folder of each run, with its checkpoint_last.pt, its train.log, and perplexity.json from scripts/eval_alm.sh or
scripts/eval_blm.sh (OUT=RUN/perplexity.json). Writes the table as STEM.md and STEM.json and prints it.

  python analysis/transnormer/compare.py t2=runs/t2 transformer_lm=runs/base --equal-parameters 3
"""

import json
import logging
import statistics
import sys
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.describe import describe
from fairseq_transnorm.measure.logs import read_log
from fairseq_transnorm.measure.masked_perplexity import CONVENTION
from fairseq_transnorm.plotting import (
    Labelled,
    analysis_parser,
    check_distinct,
    format_cell,
    format_markdown,
    format_table,
    save_table,
)
from fairseq_transnorm.whole_file import whole_file

NEEDED = ("subset", "convention", "tokens_per_sample", "tokens", "perplexity")
TEXT = ("model", "architecture")


def measure(inputs: list[Labelled], data: str | None, tolerance: float | None) -> list[dict[str, Any]]:
    """Return one row a run.

    Args:
        inputs: names and folders of the runs.
        data: data folder, when not the one that each model was trained on.
        tolerance: most percent by which a run's parameters may differ from the first run's; None allows all.

    Raises:
        FileNotFoundError: a run lacks a file.
        ValueError: the numbers cannot be compared: another text or convention, too many parameters, or one
            name for two runs.
    """
    check_distinct(inputs, "runs", "FOLDER")
    rows: list[dict[str, Any]] = []
    evaluated: dict[str, str] = {}
    for label, folder in inputs:
        perplexities = read_perplexities(folder)
        texts = {name: text for name, (text, _) in perplexities.items()}
        evaluated = evaluated or texts
        if texts != evaluated:
            raise ValueError(
                f"{folder} was evaluated on {texts}, the first run on {evaluated} (tokens of each split and "
                "convention); evaluate all of them alike with scripts/eval_alm.sh, or scripts/eval_blm.sh"
            )
        facts = describe(load_run(folder / "checkpoint_last.pt", data))
        row = {"model": label, "architecture": facts["arch"], "parameters": facts["parameters"]}
        row |= {name: perplexity for name, (_, perplexity) in perplexities.items()}
        rows.append(row | training(folder))
        first = rows[0]["parameters"]
        apart = 100 * abs(facts["parameters"] - first) / first
        if tolerance is not None and apart > tolerance:
            raise ValueError(
                f"{label} has {facts['parameters']:,} parameters, {rows[0]['model']} has {first:,}: "
                f"{apart:.1f} % apart, more than --equal-parameters {tolerance:g}"
            )
    return rows


def read_perplexities(folder: Path) -> dict[str, tuple[str, float]]:
    """Return ``split, convention`` -> (on what, perplexity) of a run, in the order of its perplexity.json."""
    path = folder / "perplexity.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; write it: OUT={path} scripts/eval_alm.sh {folder}/checkpoint_last.pt DATA "
            "(eval_blm.sh for a masked language model)"
        )
    rows = json.loads(path.read_text())
    if not isinstance(rows, list) or not rows or any(name not in row for row in rows for name in NEEDED):
        raise ValueError(f"{path} is not what scripts/eval_alm.sh or eval_blm.sh writes; remove it and evaluate again")
    found = {}
    for row in rows:
        name = f"blocks of {row['tokens_per_sample']}"
        if row["convention"] == CONVENTION:
            name = f"masked, up to {row['tokens_per_sample']}"
        elif row["context_window"]:
            name = f"context {row['context_window']} of {row['tokens_per_sample']}"
        text = f"{row['tokens']} tokens" + (f", masks {row['fingerprint']}" if "fingerprint" in row else "")
        found[f"{row['subset']} ppl, {name}"] = (text, float(row["perplexity"]))
    return found


def training(folder: Path) -> dict[str, Any]:
    """Return what the log says of the training: updates, tokens, seconds (validation included), tokens per second."""
    log = read_log(folder / "train.log")
    last = log[-1]
    speeds = [row["ups"] * row["wpb"] for row in log if row["split"] == "train_inner" and {"ups", "wpb"} <= row.keys()]
    return {
        "updates": last["updates"],
        "training tokens": last.get("tokens"),
        # the median of the log's lines, which a validation between two of them does not move
        "training tokens/s": round(statistics.median(speeds)) if speeds else None,
        "training seconds": round(last["wall"]) if "wall" in last else None,
    }


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Say in words how each run compares with the first, and what the columns are."""
    first, *others = rows
    names = [name for name in first if " ppl, " in name]
    text = []
    for row in others:
        apart = 100 * (row["parameters"] / first["parameters"] - 1)
        text.append(f"{row['model']} has {apart:+.2f} % the parameters of {first['model']}. Perplexity of")
        ratios = [f"{100 * (first[name] / row[name] - 1):+.1f} % ({name})" for name in names]
        text[-1] += f" {first['model']} against {row['model']}: " + ", ".join(ratios) + "."
    if all(", masked" in name for name in names):
        text.append("Perplexity is per masked token of the same text with the same masks, lower is better.")
    else:
        text.append(
            "Perplexity is per token of the same text, lower is better. Blocks share no context; with 'context c of n' "
            "each token sees at least c tokens before it."
        )
    text[-1] += " Training time includes validation."
    return text


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/compare", inputs="run")
    parser.add_argument("--data", help="data folder, when not the one that each model was trained on")
    parser.add_argument(
        "--equal-parameters", type=float, metavar="PERCENT", help="fail when a run differs more from the first one"
    )
    options = parser.parse_args(argv)
    logging.getLogger().setLevel(logging.WARNING)  # fairseq's imports set it to DEBUG
    if not options.inputs:
        parser.error("nothing to compare: give at least one folder of a run")
    try:
        rows = measure(options.inputs, options.data, options.equal_parameters)
        save_table(f"{options.out}.json", rows)
        text = "\n\n".join([format_markdown(rows, TEXT), *verdict(rows)]) + "\n"
        with whole_file(f"{options.out}.md") as unfinished:
            unfinished.write_text(text)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(format_table(transposed(rows), digits=7))
    print("", *verdict(rows), sep="\n")
    return 0


def transposed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a column and one column a run, which fits a terminal."""
    return [{"": name} | {row["model"]: format_cell(row[name]) for row in rows} for name in list(rows[0])[1:]]


if __name__ == "__main__":
    sys.exit(main())
