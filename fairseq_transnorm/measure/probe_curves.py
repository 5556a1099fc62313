"""Curves of what the log of probes holds: accuracies, losses, attention and memories against updates.

Source of the plots: Bietti et al. 2023, "Birth of a Transformer: A Memory Viewpoint", arXiv:2306.00802.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models.birth.freezing import parse_freezing
from .checkpoints import read_mapped
from .probe_log import FILE, read_probes

logger = logging.getLogger(__name__)
Rows = list[dict[str, Any]]
CUT = "wk0_cut_acc"  # the probe of the first positions, whose name in the log holds their number
PLOTS: dict[str, tuple[str, ...]] = {
    "accuracy": ("acc_end_test", "acc_end"),
    "recall": ("wo1_acc", "wk1_acc", "wk0_acc", CUT),
    "feed_forward": ("ff1_loss",),
    "losses": ("loss_head", "loss_bigram"),
    "attention": ("score_start_acc", "score2_acc", "score_cond_acc", "pred_attended_acc"),
}
# what the logs of a model without any value of a plot lack
_WHY = {
    "recall": "its weights are no memories that the probes know (they are defined for two layers and more)",
    "feed_forward": "its second layer has no feed-forward map that is known (--final-ffn)",
    "attention": "they are of two layers with one head each",
}
COLUMNS = ("run", "source", "updates", "freeze_until", "cutoff", *(name for names in PLOTS.values() for name in names))


def probe_rows(run: str, path: str | Path) -> Rows:
    """Return the training lines of a log of probes as flat rows, of the weights after ``updates`` updates.

    Args:
        run: name of the run; several seeds may share it.
        path: ``probes.jsonl``, or the save folder that it is in.

    Returns:
        Rows with ``run``, ``source``, ``updates``, ``freeze_until`` (of the run's command, else None), ``cutoff`` (of
        ``wk0_cut_acc``) and the names of ``PLOTS``, None where the log has no value, or one that is not finite; a
        warning names the first of those.

    Raises:
        FileNotFoundError: no such folder, or no log of probes in it.
        ValueError: the log is damaged, or has lines of validations only.
    """
    lines = [line for line in read_probes(path) if line.get("split") in (None, "train")]
    if not lines:
        raise ValueError(f"{path} has lines of validations only; train with --log-probes and --probe-interval N")
    cutoffs = [int(match[1]) for name in lines[-1] if (match := re.fullmatch(r"wk0_(\d+)_acc", name))]
    cutoff = cutoffs[0] if cutoffs else None
    names = {column: f"wk0_{cutoff}_acc" if column == CUT else column for names in PLOTS.values() for column in names}
    head = {"run": run, "source": str(path)}
    staged = {"freeze_until": freezing_of(path), "cutoff": cutoff}
    odd = [(name, line) for line in lines for name in names.values() if not math.isfinite(line.get(name) or 0)]
    if odd:
        name, line = odd[0]
        which = f"{name} after {line['iter']} updates is {line[name]}"
        logger.warning("%s: %s; %s such values are not drawn; did the run diverge?", path, which, len(odd))
    return [
        head | {"updates": line["iter"]} | staged | {column: _finite(line.get(name)) for column, name in names.items()}
        for line in lines
    ]


def check_distinct_logs(paths: Iterable[str | Path]) -> None:
    """Raise ValueError where two paths are of one log, which is no second seed."""
    seen: dict[Path, str | Path] = {}
    for path in paths:
        log = (Path(path) / FILE if Path(path).is_dir() else Path(path)).resolve()
        if log in seen:
            raise ValueError(f"{seen[log]} and {path} are of the same log {log}; give it once")
        seen[log] = path


def freezing_of(path: str | Path) -> str | None:
    """Return the ``--freeze-until`` of a run, from its checkpoint, else from ``command.log``; None where neither tells.

    Args:
        path: the save folder, or a file in it.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    for checkpoint in (folder / "checkpoint_last.pt", *sorted(folder.glob("*.pt"))):
        if checkpoint.is_file():
            try:
                return (read_mapped(checkpoint).get("cfg") or {}).get("model", {}).get("freeze_until")
            except (OSError, ValueError) as error:
                logger.warning("--freeze-until is looked for elsewhere: %s", error)
    commands = folder / "command.log"
    lines = commands.read_text(encoding="utf-8").splitlines() if commands.is_file() else []
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--freeze-until")
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    return parser.parse_known_args(words[-1] if words else [])[0].freeze_until  # the last start counts


def releases(freeze_until: str | None) -> dict[int, list[str]]:
    """Return update -> names of the parameters that are trained from it on."""
    found: dict[int, list[str]] = {}
    for name, updates in parse_freezing(freeze_until).items():
        found.setdefault(updates, []).append(name)
    return found


def check_values(rows: Iterable[Mapping[str, Any]], plots: Sequence[str]) -> None:
    """Raise ValueError where a run has no value at all for one of the plots, or what is drawn is not comparable.

    Seeds of one run were frozen alike; the first positions, whose recall is one curve of all runs, are as many in all.
    """
    of_runs: dict[str, Rows] = {}
    for row in rows:
        of_runs.setdefault(row["run"], []).append(dict(row))
    for run, mine in of_runs.items():
        for plot in plots:
            if all(row[name] is None for row in mine for name in PLOTS[plot]):
                why = _WHY.get(plot, "no trigger came twice, or --log-probes was off")
                raise ValueError(f"run {run!r} has no value of {', '.join(PLOTS[plot])} to plot: {why}")
        stages = {str(row["source"]): parse_freezing(row["freeze_until"]) for row in mine}
        if any(stage != stages[str(mine[0]["source"])] for stage in stages.values()):
            found = {str(row["source"]): row["freeze_until"] for row in mine}
            raise ValueError(
                f"seeds of {run!r} differ in --freeze-until: {found}; give each setting a label of its own"
            )
    cutoffs = {row["source"]: row["cutoff"] for mine in of_runs.values() for row in mine if row[CUT] is not None}
    if "recall" in plots and len(set(cutoffs.values())) > 1:
        raise ValueError(
            f"runs differ in --probe-position-cutoff: {cutoffs}; draw their recall in figures of their own"
        )


def smoothed(rows: Sequence[Mapping[str, Any]], window: int) -> Rows:
    """Return rows whose values are means over up to ``window`` points, the point in their middle.

    They are fewer, as many before as after, at the ends and near an update at which a matrix is released: no mean is
    over points of both sides. A point without a value stays so, and counts in no mean.

    Raises:
        ValueError: the window is even, so that no point is in its middle.
    """
    if window % 2 == 0:
        raise ValueError(f"means over {window} points have none in their middle; smooth over {window + 1}")
    series: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        series.setdefault((row["run"], row["source"]), []).append(row)
    columns = [name for names in PLOTS.values() for name in names]
    out: Rows = []
    for mine in series.values():
        starts = sorted(releases(mine[0].get("freeze_until")))
        # after N updates, at which a matrix is released, it is not trained yet
        stages = [sum(start < row["updates"] for start in starts) for row in mine]
        for number, row in enumerate(mine):
            first, count = stages.index(stages[number]), stages.count(stages[number])
            half = min(window // 2, number - first, first + count - 1 - number)
            near = mine[number - half : number + half + 1]
            out.append(dict(row) | {name: _mean(row[name], [other[name] for other in near]) for name in columns})
    return out


def shared_points(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the rows whose update all seeds of their run have; a warning says where that leaves some out.

    Raises:
        ValueError: the seeds of a run have no update in common.
    """
    kept: Rows = []
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [dict(row) for row in rows if row["run"] == run]
        of_seeds: dict[str, set[int]] = {}
        for row in mine:
            of_seeds.setdefault(row["source"], set()).add(row["updates"])
        shared = set.intersection(*of_seeds.values())
        if not shared:
            raise ValueError(f"the seeds of {run!r} have no update in common: {list(of_seeds)}; draw them one by one")
        if most := len(set.union(*of_seeds.values()) - shared):
            logger.warning("%s: %s updates that not all of its seeds have logged are not drawn", run, most)
        kept += [row for row in mine if row["updates"] in shared]
    return kept


def first_crossing(rows: Iterable[Mapping[str, Any]], name: str, level: float) -> int | None:
    """Return the first update at which a value is at least ``level``; None where there is none."""
    return next((row["updates"] for row in rows if row[name] is not None and row[name] >= level), None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(own: float | None, values: Iterable[float | None]) -> float | None:
    if own is None:
        return None
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
