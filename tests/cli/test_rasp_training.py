"""Training on formal languages by fairseq-train: its end when all is right, and two processes."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from tests.helpers import run_cli
from tests.rasp_runs import COMMON, SMALL, WORSE, epochs, last, same_epochs, train

EASY = ["--language", "reverse_10", "--rasp-dim", 32, "--lr", 0.003, "--max-length", 2, "--batch-size", 50]
EASY += ["--train-size", 2000, "--valid-size", 200, "--test-size", 200, "--max-epoch", 9, "--log-interval", 10]
GAMMA = 0.5


def lines(output: str, key: str) -> list[dict[str, str]]:
    """The lines of fairseq's log that have a key."""
    return [json.loads(line[line.index("{") :]) for line in output.splitlines() if f'"{key}"' in line]


@pytest.fixture(scope="module")
def perfect(once: Callable[..., Path]) -> Path:
    """Folder of a run that ended since all was right, and its output. Read it only."""

    def build(folder: Path) -> None:
        # validated in the middle of epochs too, where it is right as well, and on a second set, which does not count
        flags = ["--gamma", GAMMA, "--validate-interval-updates", 15, "--valid-subset", "valid,train"]
        output = run_cli("fairseq-train", *COMMON, *EASY, *flags, "--save-dir", folder).stdout
        (folder / "output").write_text(output)

    return once("rasp_perfect", build)


def test_training_ends_after_three_perfect_epochs_of_which_the_last_can_be_the_best(perfect):
    records = epochs(perfect)
    accuracies = [record["valid"]["accuracy"] for record in records]
    assert accuracies[-3:] == [1, 1, 1]
    assert all(accuracies[at : at + 3] != [1, 1, 1] for at in range(len(accuracies) - 3))
    assert len(accuracies) < 9
    losses = [record["valid"]["loss"] for record in records]
    assert losses[-1] == min(losses)
    best = checkpoint_utils.load_checkpoint_to_cpu(str(perfect / "checkpoint_best.pt"))
    assert best["optimizer_history"][-1]["num_updates"] == records[-1]["updates"] == 40 * len(records)
    assert records[-1]["best"]
    assert records[-1]["stop"] == "perfect"
    output = (perfect / "output").read_text()
    assert "training ends: validation accuracy was 1 in 3 epochs in a row" in output
    middle = [line for line in lines(output, "valid_accuracy") if int(line["valid_num_updates"]) % 40]
    assert sum(line["valid_accuracy"] == "1" for line in middle) > 3, "they would have ended it before"


def test_the_log_has_the_rate_of_each_epoch_and_batches_of_50(perfect):
    output = (perfect / "output").read_text()
    updates = lines(output, "bsz")
    assert len(updates) == 4 * len(epochs(perfect))
    assert {float(line["bsz"]) for line in updates} == {50}
    rates = [(line["epoch"], float(line["lr"])) for line in updates]
    assert rates == [(epoch, pytest.approx(0.003 * GAMMA ** (epoch - 1))) for epoch, _ in rates]
    assert [record["lr"] for record in epochs(perfect)] == pytest.approx(
        [0.003 * GAMMA**epoch for epoch in range(len(epochs(perfect)))]
    )


def test_a_run_that_ended_trains_no_more_and_goes_on_when_more_is_asked(perfect, tmp_path):
    for file in perfect.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = epochs(tmp_path)
    train(tmp_path, *EASY, "--gamma", GAMMA)
    assert epochs(tmp_path) == before
    train(tmp_path, *EASY, "--gamma", GAMMA, "--perfect-acc-cut", 4)
    assert epochs(tmp_path)[:-1] == before
    assert epochs(tmp_path)[-1]["stop"] == "perfect"


def test_two_processes_train_as_one_and_restore_alike(tmp_path):
    """Batches of 4 and 4 are those of 8, in order; the last of an epoch has 3 of them, all in the first process."""
    flags = [*WORSE, "--train-size", 35, "--curriculum", 9, "--max-epoch", 5]
    flags += ["--optimizer", "sgd", "--lr", 0.03, "--attn-loss-weight", 10]
    train(tmp_path / "one", *flags, "--batch-size", 8)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    both = [*COMMON, *SMALL, *flags, "--batch-size", 4, "--save-dir", tmp_path / "two", "--distributed-world-size", 2]
    both += ["--distributed-init-method", url, "--distributed-no-spawn", "--distributed-backend", "gloo"]
    both += ["--ddp-backend", "legacy_ddp", "--distributed-rank"]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda rank: run_cli("fairseq-train", *both, rank).stdout, range(2)))
    # the second process says nothing; if it had not restored, its gradients would be others
    assert "epoch 4 begins with the weights of epoch 1" in outputs[0]
    same_epochs(tmp_path / "two", tmp_path / "one", rel=1e-5)
    ours, other = last(tmp_path / "two"), last(tmp_path / "one")
    for name, weight in other.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6)
