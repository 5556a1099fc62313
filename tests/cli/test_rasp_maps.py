"""Heat maps and tables of models of formal languages as a user makes them: files, texts, redrawing, refusals."""

import csv
import json
import runpy
import shutil

import pytest

from tests.helpers import ROOT, run_cli
from tests.rasp_runs import train

MAPS, SUMMARY = "analysis/rasp/heat_maps.py", "analysis/rasp/summary.py"
RUNS = {
    "sort/supervised": ["--max-epoch", 2],  # sort_10_with_attns
    "sort/linear": ["--language", "sort_10", "--rasp-attention", "linear", "--max-epoch", 1],
    "bos": ["--language", "reverse_10_bos", "--max-epoch", 1],
}
KINDS = ("distributions", "scores")
EVALUATED = {"checkpoint": "checkpoint_best.pt", "test": {"loss": 0.5, "accuracy": 0.9999999, "seq_accuracy": 0.75}}


@pytest.fixture(scope="session")
def runs(once):
    """Save folders of tiny models; the first was evaluated."""

    def build(folder):
        for name, flags in RUNS.items():
            train(folder / name, "--batch-size", 8, *flags)
        arguments = {"language": "sort_10_with_attns", "rasp_layers": 2, "rasp_heads": 1, "rasp_dim": 8, "seed": 4}
        results = {"arguments": arguments, "epochs": 2, "best_epoch": 2, "stop_reason": "end", "evaluated": EVALUATED}
        (folder / "sort/supervised/results.json").write_text(json.dumps(results))

    return once("rasp_maps", build)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    flags = ["--sequence", "ab", "--with-numbers", "--size", 2, "--out", folder]
    return folder, run_cli(MAPS, "--path", runs / "sort/supervised", runs / "bos", *flags).stdout


def test_each_model_has_its_maps_and_texts(drawn, runs):
    folder, printed = drawn
    images = [f"{kind}/layer {layer}.{end}" for kind in KINDS for layer in (0, 1) for end in ("pdf", "png", "json")]
    wanted = set()
    for language, model in (("sort_10_with_attns", "supervised"), ("reverse_10_bos", "bos")):
        wanted |= {
            f"{language}/ab/ins_outs.txt",
            *(f"{language}/ab/{model}/{name}" for name in ["in_out.txt", *images]),
        }
    assert set(files(folder)) == wanted
    block = (folder / "sort_10_with_attns/ab/supervised/in_out.txt").read_text()
    assert block in printed
    assert block == (folder / "sort_10_with_attns/ab/ins_outs.txt").read_text()
    assert f"checkpoint: {runs}/sort/supervised/checkpoint_best.pt, after" in block
    assert "\nepochs: 2\ntest accuracy: 1.0-\ninput length: 2\ninput: ab\noutput: " in block
    assert "\ntarget: ab\nlayer 0 head 0: target mass 0." in block
    other = (folder / "reverse_10_bos/ab/bos/in_out.txt").read_text()
    assert "\ntest accuracy: not evaluated\ninput length: 3\ninput: §ab\n" in other
    assert "\ntarget: §ba\n" in other
    rows = json.loads((folder / "reverse_10_bos/ab/bos/scores/layer 1.json").read_text())["rows"]
    assert [(row["query_symbol"], row["key_symbol"]) for row in rows] == [(q, k) for q in "§ab" for k in "§ab"]
    for query in range(3):
        assert sum(row["weight"] for row in rows if row["query"] == query) == pytest.approx(1, abs=1e-6)
    assert (folder / "sort_10_with_attns/ab/supervised/scores/layer 0.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / MAPS))["main"]


def call(main, *arguments):
    return main([str(argument) for argument in arguments])


def test_a_table_is_redrawn_to_the_same_bytes(main, drawn, tmp_path, capsys):
    table = drawn[0] / "reverse_10_bos/ab/bos/scores/layer 1.json"
    assert call(main, "--table", table, "--kind", "scores", "--with-numbers", "--size", 2, "--out", tmp_path) == 0
    home = "reverse_10_bos/ab/bos/scores"
    assert files(tmp_path) == {f"{home}/{name}": data for name, data in files(drawn[0] / home).items() if "1" in name}
    table = json.loads(table.read_text())
    table["rows"] = [row | {"model": "../../esc", "language": "../up"} for row in table["rows"]]
    (tmp_path / "t.json").write_text(json.dumps(table))
    assert call(main, "--table", tmp_path / "t.json", "--kind", "scores", "--size", 2, "--out", tmp_path / "a/b") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"reverse_10_bos", "t.json", "a"}
    assert len(files(tmp_path / "a/b/___up")) == 3


def test_numbers_that_cannot_be_read_are_left_out_with_a_word(main, runs, tmp_path, capsys):
    flags = ["--size", 2, "--with-numbers", 2, "--out", tmp_path]
    assert call(main, "--path", runs / "sort/linear", "--sequence", "ab" * 10, "--sequence", "ba" * 10, *flags) == 0
    assert capsys.readouterr().err.count("--with-numbers: left out") == 1


def test_which_models_and_checkpoints(main, runs, tmp_path, capsys):
    flags = ["--sequence", "ba", "--size", 2, "--out", tmp_path, "--kind"]
    call(main, "--path", runs, *flags, "distributions", "--language", "sort_10_with_attns", "--select", "last")
    assert {name.split("/")[0] for name in files(tmp_path)} == {"sort_10_with_attns"}
    assert "checkpoint_last.pt, after" in capsys.readouterr().out
    call(main, "--path", runs, *flags, "both", "--must-contain", "rt/lin")
    assert {name.split("/")[0] for name in files(tmp_path)} == {"sort_10_with_attns", "sort_10"}
    of_linear = {path.name for path in (tmp_path / "sort_10/ba/linear").iterdir()}
    assert of_linear == {"distributions", "in_out.txt"}, "without a softmax no scores"
    shutil.copytree(runs / "bos", tmp_path / "runs/cut")
    shutil.copytree(runs / "bos", tmp_path / "runs/good")
    (tmp_path / "runs/cut/checkpoint_best.pt").write_bytes(b"PK")
    assert call(main, "--path", tmp_path / "runs", *flags, "scores") == 3
    out, err = capsys.readouterr()
    assert "model: good" in out
    assert "left out 1 model:\n" in err
    assert "runs/cut/checkpoint_best.pt (2 bytes) is truncated" in err


def test_a_model_that_cannot_take_a_sequence_is_left_out(main, runs, tmp_path, capsys):
    shutil.copytree(runs / "sort/linear", tmp_path / "runs/linear")
    shutil.copytree(runs / "bos", tmp_path / "runs/bos")
    flags = ["--path", tmp_path / "runs", "--sequence", "ab", "--size", 2, "--out", tmp_path / "out", "--sequence"]
    assert call(main, *flags, "§ab") == 3
    err = capsys.readouterr().err
    assert "left out 1 model:\n" in err
    assert "linear/checkpoint_best.pt: '§' in '§ab' is not in the alphabet of sort_10 " in err
    assert {name.split("/")[0] for name in files(tmp_path / "out")} == {"reverse_10_bos"}
    assert {name.split("/")[1] for name in files(tmp_path / "out")} == {"ab"}, "both sequences are the same"
    assert call(main, *flags, "aZ", "--out", tmp_path / "none") == 1
    err = capsys.readouterr().err
    assert all(f"not in the alphabet of {name}; use 'abcdefghij'" in err for name in ("sort_10", "reverse_10_bos"))
    assert not (tmp_path / "none").exists()


def test_a_file_is_one_sequence_with_every_symbol_in_it(main, runs, tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"ab\n")
    assert call(main, "--path", runs / "bos", "--sequence-file", tmp_path / "text", "--out", tmp_path) == 1
    assert r"'\n' in 'ab\n' is not in the alphabet of reverse_10_bos" in capsys.readouterr().err
    (tmp_path / "text").write_bytes(b"ab")
    flags = ["--kind", "scores", "--size", 2, "--out", tmp_path]
    assert call(main, "--path", runs / "bos", "--sequence-file", tmp_path / "text", *flags) == 0
    assert (tmp_path / "reverse_10_bos/ab/bos/scores/layer 0.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["bos", "--sequence", "aZ"],
            "checkpoint_best.pt: 'Z' in 'aZ' is not in the alphabet of reverse_10_bos; use 'abcdefghij'",
        ),
        (["bos", "--sequence", "§§ab"], "'§' in '§§ab' is not in the alphabet"),
        (["bos", "--sequence", ""], "an empty sequence for reverse_10_bos"),
        (["nothing", "--sequence", "a"], "no save folder at or below"),
        (["bos", "--sequence", "a", "--language", "revrese_10"], "did you mean 'reverse_10'?"),
        (["bos", "--sequence", "a", "--language", "sort_10"], "no model of the language sort_10"),
        (["sort/linear", "--sequence", "a", "--kind", "scores"], "has linear attention, which has no scores"),
        (["bos", "--sequence", "a", "--device", "cuda"], "device 'cuda' cannot be used here"),
    ],
)
def test_what_is_refused_before_anything_is_written(flags, message, main, runs, tmp_path, capsys):
    folder, *others = flags
    assert call(main, "--path", runs / folder, *others, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sequence", "a"], "nothing to draw: give --path"),
        (["--path", "x"], "nothing to draw: give --path"),
        (["--path", "x", "--table", "y"], "or --table, not both"),
        (["--path", "x", "--sequence", "a", "--size", "1"], "less has no room"),
        (["--path", "x", "--sequence", "a", "--vmin", "1", "--vmax", "0.5"], "--vmin 1 is not below --vmax 0.5"),
    ],
)
def test_wrong_options(flags, message, main, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert message in capsys.readouterr().err


def test_tables_of_runs(runs, tmp_path):
    flags = ["--at-epoch", 2, "--group-epoch", 1, "--input", "dbbda", "--input", "a|", "--out", tmp_path / "all"]
    printed = run_cli(SUMMARY, runs, *flags).stdout
    text = (tmp_path / "all.md").read_text()
    assert printed.startswith(text)
    with (tmp_path / "all_runs.csv").open(newline="") as file:
        lines = {line["id"]: line for line in csv.DictReader(file)}
    assert set(lines) == {"supervised", "linear", "bos"}
    mine, records = lines["supervised"], (runs / "sort/supervised/epochs.jsonl").read_text().splitlines()
    assert (mine["test_accuracy"], mine["test_loss"], mine["epochs"]) == ("0.9999999", "0.5", "2")
    assert float(mine["valid_accuracy_epoch_2"]) == json.loads(records[1])["valid"]["accuracy"]
    assert float(mine["valid_loss_epoch_1"]) == json.loads(records[0])["valid"]["loss"]
    assert (lines["linear"]["attention"], lines["linear"]["test_accuracy"]) == ("linear", "")
    assert (len(mine["output of 'dbbda'"]), mine["output of 'a|'"]) == (5, "")
    assert lines["bos"]["output of 'dbbda'"]
    assert "| supervised | 2 | 1 | 8 |" in text
    assert "| 1.0- | 0.75 | 0.5 |" in text
    assert "| not evaluated | not evaluated | not evaluated |" in text
    with (tmp_path / "all_groups.csv").open(newline="") as file:
        groups = {line["language"]: line for line in csv.DictReader(file)}
    assert (groups["sort_10_with_attns"]["test_accuracy_mean"], groups["sort_10"]["test_accuracy_mean"]) == (
        "0.9999999",
        "",
    )


def test_tables_show_positions_and_bos_where_they_differ():
    tables = runpy.run_path(str(ROOT / SUMMARY))["tables"]

    def row(bos):
        return {"id": "a", "language": "sort_10", "position": "sin", "model_bos": bos, "test_loss": 0.5}

    same, other = (tables([row(True), row(bos)], [row(True), row(bos)]) for bos in (True, False))
    assert "| id | test loss |" in same
    assert "\n\nThe same in all runs: position sin, model bos yes.\n\n" in same
    assert "| id | model bos | test loss |" in other
    assert "\n| a | yes | 0.5 |\n| a | no | 0.5 |\n" in other
    assert "| id | language | model bos | test loss |" in other, "of groups too"
    assert "\n\nThe same in all runs: position sin.\n\n" in other


def test_a_run_that_cannot_be_read_is_left_out_of_the_tables(runs, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / SUMMARY))["main"]
    for name in ("cut", "good"):
        shutil.copytree(runs / "sort/supervised", tmp_path / "runs" / name)
    (tmp_path / "runs/cut/results.json").write_text("{")
    assert call(main, tmp_path / "runs", "--out", tmp_path / "all") == 3
    assert "cut/results.json is no file of results" in capsys.readouterr().err
    assert "| good |" in (tmp_path / "all.md").read_text()
    assert call(main, tmp_path / "runs/cut", "--out", tmp_path / "none") == 1
    assert not (tmp_path / "none.md").exists()


def test_target_masses(runs, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "analysis/rasp/target_mass.py"))["main"]
    flags = ["--sequences", 3, "--min-length", 2, "--out", tmp_path / "mass.json"]
    assert call(main, "--path", runs / "sort", *flags) == 3
    out, err = capsys.readouterr()
    assert "left out 1:\n" in err
    assert "sort/linear/checkpoint_best.pt: linear attention has no distribution" in err
    rows = json.loads((tmp_path / "mass.json").read_text())["rows"]
    assert [(row["model"], row["layer"], row["head"], row["sequences"]) for row in rows] == [
        ("supervised", 0, 0, 3),
        ("supervised", 1, 0, 3),
    ]
    assert f"{rows[0]['target_mass']:.4g}" in out
    assert call(main, "--path", runs / "bos", *flags) == 1
    assert "reverse_10_bos has no program" in capsys.readouterr().err
