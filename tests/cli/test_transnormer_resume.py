"""A run that was stopped, or killed at any moment, goes on as if nothing had happened."""

import random
import signal
import subprocess
import time

import pytest
import torch

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.logs import read_log
from tests.cli.conftest import SCRIPT_ENV
from tests.helpers import cli_env, command_line, run_cli

UPDATES = 29  # 8 are an epoch
FLAGS = ["--user-dir", USER_DIR, "--task", "language_modeling", "--arch", "transnormer_lm_tiny", "--cpu"]
FLAGS += ["--tokens-per-sample", 32, "--batch-size", 16, "--optimizer", "adam", "--lr", 1e-3]
FLAGS += ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", 4, "--dropout", 0.1, "--disable-validation"]
FLAGS += ["--save-interval-updates", 3, "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", 1]

# Python runs this as sitecustomize.py at its start when PYTHONPATH has it. It kills the process in the COUNT-th call of
# FUNCTION that concerns a checkpoint: in the middle of copying one, or just before a whole one gets its name.
KILLER = """
import os, shutil, signal

function, count = os.environ["KILL_IN"].split(":")
calls = 0

def strike(target):
    global calls
    calls += str(target).removesuffix(".tmp").endswith(".pt")
    return calls == int(count) and str(target).removesuffix(".tmp").endswith(".pt")

def copyfile(source, target, _real=shutil.copyfile):
    if not strike(target):
        return _real(source, target)
    with open(source, "rb") as whole, open(target, "wb") as part:
        part.write(whole.read()[: os.path.getsize(source) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

def before(real):
    def move(source, target):
        if strike(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, target)
    return move

if function == "copyfile":
    shutil.copyfile = copyfile
else:
    setattr(os, function, before(getattr(os, function)))
"""


def arguments(data, folder, updates=UPDATES):
    return [data, *FLAGS, "--max-update", updates, "--save-dir", folder, "--log-file", folder / "train.log"]


def training(folder):
    """Loss of each update in bits, learning rate, and gradient norm, as logged."""
    rows = [row for row in read_log(folder / "train.log") if row["split"] == "train_inner"]
    return [(row["updates"], row["loss"], row["lr"], row["gnorm"]) for row in rows]


def assert_same_run(folder, uninterrupted):
    assert training(folder) == training(uninterrupted)
    got, expected = (torch.load(f / "checkpoint_last.pt") for f in (folder, uninterrupted))
    assert got["optimizer_history"][-1]["num_updates"] == UPDATES
    for name, weight in expected["model"].items():
        assert torch.equal(got["model"][name], weight), name
    moments = [state["last_optimizer_state"]["state"] for state in (got, expected)]
    for key, state in moments[1].items():
        assert all(torch.equal(torch.as_tensor(moments[0][key][k]), torch.as_tensor(v)) for k, v in state.items())


@pytest.fixture(scope="session")
def uninterrupted(once, tiny_lm_data):
    folder = once("uninterrupted", lambda folder: run_cli("fairseq-train", *arguments(tiny_lm_data, folder)))
    assert [updates for updates, *_ in training(folder)] == list(range(1, UPDATES + 1))
    return folder


# at the end of the first epoch, and within the second
@pytest.mark.parametrize("updates", [8, 10])
def test_a_stopped_run_goes_on_bit_for_bit(updates, uninterrupted, tiny_lm_data, tmp_path):
    run_cli("fairseq-train", *arguments(tiny_lm_data, tmp_path, updates))
    assert load_run(tmp_path / "checkpoint_last.pt").updates == updates
    run_cli("fairseq-train", *arguments(tiny_lm_data, tmp_path))
    assert_same_run(tmp_path, uninterrupted)


# Checkpoints are written at updates 3, 6, 8 (the end of the epoch), 9, 12 and so on. Each is written under a temporary
# name and renamed; but for the ends of epochs it is then copied to checkpoint_last.pt.
@pytest.mark.parametrize(("moment", "left"), [("copyfile:2", 3), ("replace:2", 3), ("rename:3", 6)])
def test_a_run_killed_while_saving_goes_on(moment, left, uninterrupted, tiny_lm_data, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    env = {"PYTHONPATH": tmp_path, "KILL_IN": moment}
    killed = run_cli("fairseq-train", *arguments(tiny_lm_data, tmp_path), env=env, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-2000:]
    assert load_run(tmp_path / "checkpoint_last.pt").updates == left
    output = run_cli("fairseq-train", *arguments(tiny_lm_data, tmp_path)).stdout
    assert f"@ {left} updates" in output.partition("begin training")[0]
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_killed_at_random_moments_goes_on(uninterrupted, tiny_lm_data, tmp_path):
    command = [*command_line("fairseq-train"), *map(str, arguments(tiny_lm_data, tmp_path))]
    log, rng = tmp_path / "train.log", random.Random(1)
    for _ in range(2):
        seen = log.read_text().count("num_updates") if log.exists() else 0
        with subprocess.Popen(command, env=cli_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (not log.exists() or log.read_text().count("num_updates") < seen + 4):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
        assert process.returncode == -signal.SIGKILL, "it ended by itself: nothing was tested"
    run_cli("fairseq-train", *arguments(tiny_lm_data, tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_the_script_goes_on_and_then_has_nothing_to_do(tiny_lm_data, tmp_path):
    env = SCRIPT_ENV | {"ARCH": "transnormer_lm_tiny", "SAVE_DIR": tmp_path}
    flags = ["--tokens-per-sample", 32, "--log-interval", 1]
    run_cli("scripts/train_alm.sh", tiny_lm_data, *flags, "--max-update", 2, env=env)
    output = run_cli("scripts/train_alm.sh", tiny_lm_data, *flags, "--max-update", 4, env=env).stdout
    assert f"Going on from {tmp_path}/checkpoint_last.pt after 2 updates." in output
    assert [updates for updates, *_ in training(tmp_path)] == [1, 2, 3, 4]
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    output = run_cli("scripts/train_alm.sh", tiny_lm_data, *flags, "--max-update", 4, env=env).stdout
    assert "Nothing to do" in output
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
    # Each start that trained left its command, and what it ran on.
    log = (tmp_path / "command.log").read_text()
    assert log.count("fairseq-train --user-dir") == 2
    assert "torch " in log
    assert "commit " in log
