"""Signal propagation as a user draws it: figures of a scheme, a text's batch, checkpoints, redrawing, the demands."""

import json
import runpy

import pytest

from tests.helpers import ROOT, run_cli

SCRIPT = "analysis/dslm/signal_propagation.py"
QUANTITIES = ("forward", "backward", "gradient", "correlation")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path):
    return json.loads(path.read_text())["rows"]


def of_figures(*stems):
    return {f"{stem}.{suffix}" for stem in stems for suffix in ("pdf", "png", "json")}


def test_text_and_what_three_layers_cannot_show(documents, tmp_path):
    args = ["--layers", 3, "--dim", 16, "--heads", 2, "--length", 24, "--sequences", 3, "--schemes", "xavier"]
    args += ["--placements", "postln", "--data", documents, "--word-kind", "words", "--split", "valid", "--check"]
    done = run_cli(SCRIPT, *args, "--out", tmp_path / "a/out", check=False)
    assert done.returncode == 3, done.stdout
    assert "1 of the demands above not met" in done.stdout
    assert "Traceback" not in done.stdout
    made = files(tmp_path / "a")
    stems = [f"out/xavier/postln_{name}" for name in QUANTITIES]
    assert set(made) == of_figures("out", *stems)
    table = rows(tmp_path / "a/out.json")
    assert [(row["scheme"], row["placement"], row["layer"]) for row in table] == [
        ("xavier", "postln", layer) for layer in (1, 2, 3)
    ]
    assert table == rows(tmp_path / "a/out/xavier/postln_backward.json")
    assert all(row["theory_variance"] > 0 and row["loss"] > 0 for row in table)
    redrawn = run_cli(SCRIPT, "--table", tmp_path / "a/out.json", "--out", tmp_path / "b/out").stdout
    assert "xavier postln encoder" in redrawn
    assert files(tmp_path / "b") == made, "from the table"


@pytest.fixture(scope="module")
def drawn(trained, trained_blm, fairseq_lm, tmp_path_factory):
    """Figures of a language model and a masked one of ours, and a language model of fairseq's."""
    folder = tmp_path_factory.mktemp("drawn")
    models = [f"t2={trained}", f"masked={trained_blm}", f"fairseq={fairseq_lm}"]  # each on text of its own
    printed = run_cli(SCRIPT, "--model-from", *models, "--sequences", 2, "--out", folder / "out").stdout
    return folder, printed


def test_checkpoints(drawn):
    folder, printed = drawn
    placements = {"t2": "preln", "masked": "postln", "fairseq": "preln"}
    stems = [f"out/{name}/{placement}_{quantity}" for name, placement in placements.items() for quantity in QUANTITIES]
    assert set(files(folder)) == of_figures("out", *stems)
    table = rows(folder / "out.json")
    assert {(row["scheme"], row["part"], row["layers"]) for row in table} == {
        ("t2", "decoder", 2),
        ("masked", "encoder", 2),
        ("fairseq", "decoder", 2),
    }
    for row in table:
        assert row["theory_variance"] is None, "no theory of these"
        assert row["variance"] > 0
        assert row["weight_gradient"] > 0
        assert -1 <= row["correlation"] <= 1
        assert 0 < row["loss"] < 5, "trained, in nats a token"
    assert "fairseq preln decoder" in printed


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / SCRIPT))["main"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--length 10", "--length: 10 is not at least 16"),
        ("--vocabulary 5", "--vocabulary: 5 is not at least 6"),
        ("--dropout 1", "--dropout: 1 does not lie in [0, 1)"),
        ("--heads 3", "--heads 3 does not divide --dim 256"),
        ("--layers 4 --k 8", "--k 8 is not between 0 and --layers 4; take another, or --beta-sq"),
        ("--k 0.5 --beta-sq 0.1", "--k 0.5 would give beta^2, and so does --beta-sq 0.1"),
        ("--beta-sq 1", "--beta-sq 1 is not between 0 and 1"),
        ("--input-corr 0", "--input-corr 0 does not lie in (0, 1]"),
        ("--schemes initialisation --check", "nothing to --check: there are bounds for dslm and xavier only"),
        ("--schemes xavier --placements preln --layers 95 --check", "nothing to --check"),
        ("--model-from dslm=missing.pt --check", "--check compares untrained models"),
        ("--model-from x=missing.pt --layers 192 --k 2", "--model-from draws what is there; leave out --layers, --k"),
        ("--table missing.json --data x", "--table draws what is there; leave out --data"),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(main, args, message, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main([*args.split(), "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_with_nothing_to_check_is_not_drawn(main, drawn, capsys, tmp_path):
    table = drawn[0] / "out.json"
    assert main(["--table", str(table), "--check", "--out", str(tmp_path / "out")]) == 1
    assert "nothing to check" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_demands_are_met_by_48_layers(tmp_path):
    args = ["--layers", 48, "--dim", 64, "--heads", 2, "--length", 64, "--seed", 1, "--schemes", "dslm"]
    flags = [*args, "--placements", "postln", "--out", tmp_path / "out"]
    printed = run_cli("scripts/repro/signal_propagation.sh", *flags, env={"NO_VENV": 1}).stdout
    assert printed.count(" yes") == 3
    assert (tmp_path / "out/dslm/postln_backward.png").is_file()
