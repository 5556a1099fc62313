"""Figures of the birth of a transformer as a user draws them from a run: curves, attention maps, memories."""

import csv
import json
import runpy
import shutil

import pytest

from fairseq_transnorm.measure.probe_log import read_probes
from tests.cli.test_birth_probes import LENGTH, UPDATES, logged  # noqa: F401  (logged is a fixture)
from tests.helpers import ROOT, run_cli

FOLDER = "analysis/birth"
SUFFIXES = ("pdf", "png", "json", "csv")


@pytest.fixture(scope="module")
def attention_maps():
    return runpy.run_path(str(ROOT / FOLDER / "attention_maps.py"))["main"]


@pytest.fixture(scope="module")
def memories():
    return runpy.run_path(str(ROOT / FOLDER / "memories.py"))["main"]


def table(stem):
    return json.loads(stem.with_suffix(".json").read_text())["rows"]


def test_curves(logged, tmp_path):  # noqa: F811
    printed = run_cli(f"{FOLDER}/curves.py", f"run={logged}", "--plot", "recall", "--out", tmp_path / "x").stdout
    assert {path.name for path in tmp_path.iterdir()} == {f"x.{suffix}" for suffix in SUFFIXES}
    rows, lines = table(tmp_path / "x"), [line for line in read_probes(logged) if "split" not in line]
    assert [row["updates"] for row in rows] == list(range(0, UPDATES, 2))
    assert [row["wk0_cut_acc"] for row in rows] == [line["wk0_16_acc"] for line in lines]
    assert {(row["freeze_until"], row["cutoff"]) for row in rows} == {("3:layers.0.wk.weight", 16)}
    assert f"run  {logged}" in printed


@pytest.mark.parametrize("name", ["checkpoint_1_4", "checkpoint_last"])
def test_probes_of_every_checkpoint_are_those_logged(memories, logged, tmp_path, capsys, name):  # noqa: F811
    assert memories([str(logged / f"{name}.pt"), "--tokens", "5", "--out", str(tmp_path / "x")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"x.{suffix}" for suffix in SUFFIXES}
    probes = [row for row in table(tmp_path / "x") if row["kind"] == "probe"]
    norms = sum(row["name"].startswith("norm_") for row in probes)
    assert (len(probes) - norms, norms > 0) == (6, name == "checkpoint_1_4"), "no line of training is of the last"
    assert all(row["in_log"] and row["value"] is not None and row["value"] == row["logged"] for row in probes)
    assert "ff1_loss" in capsys.readouterr().out


def test_a_log_of_other_weights_and_none_at_all(memories, logged, tmp_path, capsys):  # noqa: F811
    shutil.copyfile(logged / "checkpoint_last.pt", tmp_path / "checkpoint_last.pt")
    text = str(ROOT / "tests/data/lighthouse.txt")
    arguments = [str(tmp_path / "checkpoint_last.pt"), "--tokens", "5", "--data", text, "--out", str(tmp_path / "x")]
    assert memories(arguments) == 0
    assert capsys.readouterr().out.count("not in the log") == 6
    right = read_probes(logged)
    lines = [line | {"wo1_acc": line["wo1_acc"] + 0.01} for line in right]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert memories(["--table", str(tmp_path / "x.json"), "--out", str(tmp_path / "y")]) == 0
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / "x.png").read_bytes()
    capsys.readouterr()
    (tmp_path / "x.png").unlink()
    assert memories(arguments) == 1
    printed, error = capsys.readouterr()
    assert "wo1_acc " in printed
    assert not (tmp_path / "x.png").exists()
    assert f"wo1_acc of {tmp_path.name} after {UPDATES} updates is {right[-1]['wo1_acc']}, the log" in error
    assert "wk1_acc" not in error


def test_attention_of_a_generated_sequence_and_of_a_text(attention_maps, logged, tmp_path, capsys):  # noqa: F811
    models = [f"{name}={logged / name}.pt" for name in ("checkpoint_1_4", "checkpoint_last")]
    flags = ["--window", "12", "--sequences", "6", "--item", "2"]
    assert attention_maps([*models, *flags, "--out", str(tmp_path / "x")]) == 0
    rows = table(tmp_path / "x")
    assert len(rows) == 2 * 2 * 12 * 13 // 2, "models, layers, keys up to the query"
    assert all(0 <= row["weight"] <= 1 for row in rows)
    assert len(list(csv.DictReader((tmp_path / "x.csv").open()))) == len(rows)
    printed = capsys.readouterr().out
    assert "behind, 6 others" in printed
    assert attention_maps(["--table", str(tmp_path / "x.json"), "--out", str(tmp_path / "y")]) == 0
    assert capsys.readouterr().out.replace("/y.", "/x.") == printed
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / "x.png").read_bytes()
    assert attention_maps([models[1], "--text", "the sea\\nthe ", "--out", str(tmp_path / "t")]) == 0
    shown = {row["query"]: row["query_token"] for row in table(tmp_path / "t")}
    assert "".join(shown.values()) == "the sea\nthe "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "the€"], "checkpoint_last.pt; leave out what is none of"),
        (["--item", "9999"], "no sequence 9999 in the split 'test'"),
        (["--text", "e" * (LENGTH + 1)], f"takes 2 to {LENGTH}"),
        (["--triggers", "e"], "--triggers says what to count in --text"),
        (["--start", "100"], f"begins at position 100, and the sequence has {LENGTH}"),
    ],
)
def test_what_attention_maps_refuse(attention_maps, logged, tmp_path, capsys, flags, message):  # noqa: F811
    assert attention_maps([str(logged / "checkpoint_last.pt"), *flags, "--out", str(tmp_path / "x")]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_do_not_fit(attention_maps, memories, logged, fairseq_lm, tmp_path, capsys):  # noqa: F811
    ours, out = str(logged / "checkpoint_last.pt"), ["--out", str(tmp_path / "x")]
    for main in (attention_maps, memories):
        assert main([ours, ours, *out]) == 1
        assert "two checkpoints share a name" in capsys.readouterr().err
        assert main([str(fairseq_lm), *out]) == 1
        assert "was trained on the task 'language_modeling'; give one of bigram_icl" in capsys.readouterr().err
        assert main([str(tmp_path / "none.pt"), *out]) == 1
        assert "is not there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ablation(logged, tmp_path, capsys):  # noqa: F811
    main = runpy.run_path(str(ROOT / FOLDER / "ablation.py"))["main"]
    checkpoints = [f"a, b={logged / name}.pt" for name in ("checkpoint_1_4", "checkpoint_last")]  # as if two seeds
    data = ["--data", str(ROOT / "tests/data/lighthouse.txt")]
    assert main([*checkpoints, *data, "--sequences", "8", "--out", str(tmp_path / "x")]) == 0
    rows = table(tmp_path / "x")
    assert [row["updates"] for row in rows] == [4] * 5 + [UPDATES] * 5
    assert len({row["cut"] for row in rows}) == 5
    assert [row["share"] is None for row in rows] == [True, *[False] * 4] * 2
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert capsys.readouterr().out.count("a, b ") == 5, "a line for both seeds"
    assert main(["--table", str(tmp_path / "x.json"), "--out", str(tmp_path / "y")]) == 0
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()
