"""Probes that fairseq-train logs: against its checkpoints, across a resume, over processes and micro-batches."""

import json
import math
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.measure.birth_run import recomputed_probes
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.probe_log import read_probes
from tests.helpers import ROOT, run_cli

UPDATES, LENGTH = 14, 40  # epochs are of 6 updates, the last with 6 of 8 sequences
COMMON = ["--user-dir", USER_DIR, "--cpu", "--task", "bigram_icl", "--corpus", ROOT / "tests/data/lighthouse.txt"]
COMMON += ["--tokens-per-sample", LENGTH, "--fixed-triggers", "--epoch-sequences", 46, "--valid-sequences", 22]
COMMON += ["--valid-output-dist", "bigram", "--ihead-dim", 32]
COMMON += ["--criterion", "bigram_icl", "--optimizer", "sgd", "--lr", 0.3, "--momentum", 0.9]
COMMON += ["--required-batch-size-multiple", 1, "--num-workers", 0, "--log-format", "json", "--seed", 5]
COMMON += ["--curriculum", 1]  # batches of the first epoch are in order
COMMON += ["--best-checkpoint-metric", "acc_end", "--maximize-best-checkpoint-metric"]
PROBES = ["--log-probes", "--probe-interval", 2, "--probe-position-cutoff", 16, "--log-norms"]
BASIC = ["--arch", "ihead_basic", "--final-ffn", "--freeze-until", "3:layers.0.wk.weight"]
WHOLE = [
    *BASIC,
    "--max-update",
    UPDATES,
    "--batch-size",
    8,
    "--save-interval-updates",
    4,
    "--keep-interval-updates",
    -1,
]


def train(folder, *flags):
    return run_cli("fairseq-train", *COMMON, *flags, "--save-dir", folder).stdout


def without_time(records):
    assert all(record["wall"] >= 0 for record in records)
    return [{name: value for name, value in record.items() if name != "wall"} for record in records]


def of_training(records):
    return {record["iter"]: record for record in without_time(records) if "split" not in record}


@pytest.fixture(scope="module")
def logged(once: Callable[..., Path]) -> Path:
    """Folder of a run that was never stopped, and its output. Read it only."""

    def build(folder: Path) -> None:
        (folder / "train.log").write_text(train(folder, *WHOLE, *PROBES))

    return once("birth_probes", build)


def test_lines_are_those_of_their_updates_and_validations(logged):
    records = read_probes(logged)
    training, valid = of_training(records), [record for record in records if "split" in record]
    assert list(training) == [*range(0, UPDATES, 2)]
    assert [(line["iter"], line["split"], line["sequences"]) for line in valid] == [
        (updates, "valid", 22) for updates in (4, 6, 8, 12, UPDATES)
    ]
    assert [training[number]["epoch"] for number in (0, 4, 6, 12)] == [1, 1, 2, 3]
    names = set(training[4])
    assert {"wo1_acc", "wk1_acc", "wk0_acc", "wk0_16_acc", "ff1_loss", "score_cond_acc", "acc_end_test"} <= names
    assert names - set(training[2]) == {"norm_layers.0.wk.weight", "gradnorm_layers.0.wk.weight"}, "frozen until 3"
    assert {"acc_end_test", *(name for name in names if "norm_" in name)} == names - set(valid[0])
    for line in valid:
        if line["iter"] in training:
            assert line["acc_end"] == training[line["iter"]]["acc_end_test"]


def test_fairseq_s_log_shows_the_same(logged):
    text = (logged / "train.log").read_text()
    shown = [json.loads('{"' + line.partition(' | {"')[2]) for line in text.splitlines() if ' | {"' in line]
    valid = [line for line in shown if "valid_acc_end" in line]
    records = [record for record in read_probes(logged) if "split" in record]
    for line, record in zip(valid, records, strict=True):
        assert int(line["valid_num_updates"]) == record["iter"]
        for name in ("acc_end", "acc_tot", "score2_acc", "wk0_acc", "ff1_loss"):
            assert float(line[f"valid_{name}"]) == pytest.approx(record[name], abs=1e-4)
        assert float(line["valid_loss"]) == pytest.approx(record["loss"] / math.log(2), rel=1e-5)
    assert float(valid[-1]["valid_best_acc_end"]) == pytest.approx(
        max(record["acc_end"] for record in records), abs=1e-5
    )


@pytest.mark.parametrize("updates", [4, 8])
def test_probes_of_a_checkpoint_are_those_that_were_logged(logged, updates):
    (path,) = logged.glob(f"checkpoint_*_{updates}.pt")
    found = recomputed_probes(load_run(path))
    line = of_training(read_probes(logged))[updates]
    assert {"acc_end_test", "wo1_acc", "wk0_16_acc", "ff1_loss", "norm_layers.0.wk.weight"} <= set(found)
    for name, value in found.items():
        assert line[name] == (pytest.approx(value, rel=1e-12) if "norm" in name or "loss" in name else value), name


def test_a_killed_run_goes_on_with_the_same_values(logged, tmp_path):
    """From the middle of the second epoch, with what was written after the checkpoint."""
    shutil.copyfile(logged / "checkpoint_2_8.pt", tmp_path / "checkpoint_last.pt")
    (tmp_path / "probes.jsonl").write_text((logged / "probes.jsonl").read_text() + '{"iter": 14, "ep')
    train(tmp_path, *WHOLE, *PROBES)
    assert without_time(read_probes(tmp_path)) == without_time(read_probes(logged))


def test_training_is_the_same_without_probes(logged, tmp_path):
    output = train(tmp_path, *WHOLE, "--no-epoch-checkpoints")
    assert '"valid_acc_end"' in output
    assert "score2_acc" not in output
    assert "wo1_acc" not in output
    assert not list(tmp_path.glob("*.jsonl"))
    ours, other = (
        torch.load(folder / "checkpoint_2_8.pt", weights_only=False)["model"] for folder in (tmp_path, logged)
    )
    assert all(torch.equal(ours[name], other[name]) for name in other)


def test_two_processes_with_micro_batches_write_what_one_process_does(logged, tmp_path):
    """In the first epoch, whose batches are in order, so that the sequences of an update are the same.

    In its last update the second process has one micro-batch, not two.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    flags = [*BASIC, "--max-update", 6, "--batch-size", 2, "--update-freq", 2, "--save-interval-updates", 4]
    flags += ["--distributed-world-size", 2, "--distributed-init-method", url, "--distributed-no-spawn"]
    flags += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-rank"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda rank: train(tmp_path, *flags, rank, *PROBES), range(2)))
    found, wanted = (without_time(read_probes(folder))[:5] for folder in (tmp_path, logged))
    lines = [(line["iter"], line.get("split")) for line in found]
    assert lines == [(0, None), (2, None), (4, "valid"), (4, None), (6, "valid")]
    for line, expected in zip(found, wanted, strict=True):
        inexact = {name for name in expected if "loss" in name or "norm" in name}
        assert {name: line[name] for name in line if name not in inexact} == {
            name: expected[name] for name in expected if name not in inexact
        }
        for name in inexact:
            assert line[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_updates_without_a_position_change_nothing_and_have_no_values(tmp_path):
    flags = ["--arch", "ihead_full", "--ihead-layers", 1, "--ihead-heads", 1, "--loss-head-only", "--num-triggers", 1]
    flags += ["--tokens-per-sample", 4, "--batch-size", 1, "--max-update", 12, "--momentum", 0, "--log-interval", 1]
    flags += ["--log-probes", "--log-norms", "--probe-interval", 1, "--probe-file", "mine.jsonl"]
    output = train(tmp_path, *flags, "--disable-validation", "--best-checkpoint-metric", "loss")
    records = read_probes(tmp_path / "mine.jsonl")
    empty = [record["loss"] is None for record in records]
    assert len(records) == 12
    assert 0 < sum(empty) < 11
    for record, following in pairwise(records):
        weights = [{name: line[name] for name in line if name.startswith("norm_")} for line in (record, following)]
        assert (weights[0] == weights[1]) == (record["loss"] is None)
        assert (record["acc_end"] is None) == (record["loss_head"] is None) == (record["loss"] is None)
        assert record["acc_end_test"] is not None, "the sequences of a validation that is left out"
        assert not any(record["loss"] is None and record[name] for name in record if name.startswith("gradnorm_"))
    probes = ("wo1_acc", "wk1_acc", "wk0_acc", "wk0_64_acc", "ff1_loss", "score2_acc", "score_cond_acc")
    assert {record[name] for record in records for name in probes} == {None}, "of one layer"
    assert any(record["score_acc"] is not None for record in records)
    assert "nan" not in output.lower()
