"""Figures: three files, the same bytes twice, all or none; tables; one look a variant."""

import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

import fairseq_transnorm
from fairseq_transnorm import plotting
from fairseq_transnorm.plotting import tables
from fairseq_transnorm.plotting.styles import OKABE_ITO

ROWS = [{"model": "t2", "updates": 100, "ppl": 12.5}, {"model": "t2", "updates": 200, "ppl": 9.25}]


def draw(stem, rows=ROWS, **options):
    with plotting.figure(stem, rows, **options) as ax:
        ax.plot([r["updates"] for r in rows], [r["ppl"] for r in rows], label="t2", **plotting.line_style("t2"))
        plotting.describe(ax, x="updates", y="perplexity", title="A title")
        plotting.legend(ax)


def contents(stem):
    return {path.name: path.read_bytes() for path in stem.parent.iterdir()}


def test_a_figure_is_three_files_and_nothing_else(tmp_path):
    stem = tmp_path / "new" / "folder" / "curve.v1"
    draw(stem, seed=3)
    written = contents(stem)
    assert set(written) == {"curve.v1.pdf", "curve.v1.png", "curve.v1.json"}
    assert written["curve.v1.pdf"].startswith(b"%PDF")
    assert written["curve.v1.png"].startswith(b"\x89PNG")
    table = json.loads(written["curve.v1.json"])
    assert table["rows"] == ROWS
    assert table["version"] == fairseq_transnorm.__version__
    assert table["seed"] == 3
    assert set(table) == {"command", "version", "seed", "rows"}


def test_a_second_run_writes_the_same_bytes(tmp_path):
    stem = tmp_path / "a"
    draw(stem)
    first = contents(stem)
    draw(stem)
    assert contents(stem) == first
    assert b"CreationDate" not in first["a.pdf"]


def test_other_rows_give_other_bytes(tmp_path):
    draw(tmp_path / "a")
    draw(tmp_path / "b", [{**ROWS[0], "ppl": 11.0}, ROWS[1]])
    for kind in ("pdf", "png", "json"):
        assert (tmp_path / f"a.{kind}").read_bytes() != (tmp_path / f"b.{kind}").read_bytes()


def test_settings_of_the_reader_change_nothing(tmp_path):
    draw(tmp_path / "a")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "savefig.dpi": 10, "axes.facecolor": "red"}):
        draw(tmp_path / "b")
        assert matplotlib.rcParams["lines.linewidth"] == 9, "and the reader gets the own settings back"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failing_drawing_leaves_the_old_files(tmp_path):
    draw(tmp_path / "a")
    before = contents(tmp_path / "a")
    with pytest.raises(ZeroDivisionError), plotting.figure(tmp_path / "a", ROWS):
        1 / 0  # noqa: B018
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("bad", [np.float64(1.0), np.int64(3), [1, 2], {"a": 1}])
def test_a_value_that_is_not_plain_python_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(TypeError, match=r"row 2: 'ppl' is .*convert it with float"):
        draw(tmp_path / "a", [ROWS[0], {**ROWS[1], "ppl": bad}])
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_become_null(tmp_path):
    rows = [{"x": 1, "y": float("nan")}, {"x": 2, "y": float("inf")}, {"x": 3, "y": 1.5}]
    with plotting.figure(tmp_path / "a", rows) as ax:
        ax.plot([r["x"] for r in rows], [r["y"] for r in rows])
    assert [r["y"] for r in plotting.load_table(tmp_path / "a.json")] == [None, None, 1.5]


def test_a_stem_may_come_with_one_of_the_extensions(tmp_path):
    draw(tmp_path / "a.png")
    assert set(contents(tmp_path / "a")) == {"a.pdf", "a.png", "a.json"}


def test_redrawing_a_table_keeps_where_its_numbers_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure.py", "--seed", "7", "a b"])
    draw(tmp_path / "a", seed=7)
    monkeypatch.setattr(sys, "argv", ["other.py"])
    draw(tmp_path / "b", plotting.load_table(tmp_path / "a.json"), seed=0)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert plotting.load_table(tmp_path / "b.json").command == "python measure.py --seed 7 'a b'"


def test_panels_that_are_not_used_are_left_out(tmp_path):
    with plotting.panels(tmp_path / "a", ROWS, nrows=2, ncols=2, count=3) as axes:
        assert len(axes) == 3
        assert len(axes[0].figure.axes) == 3


def test_missing_and_broken_tables_are_explained(tmp_path):
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no table .*gone\.json.*there\.json"):
        plotting.load_table(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="is not a table of this package"):
        plotting.load_table(tmp_path / "there.json")
    (tmp_path / "cut.json").write_text('{"command": "x", "ro')
    with pytest.raises(ValueError, match="is not a table of this package"):
        plotting.load_table(tmp_path / "cut.json")
    plotting.save_table(tmp_path / "empty.json", [])
    with pytest.raises(ValueError, match="has no rows"):
        plotting.load_table(tmp_path / "empty.json")
    plotting.save_table(tmp_path / "ok.json", ROWS)
    assert plotting.load_table(tmp_path / "ok.json", ["ppl"]) == ROWS
    with pytest.raises(ValueError, match=r"row 1 lacks \['loss'\]"):
        plotting.load_table(tmp_path / "ok.json", ["ppl", "loss"])


def test_text_tables_are_aligned():
    rows = [{"run": "t2", "ppl": 9.25, "n": 3}, {"run": "vanilla", "ppl": None, "n": 12}]
    assert plotting.format_table(rows).splitlines() == [
        "run       ppl   n",
        "-------  ----  --",
        "t2       9.25   3",
        "vanilla     -  12",
    ]


def test_a_markdown_table():
    rows = [{"model": "t2", "tokens": 12345, "ppl": 1234.567}, {"model": "t1", "tokens": None, "ppl": 3.0}]
    assert plotting.format_markdown(rows, ["model"]).splitlines() == [
        "| model | tokens | ppl |",
        "| --- | ---: | ---: |",
        "| t2 | 12,345 | 1,234.57 |",
        "| t1 | - | 3.00 |",
    ]


def test_the_command_names_the_script_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "analysis" / "x.py"), "--out", "a"])
    assert tables.current_command() == "python analysis/x.py --out a"


def test_colours_are_okabe_and_itos():
    if "okabe_ito" not in matplotlib.color_sequences:
        pytest.skip("this matplotlib has no okabe_ito sequence to compare with")
    assert [*OKABE_ITO.values()] == [matplotlib.colors.to_hex(c) for c in matplotlib.color_sequences["okabe_ito"]]


def test_a_variant_looks_the_same_in_every_figure():
    alone = plotting.line_style("transformer_lm")
    among = plotting.line_styles(["my model", "1+elu", "transformer_lm", "another"])
    assert among["transformer_lm"] == alone
    assert plotting.line_style("vanilla") == alone, "two names of one thing"
    assert plotting.line_style(" T2 ") == plotting.line_style("transnormer_t2")
    assert list(among) == ["my model", "1+elu", "transformer_lm", "another"], "legend order is the caller's"


def test_unknown_names_are_stable_and_differ_within_a_figure():
    names = [f"run {i}" for i in range(7)]
    styles = plotting.line_styles(names)
    assert len({s["color"] for s in styles.values()}) == 7
    assert plotting.line_styles(reversed(names)) == styles, "whatever the order"


def test_many_runs_can_be_told_apart():
    names = ["control", "pre_norm", "control-mult", "pre_norm-mult", *(f"run {i}" for i in range(20))]
    looks = [(s["color"], s["marker"]) for s in plotting.line_styles(names).values()]
    assert len(set(looks)) == len(looks)
    colours = [colour for colour, _ in looks]
    assert max(map(colours.count, colours)) <= 4, "24 runs, 7 colours"


def test_another_process_needs_no_pyplot_and_picks_the_same_looks():
    code = "import sys; from fairseq_transnorm.plotting import line_style; print(line_style('run 3'))"
    code += "; sys.exit('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(plotting.line_style("run 3"))


def test_known_variants_can_be_told_apart_without_colour():
    for group in (["t1", "t2", "vanilla", "1+elu", "local", "performer", "cosformer"], ["chunk", "quadratic", "sdpa"]):
        looks = [(s["marker"], str(s["linestyle"])) for s in plotting.line_styles(group).values()]
        assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("log_first", [True, False])
def test_a_logarithmic_axis_says_so_once(tmp_path, log_first):
    with plotting.figure(tmp_path / "a", ROWS) as ax:
        ax.plot([1, 1000], [8, 12])
        if log_first:
            plotting.log_axis(ax, "y", plain=True)
        plotting.describe(ax, x="updates", y="perplexity")
        if not log_first:
            plotting.log_axis(ax, "y", plain=True)
        assert ax.get_ylabel() == "perplexity (log scale)"
        assert ax.get_xlabel() == "updates"


def test_a_narrow_logarithmic_axis_has_several_plain_ticks(tmp_path):
    with plotting.figure(tmp_path / "a", ROWS) as ax:
        ax.plot([1, 2], [8, 12])
        plotting.log_axis(ax, "y", plain=True)
        low, high = ax.get_ylim()
        labels = [ax.yaxis.get_major_formatter()(t) for t in ax.yaxis.get_majorticklocs() if low <= t <= high]
    assert {"8", "9", "10", "11", "12"} <= set(labels)


def test_axes_of_powers_of_two(tmp_path):
    with plotting.figure(tmp_path / "a", ROWS) as ax:
        ax.plot([512, 8192], [1, 2])
        plotting.log_axis(ax, "x", base=2, plain=True)
        low, high = ax.get_xlim()
        labels = [ax.xaxis.get_major_formatter()(t) for t in ax.xaxis.get_majorticklocs() if low <= t <= high]
    assert labels == ["512", "1,024", "2,048", "4,096", "8,192"]


@pytest.mark.parametrize(
    ("text", "label", "path"),
    [
        ("t2=runs/a/checkpoint_last.pt", "t2", "runs/a/checkpoint_last.pt"),
        ("runs/a/checkpoint_last.pt", "a", "runs/a/checkpoint_last.pt"),
        ("runs/a/train.log", "a", "runs/a/train.log"),
        ("runs/a/base.log", "base", "runs/a/base.log"),
        ("runs/a/norms.jsonl", "a", "runs/a/norms.jsonl"),
        ("runs/a", "a", "runs/a"),
        ("t2=lr=1.pt", "t2", "lr=1.pt"),
    ],
)
def test_labels_of_files(text, label, path):
    assert tuple(map(str, plotting.labelled(text))) == (label, path)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert str(plotting.labelled("lr=1").path) == "lr=1"


def test_one_label_is_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("x", "x/norms.jsonl x/train.log", "x=a/x x=b/x", "a/x b/y", "a/base.log"):
        plotting.check_runs(map(plotting.labelled, text.split()))
    (tmp_path / "x").mkdir()
    for text in ("x x/checkpoint1.pt x/../x", "x/checkpoint-5 x/checkpoint-6"):
        plotting.check_runs(map(plotting.labelled, text.split()))
    for text in ("a/x b/x", "x=a/x b/x", "b/x x=a/x", "a/x/norms.jsonl b/x/norms.jsonl", "a/base.log b/base.log"):
        with pytest.raises(ValueError, match=r"of different folders and both called '(x|base)'; write LABEL=PATH"):
            plotting.check_runs(map(plotting.labelled, text.split()))


def test_labels_of_models_differ():
    plotting.check_distinct([("a", 1), ("b", 1)], "runs")
    with pytest.raises(ValueError, match=r"two runs share a name in \['a', 'a'\]; write LABEL=FOLDER"):
        plotting.check_distinct([("a", 1), ("a", 2)], "runs", "FOLDER")


def test_names_of_files_stay_in_their_folder():
    labels = ["control", "../../esc", "a/b c", "a_b c", "..", "a\\b", "eps 1e-2.v1", ".x"]
    assert plotting.file_names([*labels, "control"]) == {
        "control": "control",
        "../../esc": "___.._esc",
        "a/b c": "a_b c",
        "a_b c": "a_b c_",
        "..": "__",
        "a\\b": "a_b",
        "eps 1e-2.v1": "eps 1e-2.v1",
        ".x": "_x",
    }
