"""Norm growth logged by fairseq-train itself, against the checkpoints of the same updates."""

import argparse
import json
import math
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.measure import masked_perplexity
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.growth_log import read_growth
from fairseq_transnorm.measure.parameters import by_layer, model_vector, norm, select, step_between
from tests.helpers import run_cli

UPDATES, LR, CLIP = 6, 0.5, 0.05
COMMON = ["--user-dir", USER_DIR, "--cpu", "--tokens-per-sample", 64, "--batch-size", 8, "--log-format", "json"]
COMMON += ["--save-interval-updates", 1, "--no-epoch-checkpoints", "--log-interval", 1, "--seed", 3]
# Plain gradient descent, so that a step tells its gradient.
LM = ["--task", "normgrowth_lm", "--arch", "transnormer_lm_tiny", "--dropout", 0.1, "--update-freq", 2]
LM += ["--optimizer", "sgd", "--lr", LR, "--clip-norm", CLIP, "--max-update", UPDATES]
LOGGED = ["--norm-log-interval", 1, "--norm-log-layers", "--norm-log-tensors", "--sat-max-sentences", 10]


def train(data, folder, *flags):
    return run_cli("fairseq-train", data, *COMMON, *flags, "--save-dir", folder).stdout


def lines(output, name):
    """The JSON objects of fairseq's log that have an entry."""
    found = [json.loads('{"' + line.partition(' | {"')[2]) for line in output.splitlines() if ' | {"' in line]
    return [entry for entry in found if name in entry]


def weights(path):
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of fairseq's sgd
        return torch.load(path)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def logged(once: Callable[..., Path], tiny_lm_data: Path) -> Path:
    """Folder of a run with a checkpoint and a record each update, and its output. Read it only."""

    def build(folder: Path) -> None:
        (folder / "train.log").write_text(train(tiny_lm_data, folder, *LM, *LOGGED))

    return once("growth_logged", build)


def vectors(folder, updates):
    """Parameters of the layers before the first update and after each, from the checkpoints."""
    names = ["checkpoint_init.pt"] + [f"checkpoint_1_{update}.pt" for update in range(1, updates + 1)]
    runs = [load_run(folder / name) for name in names]
    assert [run.updates for run in runs] == list(range(updates + 1))
    return [select(model_vector(run.model), "layers") for run in runs]


def test_records_agree_with_the_checkpoints_of_each_update(logged):
    start, *records = read_growth(logged)
    thetas = vectors(logged, UPDATES)
    assert start == {"updates": 0, "epoch": 1, "lr": LR, "scope": "layers", "layers": start["layers"]} | {
        "norm": pytest.approx(norm(thetas[0]), rel=1e-12)
    }
    assert [record["updates"] for record in records] == list(range(1, UPDATES + 1))
    for record, before, after in zip(records, thetas, thetas[1:], strict=False):
        step = step_between(before, after)
        expected = step._asdict() | {"norm": step.norm_after}
        del expected["norm_after"]
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-10)
        assert record["norm"] ** 2 - record["norm_before"] ** 2 == pytest.approx(
            2 * record["product"] + record["step_norm"] ** 2, rel=1e-9
        )
        for entry, (layer, part) in zip(record["layers"], by_layer(after).items(), strict=True):
            of_layer = step_between({name: before[name] for name in part}, part)
            assert (entry["stack"], entry["layer"]) == layer
            assert entry["norm"] == pytest.approx(norm(part), rel=1e-10)
            assert entry["alignment"] == pytest.approx(of_layer.alignment, rel=1e-10)
        assert record["tensors"].keys() == after.keys()
        products, squares = zip(*((p, s**2) for _, s, p in record["tensors"].values()), strict=True)
        assert math.fsum(products) == pytest.approx(record["product"], rel=1e-9)
        assert math.fsum(squares) == pytest.approx(record["step_norm"] ** 2, rel=1e-9)


def test_the_gradient_is_that_of_the_update(logged):
    """Averaged over micro-batches and clipped: the step of plain gradient descent is -lr times it."""
    for record in read_growth(logged)[1:]:
        assert record["gradient_norm"] == pytest.approx(record["step_norm"] / LR, rel=1e-4)
        assert 0 < record["gradient_norm"] <= CLIP
        assert record["gradient_product"] == pytest.approx(-record["product"] / LR, rel=1e-3, abs=1e-5)
        assert record["gradient_cosine"] == pytest.approx(-record["alignment"], rel=1e-3, abs=1e-5)


def test_fairseq_s_own_log_shows_the_numbers(logged):
    output = (logged / "train.log").read_text()
    shown = lines(output, "norm")
    for record, line in zip(read_growth(logged)[1:], shown, strict=True):
        assert int(line["num_updates"]) == record["updates"]
        for name in ("norm", "step_norm", "product", "direction_cosine", "alignment", "gradient_cosine"):
            assert float(line[name]) == pytest.approx(record[name], rel=1e-5, abs=1e-6)
        assert float(line["norm_decoder_2"]) == pytest.approx(record["layers"][1]["norm"], rel=1e-5)
    valid = lines(output, "valid_sat")
    assert [int(line["valid_num_updates"]) for line in valid] == list(range(1, UPDATES + 1))
    assert all(-1 <= float(line["valid_sat"]) <= 1 and 0 <= float(line["valid_collapse"]) <= 1 for line in valid)


def test_a_run_from_the_initial_checkpoint_without_a_log_is_the_same_run(logged, tiny_lm_data, tmp_path):
    train(tiny_lm_data, tmp_path, *LM, "--restore-file", logged / "checkpoint_init.pt")
    assert same(weights(tmp_path / "checkpoint_last.pt"), weights(logged / "checkpoint_last.pt"))
    assert not [*tmp_path.glob("norms*"), *tmp_path.glob("*init*")]


def test_a_killed_run_goes_on_with_the_same_file(logged, tiny_lm_data, tmp_path):
    whole = (logged / "norms.jsonl").read_text()
    shutil.copyfile(logged / "checkpoint_1_4.pt", tmp_path / "checkpoint_last.pt")
    (tmp_path / "checkpoint_init.pt").write_text("not to be touched")
    (tmp_path / "norms.jsonl").write_text(whole + whole.splitlines()[-1][:50])
    train(tiny_lm_data, tmp_path, *LM, *LOGGED)
    assert (tmp_path / "norms.jsonl").read_text() == whole
    assert (tmp_path / "checkpoint_init.pt").read_text() == "not to be touched"
    assert same(weights(tmp_path / "checkpoint_last.pt"), weights(logged / "checkpoint_last.pt"))


def test_one_of_two_processes_writes_for_a_model_of_fairseq(tiny_lm_data, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    flags = ["--task", "normgrowth_lm", "--arch", "transformer_lm", "--decoder-embed-dim", 32, "--decoder-layers", 2]
    flags += ["--decoder-input-dim", 32, "--decoder-output-dim", 32, "--decoder-ffn-embed-dim", 64]
    flags += ["--decoder-attention-heads", 2, "--decoder-learned-pos", "--optimizer", "adam", "--lr", 1e-3]
    flags += ["--max-update", 2, "--norm-log-interval", 1, "--sat-max-sentences", 9, "--norm-scope", "all"]
    flags += ["--distributed-world-size", 2, "--distributed-init-method", url, "--distributed-no-spawn"]
    flags += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    with ThreadPoolExecutor() as pool:
        first, _ = pool.map(lambda rank: train(tiny_lm_data, tmp_path, *flags, "--distributed-rank", rank), range(2))
    records = read_growth(tmp_path)
    names = ["checkpoint_init.pt", "checkpoint_1_1.pt", "checkpoint_1_2.pt"]
    thetas = [select(model_vector(load_run(tmp_path / name).model), "all") for name in names]
    assert [record["norm"] for record in records] == pytest.approx([norm(theta) for theta in thetas], rel=1e-12)
    assert records[2]["product"] == pytest.approx(step_between(thetas[1], thetas[2]).product, rel=1e-10)
    (*_, last) = lines(first, "valid_sat")
    assert -1 <= float(last["valid_sat"]) <= 1


def test_a_masked_language_model_is_logged_at_its_interval(tiny_lm_data, tmp_path):
    flags = ["--task", "normgrowth_masked_lm", "--arch", "transnormer_mlm_tiny", "--criterion", "masked_lm"]
    flags += ["--optimizer", "norm_sgd", "--momentum", 0.9, "--lr", 0.1, "--lr-scheduler", "hold_linear"]
    flags += ["--hold-updates", 2, "--max-update", 5, "--norm-log-interval", 2, "--sat-max-sentences", 5]
    output = train(tiny_lm_data, tmp_path, *flags)
    records = read_growth(tmp_path)
    assert [(record["updates"], "step_norm" in record) for record in records] == [(0, False), (2, True), (4, True)]
    assert [record["lr"] for record in records] == pytest.approx([0.1, 0.1, 0.07])
    theta = select(model_vector(load_run(tmp_path / "checkpoint_1_4.pt").model), "layers")
    assert records[2]["norm"] == pytest.approx(norm(theta), rel=1e-12)
    assert lines(output, "valid_collapse")
    shown = [(int(line["num_updates"]), float(line["norm"])) for line in lines(output, "norm")]
    assert shown == [(n, pytest.approx(records[n // 2]["norm"])) for n in range(2, 6)], "between records the last one"
    (row,) = masked_perplexity.measure(tmp_path / "checkpoint_last.pt", tiny_lm_data, ["valid"])
    assert row["tokens_per_sample"] == 64, "a task like masked_lm is evaluated like it"


def test_scalars_of_both_files_are_drawn(logged, tmp_path):
    scalars = ["norm", "norm_decoder_1", "sat", "loss"]
    flags = ["--scalars", *scalars, "--x", "epoch", "--log", "y", "--out", tmp_path / "scalars"]
    assert "wrote" in run_cli("analysis/scalars.py", f"sgd={logged}", *flags).stdout
    rows = json.loads((tmp_path / "scalars.json").read_text())["rows"]
    assert {row["scalar"]: row["split"] for row in rows} == dict.fromkeys(scalars[:2], "norms") | dict.fromkeys(
        scalars[2:], "valid"
    )
    norms = [record["norm"] for record in read_growth(logged)]
    assert [row["value"] for row in rows if row["scalar"] == "norm"] == norms
    assert all((tmp_path / f"scalars.{kind}").stat().st_size for kind in ("pdf", "png"))


def test_the_plane_is_drawn_from_the_records(logged, tmp_path):
    flags = ["--window", 2, "--yscale", "symlog", "--reduce", "median", "--out", tmp_path / "plane"]
    output = run_cli("analysis/normgrowth/growth_plane.py", f"sgd={logged}", *flags).stdout
    assert "share growing" in output
    rows = json.loads((tmp_path / "plane.json").read_text())["rows"]
    assert [row["updates"] for row in rows] == list(range(2, UPDATES + 1))
    assert (tmp_path / "plane.pdf").is_file()


def test_the_cost_of_the_log_is_measured_for_any_language_model(tmp_path):
    flags = ["--arch", "transnormer_lm", "--dim", 16, "--ffn", 16, "--layers", 1, "--heads", 2, "--vocabulary", 20]
    flags += ["--sentences", 2, "--length", 8, "--steps", 1, "--intervals", 1, 3, "--out", tmp_path / "cost"]
    run_cli("analysis/normgrowth/log_cost.py", *flags)
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [(row["interval"], row["detail"]) for row in rows] == [(1, True), (1, False), (3, False)]
    assert all(row["plain"] > 0 and row["logged"] > 0 for row in rows)
