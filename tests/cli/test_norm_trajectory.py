"""Trajectories of real runs as a user draws them, the identities of their steps, and regressions on them."""

import csv
import json
import math
import runpy
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from fairseq_transnorm import plotting
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.parameters import layer_of
from fairseq_transnorm.measure.scalars import scalar_rows
from tests.helpers import ROOT, run_cli

TRAJECTORY = "analysis/normgrowth/trajectory.py"
PLANE = "analysis/normgrowth/growth_plane.py"
EVALUATE = "analysis/normgrowth/evaluate.py"
SCALARS = "analysis/scalars.py"
REGRESSION = "analysis/normgrowth/regression.py"
STEP = ("step_norm", "product", "direction_cosine", "alignment")


def table(path):
    return json.loads(path.read_text())["rows"]


def call(script, *args):
    """Call an analysis file in this process; return its status."""
    return runpy.run_path(str(ROOT / script))["main"]([str(arg) for arg in args])


def names(folder):
    return {path.name for path in folder.iterdir()}


def point(run, scope, updates, norm):
    place = {"run": run, "scope": scope, "stack": None, "layer": None, "updates": updates, "norm": norm}
    return dict.fromkeys(("smallest_rms", "linear_column_norm", "parameters", "checkpoint", *STEP)) | place


def axes_of(monkeypatch, script, rows, tmp_path, *args):
    """Return what an analysis file draws: axes of each panel."""
    seen = []

    @contextmanager
    def spy(*given, **options):
        with plotting.panels(*given, **options) as axes:
            seen.extend(axes)
            yield axes

    plotting.save_table(tmp_path / "in.json", rows)
    module = runpy.run_path(str(ROOT / script))
    monkeypatch.setitem(module["main"].__globals__, "panels", spy)
    assert module["main"](["--table", str(tmp_path / "in.json"), "--out", str(tmp_path / "out"), *args]) == 0
    return seen


def test_scopes_of_a_run_share_its_colour(monkeypatch, tmp_path):
    keys = [(run, scope) for run in ("control", "pre_norm", "x") for scope in ("layers", "all")]
    rows = [point(*key, updates, 2.0 + updates) for key in keys for updates in (0, 5)]
    first, *_ = axes_of(monkeypatch, TRAJECTORY, rows, tmp_path)
    lines = {line.get_label(): line for line in first.lines}
    for run in ("control", "pre_norm", "x"):
        a, b = (lines[f"{run}, {scope}"] for scope in ("layers", "all"))
        assert (a.get_color(), a.get_marker()) == (b.get_color(), b.get_marker()), run
        assert (a.get_linestyle(), b.get_linestyle()) == ("-", "--"), run
    assert len({line.get_color() for line in first.lines}) == 3
    assert first.get_ylabel() == "parameter 2-norm / that of the first"
    axes = axes_of(monkeypatch, TRAJECTORY, [row for row in rows if row["scope"] == "all"], tmp_path)
    assert axes[0].get_ylabel() == "parameter 2-norm, all"
    assert axes[3].get_ylabel() == "step size, 2-norm, all"


def test_scalars_tell_their_scope(monkeypatch, tmp_path):
    log = log_of_norms(tmp_path / "a", 1.0)
    rows = scalar_rows("a", log, ["norm", "lr"])
    norm, lr = axes_of(monkeypatch, SCALARS, rows, tmp_path)
    assert (norm.get_ylabel(), lr.get_ylabel()) == ("parameter 2-norm, layers", "learning rate")


@pytest.fixture(scope="session")
def trajectories(once, trained_runs):
    """Folder of the trajectories of all runs, a damaged folder and one of Hugging Face's among them."""

    def build(folder):
        (folder / "cut").mkdir()
        for path in trained_runs["transnormer_lm_tiny"].glob("*.pt"):
            (folder / "cut" / path.name).symlink_to(path)
        whole = (folder / "cut/checkpoint_last.pt").read_bytes()
        (folder / "cut/checkpoint_5_40.pt").write_bytes(whole[: len(whole) // 3])
        for step in (100, 20):
            (folder / f"bert/step{step}").mkdir(parents=True)
            save_file(
                {"encoder.layer.0.w": torch.full((2, 2), step / 10)}, folder / f"bert/step{step}/model.safetensors"
            )
        runs = trained_runs | {"transnormer_lm_tiny": folder / "cut", "bert": folder / "bert"}
        args = [f"{name}={path}" for name, path in runs.items()]
        done = run_cli(
            TRAJECTORY, *args, "--scope", "layers", "--scope", "all", "--out", folder / "out/trajectory", check=False
        )
        (folder / "printed.txt").write_text(done.stdout)
        assert done.returncode == 3, done.stdout

    return once("trajectories", build)


def test_a_trajectory_is_a_figure_and_a_table(trajectories, tmp_path):
    printed = (trajectories / "printed.txt").read_text()
    assert "left out 1 checkpoint:\n" in printed
    assert f"{trajectories}/cut/checkpoint_5_40.pt" in printed.splitlines()[-1]
    assert "is truncated" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert "cannot be built" not in printed, "parameters are those of the models"
    stem = trajectories / "out/trajectory"
    assert names(stem.parent) == {f"trajectory.{suffix}" for suffix in ("pdf", "png", "json", "csv")}
    rows = table(stem.with_suffix(".json"))
    with stem.with_suffix(".csv").open() as file:
        for row, line in zip(rows, csv.DictReader(file), strict=True):
            assert line == {name: "" if value is None else str(value) for name, value in row.items()}
    assert call(TRAJECTORY, "--table", stem.with_suffix(".json"), "--out", tmp_path / "trajectory") == 0
    for path in stem.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), "drawn again"


@pytest.mark.parametrize("run", ["transformer_lm", "transnormer_lm_tiny", "transnormer_mlm_tiny"])
def test_rows_are_those_of_the_models(trajectories, trained_runs, run):
    """Of each checkpoint all parameters as one vector, from the model that fairseq builds of it."""
    rows = [r for r in table(trajectories / "out/trajectory.json") if r["run"] == run]
    whole = {r["updates"]: r for r in rows if r["scope"] == "all" and r["layer"] is None}
    assert len(whole) >= 4
    assert list(whole) == sorted(whole)
    first, second = list(whole)[-2:]
    a, b = ({} for _ in range(2))
    for vector, updates in ((a, first), (b, second)):
        loaded = load_run(trained_runs[run] / whole[updates]["checkpoint"])
        assert loaded.updates == updates
        for name, parameter in loaded.model.named_parameters():
            if parameter.requires_grad:  # the first direction of LRPE is drawn once and kept
                vector[name] = parameter.detach().double().flatten()
    groups = {("all", None): list(a), ("layers", None): [name for name in a if layer_of(name)]}
    groups |= {("layers", n): [name for name in a if layer_of(name) and layer_of(name).number == n] for n in (1, 2)}
    for (scope, layer), chosen in groups.items():
        theta, after = (torch.cat([vector[name] for name in chosen]) for vector in (a, b))
        delta = after - theta
        expected = {
            "norm": after.norm(),
            "step_norm": delta.norm(),
            "product": theta @ delta,
            "direction_cosine": theta @ after / (theta.norm() * after.norm()),
            "alignment": theta @ delta / (theta.norm() * delta.norm()),
            "parameters": theta.numel(),
        }
        (row,) = (r for r in rows if (r["scope"], r["layer"], r["updates"]) == (scope, layer, second))
        assert {name: row[name] for name in expected} == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-10
        )


def test_identities_of_every_step(trajectories, trained_runs):
    """What a step is made of agrees to 1e-10 of the largest term, for whole scopes and for layers."""
    series: dict = {}
    for row in table(trajectories / "out/trajectory.json"):
        series.setdefault((row["run"], row["scope"], row["stack"], row["layer"]), []).append(row)
    assert len(series) == len(trained_runs) * 2 * 3 + 2 * 2
    steps = 0
    for mine in series.values():
        assert [mine[0][name] for name in STEP] == [None] * 4
        for before, row in pairwise(mine):
            rho, after = before["norm"], row["norm"]
            delta, product, kappa, alpha = (row[name] for name in STEP)
            squared = max(rho, after) ** 2
            assert delta**2 == pytest.approx(after**2 + rho**2 - 2 * after * rho * kappa, abs=1e-10 * squared)
            assert alpha * delta == pytest.approx(after * kappa - rho, abs=1e-10 * after)
            assert alpha == pytest.approx(product / (rho * delta), rel=1e-10)
            assert after**2 - rho**2 == pytest.approx(2 * product + delta**2, abs=1e-10 * squared)
            assert after**2 - rho**2 == pytest.approx(2 * (product + delta**2) - delta**2, abs=1e-10 * squared)
            assert (after > rho) is (product > -(delta**2) / 2)
            steps += 1
    assert steps > 60


def test_layers_make_up_their_scope(trajectories):
    squares: dict = {}
    for row in table(trajectories / "out/trajectory.json"):
        if row["scope"] == "layers":
            sums = squares.setdefault((row["run"], row["updates"]), [0.0, 0.0])
            sums[row["layer"] is not None] += row["norm"] ** 2
    assert all(whole == pytest.approx(parts, rel=1e-12) for whole, parts in squares.values())


def test_a_regression_on_trajectories(trajectories, tmp_path):
    content = json.loads((trajectories / "out/trajectory.json").read_text())
    rows = [r for r in content["rows"] if r["run"].startswith("transnormer") and r["scope"] == "layers"]
    (tmp_path / "two.json").write_text(json.dumps(content | {"rows": rows}))
    stem = tmp_path / "out" / "fit"
    printed = run_cli(REGRESSION, tmp_path / "two.json", "--t5", "--out", stem).stdout
    figures = ("norm_by_layer", "direction", "direction_by_layer", "steps", "squared_norm")
    kinds = ("pdf", "png", "json")
    assert names(stem.parent) == {"fit", *(f"fit.{kind}" for kind in kinds)}
    written = {f"{figure}.{kind}" for figure in figures for kind in kinds} | {"fits.json", "fits.csv"}
    assert names(stem) == written
    fits = table(stem / "fits.json")
    assert len(fits) == 6 * (2 * 3 + 2), "laws; runs, the scope and two layers; T5 and its encoder"
    mine = {f["law"]: f for f in fits if (f["run"], f["scope"], f["layer"]) == ("transnormer_lm_tiny", "layers", None)}
    assert mine["rho^2"]["slope"] > 0, "it grew"
    assert all(0 < f["r_squared"] <= 1 for f in fits if f["law"] == "sqrt t")
    assert "T5-base" in printed
    assert "0.9978" in printed
    first = {path: path.read_bytes() for path in stem.parent.rglob("*") if path.is_file()}
    assert call(REGRESSION, "--table", stem.with_suffix(".json"), "--out", stem) == 0
    assert {path: path.read_bytes() for path in first} == first, "drawn again, the same bytes"


def test_what_is_wrong_is_told(trained_runs, tmp_path, capsys):
    runs = list(trained_runs.values())
    out = ("--out", tmp_path / "out")
    assert call(TRAJECTORY, f"a={runs[0]}", f"a={runs[1]}", *out) == 1
    error = capsys.readouterr().err
    assert "are checkpoints of different models" in error
    assert all(str(run) in error for run in runs[:2])
    assert call(TRAJECTORY, tmp_path, *out) == 1
    assert "no checkpoint*.pt" in capsys.readouterr().err
    (tmp_path / "two.csv").write_text("step,norm\n0,1\n1,2\n")
    assert call(REGRESSION, tmp_path / "two.csv", *out) == 1
    assert "two, parameters: 2 checkpoints with different numbers of updates" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
    for args in ([], ["--t5", "--table", tmp_path / "x.json"]):
        with pytest.raises(SystemExit, match="2"):
            call(REGRESSION, *args)
    for script in (TRAJECTORY, REGRESSION):
        with pytest.raises(SystemExit, match="0"):
            call(script, "--help")
        assert f"python {script}" in capsys.readouterr().out


def test_constant_norms_and_a_csv(tmp_path, capsys):
    (tmp_path / "still.csv").write_text("step,norm\n" + "".join(f"{t},0.5\n" for t in (0, 10, 20, 30)))
    assert call(REGRESSION, f"b={tmp_path / 'still.csv'}", "--out", tmp_path / "out") == 0
    fits = {f["law"]: f for f in table(tmp_path / "out/fits.json")}
    assert {f["r_squared"] for f in fits.values()} == {None}
    assert fits["sqrt t"]["intercept"] == pytest.approx(0.5)
    assert all(math.isfinite(f["slope"]) for f in fits.values())
    assert names(tmp_path / "out") == {
        "fits.json",
        "fits.csv",
        "squared_norm.pdf",
        "squared_norm.png",
        "squared_norm.json",
    }
    assert "nan" not in capsys.readouterr().out


def log_of_norms(folder, scale):
    folder.mkdir(parents=True)
    records = [{"updates": t, "epoch": 1, "scope": "layers", "norm": scale + t} for t in range(4)]
    for record in records[1:]:
        record |= {"norm_before": record["norm"] - 1, "step_norm": 1.0, "product": 1.0, "alignment": 0.5, "lr": 0.1}
    (folder / "norms.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "norms.jsonl"


def test_files_of_two_runs_are_two_runs(tmp_path, capsys):
    logs = [log_of_norms(tmp_path / name, scale) for name, scale in (("control", 1.0), ("pre_norm", 20.0))]
    out = tmp_path / "out"
    assert call(REGRESSION, *logs, "--out", out / "fit") == 0
    assert {fit["run"] for fit in table(out / "fit/fits.json")} == {"control", "pre_norm"}
    assert call(PLANE, *logs, "--window", 1, "--out", out / "plane") == 0
    assert {row["run"] for row in table(out / "plane.json")} == {"control", "pre_norm"}
    assert call(SCALARS, *logs, "--scalars", "norm", "--out", out / "norm") == 0
    assert {row["run"] for row in table(out / "norm.json")} == {"control", "pre_norm"}
    capsys.readouterr()
    assert call(REGRESSION, *(f"a={log}" for log in logs), "--out", out / "none") == 1
    assert "a, layers has two norms after 0 updates, 1 and 20; give each run once" in capsys.readouterr().err
    assert not (out / "none.json").exists()


@pytest.mark.parametrize("script", ["TRAJECTORY", "REGRESSION", "PLANE", "SCALARS", "EVALUATE"])
def test_runs_that_share_a_name_by_chance_are_refused(tmp_path, capsys, script):
    folders = [log_of_norms(tmp_path / name, scale).parent for name, scale in (("a/x", 1.0), ("b/x", 20.0))]
    assert call(globals()[script], *folders, "--out", tmp_path / "out") == 1
    assert f"{folders[0]} and {folders[1]} are of different folders and both called 'x'" in capsys.readouterr().err
