"""Heads of saturated models as a user draws them: trained models of several kinds, redrawing, refusals."""

import json
import runpy

import pytest

from tests.helpers import ROOT, run_cli

SCRIPT = "analysis/normgrowth/attention_heads.py"
STATISTICS = ("positions_attended", "split_probability", "std_attended")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(trained_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    models = [f"{name}={path / 'checkpoint_last.pt'}" for name, path in trained_runs.items()]
    printed = run_cli(SCRIPT, *models, "--sentences", 20, "--out", folder / "heads").stdout
    return folder, printed


def test_trained_models(drawn, trained_runs):
    folder, printed = drawn
    stems = ["heads", *(f"heads/{name}/{statistic}" for name in trained_runs for statistic in STATISTICS)]
    assert set(files(folder)) == {f"{stem}.{suffix}" for stem in stems for suffix in ("pdf", "png", "json")}
    rows = json.loads((folder / "heads.json").read_text())["rows"]
    assert {row["model"] for row in rows} == set(trained_runs)
    for row in rows:
        assert row["positions_attended"] >= 1
        assert 0 <= row["split_probability"] <= 1
        assert row["forbidden_weight"] == 0, "true masks all of them"
    of_fairseq = [row for row in rows if row["model"] == "transformer_lm" and row["module"]]
    assert len(of_fairseq) == 2 * 2 * 2, "networks, layers, heads"
    assert {row["mask"] for row in rows if row["model"] == "transnormer_mlm_tiny"} == {"none"}
    assert "transformer_lm has sinusoidal positions" in printed
    assert "of the 2 attentions of transnormer_lm_tiny have no softmax and are left out" in printed


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / SCRIPT))["main"]


def test_a_table_is_redrawn(main, drawn, tmp_path, capsys):
    table = json.loads((drawn[0] / "heads.json").read_text())
    table["rows"] = [row for row in table["rows"] if row["model"] == "transformer_lm"]
    (tmp_path / "one.json").write_text(json.dumps(table))
    assert main(["--table", str(tmp_path / "one.json"), "--out", str(tmp_path / "heads")]) == 0
    assert files(tmp_path / "heads/transformer_lm") == files(drawn[0] / "heads/transformer_lm")
    assert "uniform over the prefix" in capsys.readouterr().out


def test_no_label_leads_out_of_the_folder(main, drawn, tmp_path, capsys):
    table = json.loads((drawn[0] / "heads.json").read_text())
    ours = [row for row in table["rows"] if row["model"] == "transformer_lm"]
    values = [1, 2, 4, 8]  # of four heads
    table["rows"] = [
        row | {"model": label, "positions_attended": values[n % 4]}
        for label in ("../../esc", "a/b c")
        for n, row in enumerate(ours)
    ]
    (tmp_path / "in.json").write_text(json.dumps(table))
    assert main(["--table", str(tmp_path / "in.json"), "--out", str(tmp_path / "x/y/heads")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.json", "x"}
    assert {path.name for path in (tmp_path / "x/y/heads").iterdir()} == {"___.._esc", "a_b c"}
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("../../esc")]
    assert ["4", "1", "3", "8"] in [line[3:7] for line in lines], "heads; least, median and most n"


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--length", "99"], 1, "--length 99 must lie between 2 and the 64 positions"),
        (["--attn-mask", "multiplicative"], 1, "cannot give TransformerLanguageModel the mask 'multiplicative'"),
        (["--split", "other"], 1, "has no split 'other'; it has test, train, valid"),
        (["--tolerance", "-1"], 1, "tolerance of ties is -1.0"),
        (["--c", "0"], 2, "0 is not positive and finite"),
        (["--text", "missing.txt"], 1, "missing.txt"),
    ],
)
def test_what_cannot_be_is_refused(main, trained_runs, tmp_path, capsys, flags, status, message):
    arguments = [str(trained_runs["transformer_lm"] / "checkpoint_last.pt"), *flags, "--out", str(tmp_path / "x")]
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
