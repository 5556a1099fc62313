"""Homogeneity curves as a user draws them: new models and their demands, trained ones, redrawing."""

import json
import runpy

import pytest

from tests.helpers import ROOT, run_cli

SCRIPT = "analysis/normgrowth/homogeneity.py"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / SCRIPT))["main"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("homogeneity")
    flags = ["--masks", "causal", "--biases", "all", "no linear", "--seeds", 3, "--check"]
    return folder, run_cli(SCRIPT, *flags, "--out", folder / "out").stdout


def test_new_models_meet_the_demands(drawn):
    folder, printed = drawn
    assert {path.name for path in folder.iterdir()} == {"out.pdf", "out.png", "out.json"}
    rows = json.loads((folder / "out.json").read_text())["rows"]
    models = {(row["model"], row["biases"], row["seed"]) for row in rows}
    assert len(models) == 2 * 2 * 3
    assert len(rows) == len(models) * (20 + 19)
    assert printed.count("1.0000") == 4, "tail exponents"


def test_a_table_is_redrawn(main, drawn, tmp_path):
    assert main(["--table", str(drawn[0] / "out.json"), "--out", str(tmp_path / "out"), "--check"]) == 0
    assert (tmp_path / "out.png").read_bytes() == (drawn[0] / "out.png").read_bytes()


def test_demands_that_are_not_met(main, drawn, tmp_path, capsys):
    table = json.loads((drawn[0] / "out.json").read_text())
    for row in table["rows"]:
        row["cosine"] = 0.5
    (tmp_path / "flat.json").write_text(json.dumps(table))
    assert main(["--table", str(tmp_path / "flat.json"), "--out", str(tmp_path / "out"), "--check"]) == 3
    assert "10 demands not met" in capsys.readouterr().err


def test_sinusoidal_positions_are_warned_of_or_scaled(main, trained_runs, tmp_path, caplog):
    """A checkpoint of fairseq's, and a variant with random weights; learned positions need no word."""
    checkpoint = f"tlm={trained_runs['transformer_lm'] / 'checkpoint_last.pt'}"
    for name, models in {
        "tlm": [checkpoint],
        "control_rel": ["--variants", "pre_norm", "control_rel", "--masks", "causal", "--biases", "all"],
    }.items():
        cosines = []
        for flags in ([], ["--scale-positions"]):
            caplog.clear()
            assert main([*models, "--seeds", "2", *flags, "--out", str(tmp_path / "out")]) == 0
            warned = [text for text in caplog.messages if "sinusoidal positions" in text]
            assert len(warned) == (0 if flags else 1)
            assert not warned or (warned[0].startswith(f"{name} has") and "--scale-positions" in warned[0])
            rows = json.loads((tmp_path / "out.json").read_text())["rows"]
            cosines.append([row["cosine"] for row in rows if row["model"] == name and row["c"] == 1.0])
        assert all(plain != scaled for plain, scaled in zip(*cosines, strict=True))


def test_trained_models(main, trained_runs, tmp_path, capsys):
    models = [f"{name}={path / 'checkpoint_last.pt'}" for name, path in trained_runs.items()]
    assert main([*models, "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {(row["model"], row["biases"]) for row in rows} == {(name, "trained") for name in trained_runs}
    assert {row["mask"] for row in rows} == {"causal", "none"}
    last = [row["cosine"] for row in rows if row["c"] == 1000.0]
    assert last == pytest.approx([1.0] * len(trained_runs))
    capsys.readouterr()
    assert main([*models, "--seeds", "1", "--out", str(tmp_path / "checked"), "--check"]) == 1
    assert "nothing to check" in capsys.readouterr().err
    assert not (tmp_path / "checked.png").exists()


def test_sizes_that_do_not_fit_are_refused(main, tmp_path, capsys):
    assert main(["--heads", "5", "--out", str(tmp_path / "out")]) == 1
    assert "--decoder-attention-heads 5" in capsys.readouterr().err
