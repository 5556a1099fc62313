"""Draw what training on bigram sequences with triggers logged: in-context accuracy, memories, losses, attention.

Give save folders with a probes.jsonl of --log-probes. Paths with the same LABEL are seeds of one run: their mean is
drawn, with a band from the lowest to the highest. A vertical line shows when --freeze-until released a matrix.

  accuracy      in-context accuracy, on the evaluation sequences and on those of the training batch
  recall        how well W_O of layer 2, W_K of layer 2 and W_K of layer 1 recall, each as an associative memory
  feed_forward  divergence of the feed-forward map of layer 2 from the bigrams, where there is one
  losses        of global tokens, and of outputs that the sequence has shown before
  attention     whether the heads look where an induction head would

Several plots are drawn below each other, with a column for each run: accuracy and recall as in the paper's figure 3.
STEM.json has what was logged, STEM.csv what is drawn (--smooth, --max-iter). The table that is printed ends where the
figure does and is of what was logged, not of means over points.

  python analysis/birth/curves.py basic=runs/basic --plot recall
  python analysis/birth/curves.py all=runs/r2 "late keys=runs/keys" "late W_O=runs/output" --plot accuracy,recall
"""

import argparse
import re
import sys
from typing import Any

from matplotlib.axes import Axes

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.probe_curves import (
    COLUMNS,
    CUT,
    PLOTS,
    check_distinct_logs,
    check_values,
    first_crossing,
    probe_rows,
    releases,
    shared_points,
    smoothed,
)
from fairseq_transnorm.plotting import (
    BAND,
    BASELINE,
    DASHES,
    analysis_parser,
    at_least,
    check_runs,
    count_seeds,
    describe,
    legend,
    line_styles,
    mean_curve,
    panel_title,
    panels,
    run_analysis,
    save_csv,
    with_seeds,
)

Rows = list[dict[str, Any]]
TOGETHER = ("accuracy", "feed_forward", "losses")  # alone, all runs in one panel: they have few curves each
AXES = {
    "accuracy": "in-context accuracy",
    "recall": "memory recall",
    "feed_forward": "divergence of $W_F$ from\nthe bigrams (nats)",
    "losses": "loss (nats per token)",
    "attention": "share of positions",
}
NAMES = {
    "acc_end_test": "evaluation",
    "acc_end": "training batch",
    "wo1_acc": "$W_O^2$",
    "wk1_acc": "$W_K^2$",
    "wk0_acc": "$W_K^1$",
    CUT: "$W_K^1$, $t < {cutoff}$",
    "ff1_loss": "$W_F$",
    "loss_head": "outputs seen before",
    "loss_bigram": "global tokens",
    "score_start_acc": "layer 1 looks back at a first trigger",
    "score2_acc": "layer 2 looks behind the trigger",
    "score_cond_acc": "layer 1 had looked back there",
    "pred_attended_acc": "prediction = token looked at",
}

CROSSINGS = (
    ("wo1", "wo1_acc", 0.9),
    ("accuracy", "acc_end_test", 0.5),
    (CUT, CUT, 0.5),
    ("accuracy", "acc_end_test", 0.9),
)
THIN: dict[str, Any] = {"linestyle": DASHES[1], "linewidth": 1.0}
RELEASE = BASELINE | {"color": "0.45", "linewidth": 1.1}


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_runs(options.inputs)
    check_distinct_logs(path for _, path in options.inputs)
    rows = [row for label, path in options.inputs for row in probe_rows(label, path)]
    check_values(rows, options.plot)
    return rows


def chosen(rows: Rows, options: argparse.Namespace) -> Rows:
    """Return the points to draw."""
    if options.max_iter is not None and not any(row["updates"] <= options.max_iter for row in rows):
        raise ValueError(f"--max-iter {options.max_iter} leaves no point: the first is at {rows[0]['updates']}")
    return shared_points(until(smoothed(rows, options.smooth), options))


def until(rows: Rows, options: argparse.Namespace) -> Rows:
    """Return the rows up to --max-iter."""
    return [row for row in rows if options.max_iter is None or row["updates"] <= options.max_iter]


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    check_values(rows, options.plot)
    points = chosen(rows, options)
    runs = {label: [row for row in points if row["run"] == label] for label in dict.fromkeys(r["run"] for r in points)}
    if len(options.plot) == 1 and options.plot[0] in TOGETHER:
        with panels(stem, rows, size=(5.6, 3.4), seed=options.seed) as (ax,):
            draw_together(ax, runs, options.plot[0])
            ax.set_xlabel(across(options))
    else:
        draw_columns(rows, runs, stem, options)
    drawn = ["run", "source", "updates", *(name for plot in options.plot for name in PLOTS[plot])]
    # a curve has no point where one of its seeds has no value
    missing = {(row["run"], row["updates"], name) for row in points for name in drawn if row[name] is None}
    cells = ((row, {name: (row["run"], row["updates"], name) not in missing for name in drawn}) for row in points)
    save_csv(f"{stem}.csv", [{name: row[name] if known[name] else None for name in drawn} for row, known in cells])


def draw_columns(rows: Rows, runs: dict[str, Rows], stem: str, options: argparse.Namespace) -> None:
    """Draw a row of panels for each plot, a column for each run, and a legend at the end of each row."""
    beside = 2.5 if "attention" in options.plot else 1.3  # inches of the longest legend
    size = ((3.0 if len(runs) > 1 else 3.8) + beside / len(runs), 2.5)
    shape: dict[str, Any] = {"nrows": len(options.plot), "ncols": len(runs), "sharex": True, "sharey": "row"}
    staged, several = any(row["freeze_until"] for row in rows), any(count_seeds(mine) > 1 for mine in runs.values())
    with panels(stem, rows, **shape, size=size, seed=options.seed) as axes:
        for number, ax in enumerate(axes):
            line, column = divmod(number, len(runs))
            plot, run = options.plot[line], list(runs)[column]
            draw_run(ax, runs[run], plot)
            names = {"x": across(options) if line == len(options.plot) - 1 else "", "y": "" if column else AXES[plot]}
            describe(ax, **names)
            if not line:
                name_releases(ax, runs[run])
                seeds = f" (n={count_seeds(runs[run])})" if several else ""
                panel_title(ax, f"{run}{seeds}" + "\n" * staged)  # above the names of what is released
            if column == len(runs) - 1:  # a row has one scale, of all that was drawn
                set_scale(ax, plot)
                if several and not line:
                    ax.fill_between([], [], **BAND, color="0.3", label="range of n seeds")
                legend(ax, beside=True, panels=axes[number - column : number + 1])


def across(options: argparse.Namespace) -> str:
    """Name the axis of updates, and what each point is a mean of."""
    return "updates" if options.smooth == 1 else f"updates (means of up to {options.smooth} points)"


def draw_together(ax: Axes, runs: dict[str, Rows], plot: str) -> None:
    """Draw one kind of curves of all runs: a colour for each run, a dash for each curve."""
    first, *others = PLOTS[plot]
    styles = line_styles(runs)
    for run, rows in runs.items():
        mean_curve(ax, rows, "updates", first, with_seeds(run, rows), styles[run] | {"linestyle": DASHES[0]})
        for name in others:
            mean_curve(ax, rows, "updates", name, None, THIN | {"color": styles[run]["color"]}, band=False)
    if others:  # the dashes explained once, in no run's colour
        ax.plot([], [], color="0.3", label=NAMES[first])
        ax.plot([], [], **THIN, color="0.3", label=NAMES[others[0]])
    for number, update in enumerate(sorted({at for rows in runs.values() for at in releases(rows[0]["freeze_until"])})):
        ax.axvline(update, **RELEASE, label=None if number else "release")
    describe(ax, x="updates", y=AXES[plot])
    set_scale(ax, plot)
    legend(ax, beside=len(runs) > 4)


def draw_run(ax: Axes, rows: Rows, plot: str) -> None:
    """Draw the curves of one run, and when its matrices were released."""
    styles = line_styles(PLOTS[plot]) | {"acc_end": THIN | {"color": "0.3", "zorder": 1.9}}
    for name in PLOTS[plot]:
        if any(row[name] is not None for row in rows):
            label = NAMES[name].format(cutoff=rows[0]["cutoff"])
            mean_curve(ax, rows, "updates", name, label, styles[name], band=name != "acc_end")
    for update in releases(rows[0]["freeze_until"]):
        ax.axvline(update, **RELEASE)


def name_releases(ax: Axes, rows: Rows) -> None:
    """Say above the axes what was released when."""
    above: dict[str, Any] = {"textcoords": "offset points", "xycoords": ("data", "axes fraction"), "ha": "center"}
    for update, names in releases(rows[0]["freeze_until"]).items():
        text = f"{', '.join(map(symbol, names))} released"
        ax.annotate(text, (update, 1), (0, 4), **above, color="0.3", fontsize="small")


def set_scale(ax: Axes, plot: str) -> None:
    """Fix the scale of shares; losses and divergences begin at 0."""
    if plot in ("losses", "feed_forward"):
        ax.set_ylim(bottom=0)
    else:
        ax.set_ylim(-0.02, 1.02)


def symbol(name: str) -> str:
    """Return the paper's symbol of a parameter, or its own name."""
    match = re.fullmatch(r"layers\.(\d+)\.w([qkvo])\.weight", name)
    return f"$W_{match[2].upper()}^{int(match[1]) + 1}$" if match else name


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a run and seed: where it first got how far, and its last values."""
    lines = []
    rows = until(rows, options)
    for run, source in dict.fromkeys((row["run"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["source"]) == (run, source)]
        crossings = {f"{name} ≥ {level}": first_crossing(mine, column, level) for name, column, level in CROSSINGS}
        ends = {f"last {column}": mine[-1][column] for column in ("acc_end_test", *PLOTS["recall"])}
        lines.append({"run": run, "log": source} | crossings | ends | {"updates": mine[-1]["updates"]})
    return lines


def plots(text: str) -> list[str]:
    """Read the names of plots, with commas between them."""
    names = text.split(",")
    if unknown := [name for name in names if name not in PLOTS]:
        raise argparse.ArgumentTypeError(f"no plot {', '.join(map(repr, unknown))}; there are {','.join(PLOTS)}")
    return list(dict.fromkeys(names))


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/birth_curves", inputs="run")
    add = parser.add_argument
    add("--plot", type=plots, default="accuracy,recall", metavar="NAME[,NAME]", help="default: %(default)s")
    add("--smooth", type=at_least(1), default=1, metavar="N", help="draw means over N points, odd (default: none)")
    add("--max-iter", type=at_least(0), metavar="N", help="draw up to update N only")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
