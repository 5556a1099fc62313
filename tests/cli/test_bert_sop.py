"""Pretraining on documents through fairseq's own commands: save, go on, validate, two processes."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fairseq_transnorm import USER_DIR
from tests.helpers import run_cli

TASK = ["--user-dir", USER_DIR, "--task", "bert_sop_lm", "--criterion", "bert_sop", "--cpu"]
TASK += ["--tokens-per-sample", 48, "--word-kind", "words", "--required-batch-size-multiple", 1]
# 2 micro-batches of 8 samples an update; an epoch has about 11 updates
RUN = [*TASK, "--arch", "dslm_bert_tiny", "--encoder-layers", 2, "--batch-size", 8, "--dropout", 0]
RUN += ["--attention-dropout", 0, "--optimizer", "adam", "--lr", 3e-3, "--lr-scheduler", "inverse_sqrt"]
RUN += ["--warmup-updates", 4, "--seed", 7, "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", 1]
UPDATES = 40


def train(data, folder, updates, *flags):
    flags = [*RUN, "--max-update", updates, "--save-dir", folder, "--log-file", folder / "train.log", *flags]
    return run_cli("fairseq-train", data, *flags).stdout


def log_rows(folder, name):
    """Lines of the log that have ``name``, as dictionaries of numbers, by their updates."""
    # fairseq writes some of its lines several times
    lines = [
        json.loads(line) for line in (folder / "train.log").read_text().splitlines() if line.startswith('{"epoch"')
    ]
    rows = [{key: float(value) for key, value in line.items()} for line in lines if name in line]
    return list({row.get("num_updates", row.get("valid_num_updates")): row for row in rows}.values())


def losses(folder, names=("loss", "lm_loss", "sop_loss", "sop_accuracy", "micro_ppl", "gnorm")):
    return {int(row["num_updates"]): [row[name] for name in names] for row in log_rows(folder, "num_updates")}


@pytest.fixture(scope="session")
def uninterrupted(once, documents):
    return once("bert_sop", lambda folder: train(documents, folder, UPDATES, "--update-freq", 2))


def test_it_learns_words_and_orders_and_validates_on_the_same_masks(uninterrupted, documents):
    rows = log_rows(uninterrupted, "valid_loss")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["valid_lm_loss"] < rows[0]["valid_lm_loss"] - 0.1
    assert rows[-1]["valid_ppl"] == pytest.approx(2 ** rows[-1]["valid_lm_loss"], rel=1e-2)
    assert 0 <= rows[-1]["valid_sop_accuracy"] <= 100
    # the end of the training was validated on these masks, in batches of another size and in a process of its own
    flags = [*TASK, "--path", uninterrupted / "checkpoint_last.pt", "--batch-size", 3, "--num-workers", 2]
    output = run_cli("fairseq-validate", documents, *flags).stdout
    found = {name: float(value) for name, value in re.findall(r"(\w+) (\d+(?:\.\d+)?) ", output)}
    for name in ("lm_loss", "sop_loss", "sop_accuracy"):
        assert found[name] == pytest.approx(rows[-1][f"valid_{name}"], abs=2e-3), name
    assert found["micro_ppl"] != rows[-1]["valid_micro_ppl"], "which depends on the batches"


def test_a_stopped_run_goes_on_bit_for_bit_and_checkpointed_activations_change_nothing(
    uninterrupted, documents, tmp_path
):
    expected = losses(uninterrupted)
    first_epoch = int(log_rows(uninterrupted, "valid_loss")[0]["valid_num_updates"])
    stop = first_epoch + 4
    train(documents, tmp_path, stop, "--update-freq", 2, "--num-workers", 2, "--checkpoint-activations")
    assert losses(tmp_path) == {update: expected[update] for update in range(1, stop + 1)}
    output = train(documents, tmp_path, UPDATES, "--update-freq", 2, "--num-workers", 2)
    assert f"(epoch 2 @ {stop} updates)" in output.partition("begin training")[0]
    assert losses(tmp_path) == expected
    got, weights = (torch.load(f / "checkpoint_last.pt")["model"] for f in (tmp_path, uninterrupted))
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[name], weights[name]) for name in weights)


def test_two_processes_are_as_good_as_two_micro_batches(uninterrupted, documents, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    workers = ["--distributed-world-size", 2, "--distributed-init-method", url, "--distributed-no-spawn"]
    workers += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    updates = int(
        log_rows(uninterrupted, "valid_loss")[0]["valid_num_updates"]
    )  # an epoch, its odd last batch included
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(train, documents, tmp_path, updates, *workers, "--distributed-rank", rank) for rank in range(2)
        ]
        for run in runs:
            run.result()
    expected = losses(uninterrupted)
    for update, values in losses(tmp_path).items():
        assert values == pytest.approx(expected[update], rel=2e-3, abs=2e-3), f"update {update}"
    (got, *_), (wanted, *_) = (log_rows(folder, "valid_loss") for folder in (tmp_path, uninterrupted))
    for name in ("lm_loss", "sop_loss", "sop_accuracy", "micro_ppl"):
        assert got[f"valid_{name}"] == pytest.approx(wanted[f"valid_{name}"], rel=2e-3), name
