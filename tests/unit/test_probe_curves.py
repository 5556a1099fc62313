"""Curves of probes: what is read of a log and of a run's command, means over points, and the drawings' numbers."""

import csv
import importlib
import json
import runpy
from types import SimpleNamespace

import matplotlib.figure
import pytest
import torch

from fairseq_transnorm.measure.probe_curves import (
    PLOTS,
    check_distinct_logs,
    check_values,
    first_crossing,
    freezing_of,
    probe_rows,
    releases,
    shared_points,
    smoothed,
)
from fairseq_transnorm.plotting import mean_curve
from tests.helpers import ROOT

SCRIPT = "analysis/birth/curves.py"
NAMES = [*(name for names in PLOTS.values() for name in names if name != "wk0_cut_acc"), "wk0_16_acc"]


def write_log(folder, values, *, split=None, name="probes.jsonl", **fixed):
    """A log with a line every 10 updates, whose probes all have the next of ``values``, but for those of ``fixed``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"iter": 10 * n, "epoch": 1} | dict.fromkeys(NAMES, value) | fixed | ({"split": split} if split else {})
        for n, value in enumerate(values)
    ]
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def test_rows_are_the_lines_of_training(tmp_path):
    run = write_log(tmp_path / "a", [0.1, 0.2], ff1_loss=None, wk0_16_acc=0.7)
    write_log(run, [0.5, 0.5], split="valid")
    rows = probe_rows("label", run)
    assert [(row["run"], row["source"], row["updates"], row["acc_end"]) for row in rows] == [
        ("label", str(run), 0, 0.1),
        ("label", str(run), 10, 0.2),
    ]
    assert {(row["wk0_cut_acc"], row["cutoff"], row["ff1_loss"]) for row in rows} == {(0.7, 16, None)}
    assert rows[0].keys() >= {name for names in PLOTS.values() for name in names}
    assert [row | {"source": ""} for row in probe_rows("label", run / "probes.jsonl")] == [
        row | {"source": ""} for row in rows
    ]


def test_logs_that_cannot_be_drawn(tmp_path):
    write_log(tmp_path / "valid", [0.5], split="valid")
    with pytest.raises(ValueError, match="lines of validations only; train with --log-probes"):
        probe_rows("x", tmp_path / "valid")
    with pytest.raises(FileNotFoundError, match=r"probes\.jsonl; .*--log-probes"):
        probe_rows("x", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere"):
        probe_rows("x", tmp_path / "nowhere")


def test_what_was_frozen_is_read_from_the_checkpoint_or_the_command(tmp_path):
    assert freezing_of(tmp_path) is None
    log = "# date\nfairseq-train --freeze-until 5:a \n# date\nfairseq-train --arch x --freeze-until=20:a,30:b --lr 1\n"
    (tmp_path / "command.log").write_text(log)
    assert freezing_of(tmp_path / "probes.jsonl") == freezing_of(tmp_path) == "20:a,30:b"
    (tmp_path / "command.log").write_text(log + "# date\nfairseq-train --arch x\n")
    assert freezing_of(tmp_path) is None, "the last start counts"
    state = {"model": {"a": torch.ones(1)}, "cfg": {"model": {"freeze_until": "7:a"}}}
    torch.save(state, tmp_path / "checkpoint_1_10.pt")
    assert freezing_of(tmp_path) == "7:a"
    assert releases("20:a,30:b, 20:c") == {20: ["a", "c"], 30: ["b"]}
    assert releases(None) == {}


def test_means_over_points_of_one_seed():
    rows = [
        {"run": "r", "source": source, "updates": n, "freeze_until": None}
        | dict.fromkeys(sum(PLOTS.values(), ()), value)
        for source, values in {"a": [0.0, 3.0, None, 6.0], "b": [9.0]}.items()
        for n, value in enumerate(values)
    ]

    def means(window):
        return [row["acc_end"] for row in smoothed(rows, window)]

    assert means(1) == [0, 3, None, 6, 9]
    assert means(3) == [0, 1.5, None, 6, 9], "the point is in the middle; ends have fewer"
    with pytest.raises(ValueError, match="means over 4 points have none in their middle; smooth over 5"):
        means(4)


def test_no_mean_is_of_both_sides_of_a_release():
    """The matrix that is released at 4 is as it was after 4 updates."""
    rows = [
        {"run": "r", "source": "a", "updates": n, "freeze_until": "4:x"}
        | dict.fromkeys(sum(PLOTS.values(), ()), 0.0 if n <= 4 else float(2**n))
        for n in range(9)
    ]
    assert [row["wo1_acc"] for row in smoothed(rows, 5)] == [0, 0, 0, 0, 0, 32, (32 + 64 + 128) / 3, 448 / 3, 256]


def test_first_crossing():
    rows = [{"updates": n, "x": value} for n, value in ((0, None), (5, 0.4), (10, 0.5), (15, 0.1))]
    assert first_crossing(rows, "x", 0.5) == 10
    assert first_crossing(rows, "x", 0.6) is None


def test_a_run_without_values_is_named(tmp_path):
    some = write_log(tmp_path / "some", [0.1], ff1_loss=None)
    rows = probe_rows("full", write_log(tmp_path / "full", [0.1])) + probe_rows("some", some)
    check_values(rows, ["recall", "losses"])
    with pytest.raises(ValueError, match=r"run 'some' has no value of ff1_loss to plot: .*--final-ffn"):
        check_values(rows, ["recall", "feed_forward"])


def test_one_log_is_no_two_seeds(tmp_path):
    run, other = write_log(tmp_path / "a", [0.1]), write_log(tmp_path / "b", [0.1])
    check_distinct_logs([run, other])
    (tmp_path / "link").symlink_to(run)
    for again in (run, run / "probes.jsonl", tmp_path / "link"):
        with pytest.raises(ValueError, match=r"are of the same log .* give it once"):
            check_distinct_logs([run, other, again])


def test_only_updates_of_all_seeds_are_drawn(tmp_path, caplog):
    long, short = write_log(tmp_path / "long", [0.1, 0.2, 0.3]), write_log(tmp_path / "short", [0.1, 0.2])
    rows = probe_rows("x", long) + probe_rows("x", short) + probe_rows("y", long)
    assert [row["updates"] for row in shared_points(rows)] == [0, 10, 0, 10, 0, 10, 20]
    assert caplog.messages == ["x: 1 updates that not all of its seeds have logged are not drawn"]
    shifted = [row | {"updates": row["updates"] + 7, "source": "c"} for row in rows[:3]]
    with pytest.raises(ValueError, match="seeds of 'x' have no update in common"):
        shared_points(rows + shifted)
    with pytest.raises(ValueError, match="have no update in common at which all have acc_end"):
        mean_curve(matplotlib.figure.Figure().subplots(), rows[:3] + shifted, "updates", "acc_end", None, {})


def test_runs_that_one_figure_cannot_show(tmp_path):
    rows = [row for name in "ab" for row in probe_rows("x", write_log(tmp_path / name, [0.1]))]
    rows[0]["freeze_until"], rows[1]["freeze_until"] = "5:p,7:q", "7:q, 5:p"
    check_values(rows, ["recall"])
    rows[1]["freeze_until"] = "5:p"
    with pytest.raises(ValueError, match="seeds of 'x' differ in --freeze-until"):
        check_values(rows, ["losses"])
    cut = [row | {"run": "y", "source": "y", "freeze_until": None, "cutoff": 8} for row in rows[:1]]
    check_values(rows[:1] + cut, ["losses"])
    with pytest.raises(ValueError, match="runs differ in --probe-position-cutoff"):
        check_values(rows[:1] + cut, ["recall"])


def test_values_that_are_not_finite_are_named(tmp_path, caplog):
    rows = probe_rows("x", write_log(tmp_path, [0.1, float("nan"), float("inf")], **dict.fromkeys(NAMES[2:], 0.5)))
    assert [row["acc_end"] for row in rows] == [0.1, None, None]
    (message,) = caplog.messages
    assert f"{tmp_path}: acc_end_test after 10 updates is nan; 4 such values are not drawn" in message


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, caplog):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"cut")
    (tmp_path / "command.log").write_text("fairseq-train --freeze-until 5:a\n")
    assert freezing_of(tmp_path) == "5:a"
    assert "checkpoint_last.pt" in caplog.text


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / SCRIPT))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one run, and one with a matrix that is released at 20."""
    folders = [write_log(tmp_path / name, values) for name, values in (("a", [0, 0.6, 0.9]), ("b", [0.2, 0.8, 1]))]
    late = write_log(tmp_path / "late", [0.1, 0.1, 0.4])
    (late / "command.log").write_text("fairseq-train --freeze-until 20:layers.1.wo.weight,20:odd\n")
    return [*(f"basic={folder}" for folder in folders), f"late={late}"]


@pytest.mark.parametrize("plots", [["accuracy"], ["accuracy", "recall", "feed_forward"]])
def test_figures_and_their_numbers(script, runs, tmp_path, capsys, plots):
    out = tmp_path / "out" / "x"
    assert (
        script["main"]([*runs, "--plot", ",".join(plots), "--out", str(out), "--smooth", "3", "--max-iter", "10"]) == 0
    )
    assert {path.name for path in out.parent.iterdir()} == {"x.pdf", "x.png", "x.json", "x.csv"}
    rows = list(csv.DictReader((out.parent / "x.csv").open()))
    assert [(row["run"], row["updates"]) for row in rows] == [
        (r, n) for r in ("basic", "basic", "late") for n in ("0", "10")
    ]
    drawn = [name for plot in plots for name in PLOTS[plot]]
    assert list(rows[0]) == ["run", "source", "updates", *drawn]
    assert [float(row[drawn[0]]) for row in rows] == pytest.approx([0.0, 0.5, 0.2, 2 / 3, 0.1, 0.2])
    assert "late" in capsys.readouterr().out
    again = tmp_path / "again"
    flags = ["--plot", ",".join(plots), "--smooth", "3", "--max-iter", "10", "--out", str(again)]
    assert script["main"](["--table", f"{out}.json", *flags]) == 0
    for suffix in ("png", "pdf", "csv"):
        assert again.with_suffix(f".{suffix}").read_bytes() == out.with_suffix(f".{suffix}").read_bytes()


def test_what_is_in_a_panel(script, runs):
    rows = [row for run in runs for row in probe_rows(*run.split("="))]
    ax, together = matplotlib.figure.Figure().subplots(1, 2)
    script["draw_run"](ax, [row for row in rows if row["run"] == "late"], "recall")
    script["name_releases"](ax, [row for row in rows if row["run"] == "late"])
    lines = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert lines["$W_O^2$"] == lines["$W_K^1$, $t < 16$"] == [0, 10, 20]
    assert [20, 20] in lines.values(), "the release"
    assert [text.get_text() for text in ax.texts] == ["$W_O^2$, odd released"]
    by_run = {name: [row for row in rows if row["run"] == name] for name in ("basic", "late")}
    script["draw_together"](together, by_run, "accuracy")
    assert [text.get_text() for text in together.get_legend().get_texts()] == [
        "basic (mean and range, n=2)",
        "late",
        "evaluation",
        "training batch",
        "release",
    ]
    assert len(together.collections) == 1, "a band for what is drawn thickly, of the run with two seeds"
    mean = next(line for line in together.lines if line.get_label().startswith("basic"))
    assert list(mean.get_ydata()) == pytest.approx([0.1, 0.7, 0.95])


def capture(monkeypatch):
    """The figures that would be written."""
    figures = []
    module = importlib.import_module("fairseq_transnorm.plotting.figure")  # the function of that name hides it
    monkeypatch.setattr(module, "_write", lambda fig, stem, table: figures.append(fig))
    return figures


def test_the_legend_of_a_row_is_of_all_its_panels(script, tmp_path, monkeypatch):
    runs = [write_log(tmp_path / "a", [0, 1]), write_log(tmp_path / "b", [0, 1], wk0_acc=None, wk0_16_acc=None)]
    figures = capture(monkeypatch)
    flags = ["--smooth", "3", "--plot", "recall", "--out", str(tmp_path / "x")]
    assert script["main"]([*flags, *map(str, runs)]) == 0, "paths may follow the plot"
    texts = [text.get_text() for text in figures[0].axes[1].get_legend().get_texts()]
    assert texts == ["$W_O^2$", "$W_K^2$", "$W_K^1$", "$W_K^1$, $t < 16$"]
    assert {ax.get_xlabel() for ax in figures[0].axes} == {"updates (means of up to 3 points)"}


def test_the_table_ends_where_the_figure_does(script, runs):
    rows = [row for run in runs for row in probe_rows(*run.split("="))]
    lines = script["summary"](rows, SimpleNamespace(max_iter=10))
    assert [(line["updates"], line["last wo1_acc"]) for line in lines] == [(10, 0.6), (10, 0.8), (10, 0.1)]


def test_the_legend_of_one_ablation_is_on_the_page(tmp_path, monkeypatch):
    ablation = runpy.run_path(str(ROOT / "analysis/birth/ablation.py"))
    figures = capture(monkeypatch)
    rows = [{"model": "m", "cut": cut, "accuracy": 0.5} for cut in (ablation["NOTHING"], *ablation["CUTS"])]
    ablation["draw"](rows, str(tmp_path / "x"), SimpleNamespace(seed=0))
    (ax,) = figures[0].axes
    figures[0].draw_without_rendering()
    for part in (ax.get_legend(), ax.yaxis.label):
        box = part.get_window_extent()
        assert figures[0].bbox.x0 <= box.x0 < box.x1 <= figures[0].bbox.x1
    assert ax.get_window_extent().width > 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{0}/probes.jsonl", "{0}/other/a"], "both called 'a'"),
        (["{0}", "--max-iter", "-1"], "-1 is not at least 0"),
        (["{0}", "--smooth", "0"], "0 is not at least 1"),
        (["{0}/nowhere"], "--log-probes"),
        (["x={0}", "x={0}"], "are of the same log"),
        (["{0}", "--smooth", "2"], "smooth over 3"),
        (["{0}", "--plot", "accuracy,recal"], "no plot 'recal'; there are accuracy,recall"),
        (["{0}", "--seed", "-1"], "--seed: -1 is not at least 0"),
        (["late={1}", "--max-iter", "5"], "--max-iter 5 leaves no point"),
    ],
)
def test_what_cannot_be_drawn(script, runs, tmp_path, capsys, flags, message):
    write_log(tmp_path / "a/other/a", [0.1])
    begins = write_log(tmp_path / "begins", [0.1])
    (begins / "probes.jsonl").write_text((begins / "probes.jsonl").read_text().replace('"iter": 0', '"iter": 10'))
    arguments = [flag.format(tmp_path / "a", begins) for flag in flags]
    try:
        status = script["main"]([*arguments, "--out", str(tmp_path / "out/x")])
    except SystemExit as error:
        status = error.code
    assert status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
