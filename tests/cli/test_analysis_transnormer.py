"""The analysis files as a user calls them: three outputs, redrawing, and errors that say what to do."""

import json
import pydoc_data.topics

import pytest

from tests.helpers import run_cli

DILUTION = "analysis/transnormer/dilution.py"
BOUNDS = "analysis/transnormer/gradient_bounds.py"
GRADIENTS = "analysis/transnormer/layer_gradients.py"
CURVES = "analysis/learning_curves.py"
OUTPUTS = {".pdf": b"%PDF", ".png": b"\x89PNG", ".json": b"{"}


def outputs(stem):
    """The bytes of the three files of a figure; nothing else is beside them."""
    files = {path.name.removeprefix(stem.name): path.read_bytes() for path in stem.parent.iterdir()}
    assert set(files) == set(OUTPUTS)
    assert all(files[suffix].startswith(start) for suffix, start in OUTPUTS.items())
    return files


def rows(stem):
    return json.loads(stem.with_suffix(".json").read_text())["rows"]


def fails(*args, status=1):
    done = run_cli(*args, check=False)
    assert done.returncode == status, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def measured_twice_and_redrawn(script, args, folder, drawing=()):
    """Run, run again, and draw from the table: every time the same three files; return what was printed.

    ``args`` say what to measure, ``drawing`` what of it to draw.
    """
    stem = folder / "figure" / "out"
    printed = run_cli(script, *args, *drawing, "--out", stem).stdout
    first = outputs(stem)
    run_cli(script, *args, *drawing, "--out", stem)
    assert outputs(stem) == first, "a second run"
    again = folder / "again" / "out"
    redrawn = run_cli(script, "--table", stem.with_suffix(".json"), *drawing, "--out", again).stdout
    assert outputs(again) == first, "from the table"
    assert printed.splitlines()[-2] in redrawn, "the same table of numbers"
    return printed


@pytest.mark.parametrize("script", [DILUTION, BOUNDS, GRADIENTS, CURVES])
def test_help(script):
    text = run_cli(script, "--help").stdout
    assert all(flag in text for flag in ("--table", "--out", "--seed"))
    assert f"python {script}" in text, "an example to copy"


def test_dilution_compares_models(trained, fairseq_lm, tmp_path):
    args = [f"t2={trained}", f"transformer_lm={fairseq_lm}", "--length", 40, "--sequences", 3, "--seed", 5]
    printed = measured_twice_and_redrawn(DILUTION, args, tmp_path)
    table = rows(tmp_path / "figure" / "out")
    assert {(r["model"], r["layer"], r["kind"], r["updates"]) for r in table} == {
        ("t2", 1, "local", 150),
        ("t2", 2, "linear", 150),
        ("transformer_lm", 1, "softmax", 20),
        ("transformer_lm", 2, "softmax", 20),
    }
    assert {(r["rule"], r["length"], r["sequences"], r["rows"]) for r in table} == {("causal", 40, 3, 3 * 2 * 20)}
    assert len(table) == 4 * 20
    assert all(0 < r["locality"] <= 1 + 1e-9 for r in table)
    assert len({r["uniform"] for r in table if r["fraction"] == 0.4}) == 1
    assert "l(0.4)" in printed


def test_dilution_of_one_model(trained, tmp_path):
    run_cli(DILUTION, trained, "--sequences", 2, "--split", "test", "--out", tmp_path / "one")
    assert {r["length"] for r in rows(tmp_path / "one")} == {64}, "that of training"
    assert {r["model"] for r in rows(tmp_path / "one")} == {"trained"}, "the folder's name"
    outputs(tmp_path / "one")


def test_dilution_says_what_is_wrong(trained, tmp_path):
    (tmp_path / "cut.pt").write_bytes(trained.read_bytes()[:5000])
    assert "error: " in (text := fails(DILUTION, tmp_path / "cut.pt", "--out", tmp_path / "x"))
    assert "cut.pt (5,000 bytes) is truncated" in text
    assert "65 tokens are more than the 64 positions" in fails(DILUTION, trained, "--length", 65, "--sequences", 1)
    assert "no split 'tst'; it has ['test', 'train', 'valid']" in fails(DILUTION, trained, "--split", "tst")
    assert "share a name" in fails(DILUTION, f"a={trained}", f"a={trained}")
    assert "nothing to measure" in fails(DILUTION, status=2)
    assert "not both" in fails(DILUTION, trained, "--table", "x.json", status=2)
    assert not (tmp_path / "x.pdf").exists()


def test_layer_gradients_compares_models(trained, tmp_path):
    args = [f"a={trained}", f"b={trained.parent}/checkpoint_best.pt", "--length", 40, "--sequences", 3]
    printed = measured_twice_and_redrawn(GRADIENTS, args, tmp_path)
    table = rows(tmp_path / "figure" / "out")
    assert [(r["model"], r["layer"], r["kind"]) for r in table] == [
        ("a", 1, "softmax"),
        ("a", 2, "linear"),
        ("b", 1, "softmax"),
        ("b", 2, "linear"),
    ]
    assert {(r["length"], r["sequences"]) for r in table} == {(40, 3)}
    assert all(0 < r["score_gradient"] <= r["bound"] for r in table if r["kind"] == "linear")
    assert "norm_gain" in printed


def test_layer_gradients_says_what_is_wrong(trained, fairseq_lm, tmp_path):
    assert "no linear or local attention" in fails(GRADIENTS, fairseq_lm, "--out", tmp_path / "x")
    assert "65 tokens are more than the 64 positions" in fails(GRADIENTS, trained, "--length", 65, "--sequences", 1)
    assert "--length 0 must be at least 1" in fails(GRADIENTS, trained, "--length", 0)
    assert not (tmp_path / "x.pdf").exists()


def test_layer_gradients_are_drawn_where_no_norm_is(trained, tmp_path):
    run_cli(GRADIENTS, trained, "--sequences", 1, "--length", 20, "--out", tmp_path / "with")
    table = json.loads((tmp_path / "with.json").read_text())
    for row in table["rows"]:
        row |= {"bound": None, "norm_gain": None, "median_norm_gain": None}
    (tmp_path / "table.json").write_text(json.dumps(table))
    run_cli(GRADIENTS, "--table", tmp_path / "table.json", "--out", tmp_path / "out" / "without")
    outputs(tmp_path / "out" / "without")


def test_gradient_bounds(tmp_path):
    printed = measured_twice_and_redrawn(BOUNDS, ["--decades", 3, "--size", 8], tmp_path)
    table = rows(tmp_path / "figure" / "out")
    assert len(table) == 7 * 5
    assert all(r["weight_derivative"] <= 0.25 for r in table if r["form"] == "softmax")
    assert "growth in last 2 decades" in printed
    assert "at least 1" in fails(BOUNDS, "--decades", 0, "--out", tmp_path / "x")


def test_learning_curves(trained, fairseq_lm, tmp_path):
    args = [f"t2={trained.parent}", f"transformer_lm={fairseq_lm.parent / 'base.log'}"]
    printed = measured_twice_and_redrawn(CURVES, args, tmp_path, drawing=["--x", "tokens"])
    table = rows(tmp_path / "figure" / "out")
    assert {(r["run"], r["kind"]) for r in table} == {
        (run, kind) for run in ("t2", "transformer_lm") for kind in ("training", "validation")
    }
    assert max(r["updates"] for r in table if r["run"] == "t2") == 150
    assert max(r["tokens"] for r in table if r["run"] == "transformer_lm") <= 20 * 8 * 64
    deviations = {r["run"]: r["gnorm_deviation"] for r in table}
    assert deviations["t2"] is None, "logged every 10 updates"
    assert deviations["transformer_lm"] > 0
    assert "best ppl" in printed


def test_learning_curves_of_several_seeds(trained, tmp_path):
    log = trained.parent / "train.log"
    other = tmp_path / "seed2.log"
    other.write_text(log.read_text().replace('"valid_ppl": "', '"valid_ppl": "1'))
    (tmp_path / "out").mkdir()
    run_cli(CURVES, f"t2={log}", f"t2={other}", "--x", "wall", "--out", tmp_path / "out" / "band")
    outputs(tmp_path / "out" / "band")


def test_learning_curves_say_what_is_wrong(trained, tmp_path):
    assert "no log" in fails(CURVES, tmp_path / "gone.log")
    (tmp_path / "text.log").write_text("To be, or not to be\n")
    assert "no line of fairseq-train" in fails(CURVES, tmp_path / "text.log")
    lines = [line for line in (trained.parent / "train.log").read_text().splitlines() if "valid" not in line]
    (tmp_path / "training.log").write_text("\n".join(lines))
    assert "no validation line" in fails(CURVES, tmp_path / "training.log")
    table = tmp_path / "other.json"
    table.write_text(json.dumps({"command": "", "version": "", "seed": 0, "rows": [{"a": 1}]}))
    assert "made by another script" in fails(CURVES, "--table", table)


SIZE = ["--decoder-embed-dim", 48, "--decoder-attention-heads", 4, "--decoder-layers", 4]
# The embedding of fairseq's transformer_lm is 512 wide unless it is told otherwise.
FAIRSEQ = ["--decoder-input-dim", 48, "--decoder-output-dim", 48, "--decoder-ffn-embed-dim", 192]
FAIRSEQ += ["--decoder-normalize-before", "--share-decoder-input-output-embed"]
OURS = ["--arch", "transnormer_lm", *SIZE, "--block-size", 16]
MODELS = {
    "vanilla": ["--arch", "transformer_lm", *SIZE, *FAIRSEQ],
    "1+elu": [*OURS, "--attention-denominator", "--linear-norm", "none", "--layer-split", 0, "--lrpe", "none"],
    "norm only": [*OURS, "--layer-split", 0, "--lrpe", "none"],
    "t2": OURS,
}


def characters(folder):
    """Write the reference manual that every Python brings, 0.45 MB of English, one character a token."""
    topics = pydoc_data.topics.topics
    lines = [line.strip() for name in sorted(topics) for line in topics[name].splitlines() if line.strip()]
    for split, part in {"train": lines[: len(lines) * 9 // 10], "valid": lines[len(lines) * 9 // 10 :]}.items():
        (folder / split).write_text("".join(" ".join(line.replace(" ", "_")) + "\n" for line in part))
    splits = ["--trainpref", folder / "train", "--validpref", folder / "valid"]
    run_cli("fairseq-preprocess", "--only-source", *splits, "--destdir", folder / "data", "--workers", 1)
    return folder / "data"


@pytest.mark.slow
def test_attention_dilution_of_trained_models(tmp_path):
    """Linear attention with a denominator spreads over the sequence; softmax attention, above all in blocks, does not.

    The specification's setting (8.3, 8.4) has 500 updates, where vanilla's largest l(0.4) in the first two layers was
    0.06 to 0.09 above that of 1+elu over three seeds. 50 updates more leave room for other machines. Gradients are
    clipped at 1, as the published numbers there need.
    """
    data = characters(tmp_path)
    common = ["--task", "language_modeling", "--tokens-per-sample", 96, "--batch-size", 8, "--max-update", 550]
    common += ["--optimizer", "adam", "--lr", 1e-3, "--lr-scheduler", "fixed", "--warmup-updates", 100]
    common += ["--clip-norm", 1, "--dropout", 0, "--seed", 1, "--cpu", "--num-workers", 0]
    common += ["--disable-validation", "--no-epoch-checkpoints", "--user-dir", "fairseq_transnorm"]
    for name, flags in MODELS.items():
        run_cli("fairseq-train", data, *common, *flags, "--save-dir", tmp_path / name, timeout=600)
    checkpoints = [f"{name}={tmp_path / name / 'checkpoint_last.pt'}" for name in MODELS]
    run_cli(DILUTION, *checkpoints, "--sequences", 32, "--out", tmp_path / "dilution")
    at = {(r["model"], r["layer"]): r for r in rows(tmp_path / "dilution") if r["fraction"] == 0.4}
    largest = {name: max(at[name, 1]["locality"], at[name, 2]["locality"]) for name in MODELS}
    uniform = at["t2", 1]["uniform"]
    assert uniform == pytest.approx(0.287, abs=0.001)
    assert largest["vanilla"] >= largest["1+elu"] + 0.05
    assert [at["t2", layer]["kind"] for layer in (1, 2, 3, 4)] == ["local", "local", "linear", "linear"]
    assert min(at["t2", 1]["locality"], at["t2", 2]["locality"]) >= 0.95
    for name in ("1+elu", "norm only"):
        for layer in (1, 2, 3, 4):
            assert at[name, layer]["locality"] == pytest.approx(uniform, abs=0.1), (name, layer)
