"""Curves of probes: what is read of a log and of a run's command, means over points, and the drawings' numbers."""

import csv
import json
import runpy

import matplotlib.figure
import pytest
import torch

from fairseq_transnorm.measure.probe_curves import (
    PLOTS,
    check_values,
    first_crossing,
    freezing_of,
    probe_rows,
    releases,
    smoothed,
)
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
        {"run": "r", "source": source, "updates": n} | dict.fromkeys(sum(PLOTS.values(), ()), value)
        for source, values in {"a": [0.0, 3.0, None, 6.0], "b": [9.0]}.items()
        for n, value in enumerate(values)
    ]

    def means(window):
        return [row["acc_end"] for row in smoothed(rows, window)]

    assert means(1) == [0, 3, None, 6, 9]
    assert means(3) == [1.5, 1.5, None, 6, 9], "the point is in the middle; ends have fewer"
    assert means(2) == [1.5, 3, None, 6, 9]


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
    assert script["main"]([*runs, "--plot", *plots, "--out", str(out), "--smooth", "3", "--max-iter", "10"]) == 0
    assert {path.name for path in out.parent.iterdir()} == {"x.pdf", "x.png", "x.json", "x.csv"}
    rows = list(csv.DictReader((out.parent / "x.csv").open()))
    assert [(row["run"], row["updates"]) for row in rows] == [
        (r, n) for r in ("basic", "basic", "late") for n in ("0", "10")
    ]
    drawn = [name for plot in plots for name in PLOTS[plot]]
    assert list(rows[0]) == ["run", "source", "updates", *drawn]
    assert [float(row[drawn[0]]) for row in rows] == pytest.approx([0.3, 0.5, 0.5, 2 / 3, 0.1, 0.2])
    assert "late" in capsys.readouterr().out
    again = tmp_path / "again"
    flags = ["--plot", *plots, "--smooth", "3", "--max-iter", "10", "--out", str(again)]
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{0}/probes.jsonl", "{0}/other/a"], "both called 'a'"),
        (["{0}", "--max-iter", "-1"], "-1 is not at least 0"),
        (["{0}", "--smooth", "0"], "0 is not at least 1"),
        (["{0}/nowhere"], "--log-probes"),
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
