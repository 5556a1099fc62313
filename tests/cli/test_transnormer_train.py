"""fairseq-train and fairseq-hydra-train on every architecture, in one process and several."""

import math
import re

import pytest
import torch

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.logs import read_log
from tests.cli.conftest import SCRIPT_ENV
from tests.helpers import ROOT, run_cli

TINY = ["--user-dir", USER_DIR, "--task", "language_modeling", "--arch", "transnormer_lm_tiny", "--cpu"]
TINY += ["--tokens-per-sample", 32, "--batch-size", 4, "--optimizer", "adam", "--lr", 1e-3, "--max-update", 3]
TINY += ["--log-format", "json", "--log-interval", 1, "--disable-validation"]


def losses(log):
    """Training loss of each update, in bits."""
    return [(row["updates"], row["loss"]) for row in read_log(log) if row["split"] == "train_inner"]


def weights(checkpoint):
    return torch.load(checkpoint)["model"]


# The published size has 155,988,540 parameters with 267,744 symbols; the toy corpus has 72.
@pytest.mark.parametrize("arch", ["transnormer_lm", "transnormer_t1", "transnormer_t2"])
def test_one_update_of_each_architecture(arch, tiny_lm_data):
    flags = ["--arch", arch, "--max-update", 1, "--update-freq", 1, "--batch-size", 2, "--no-save"]
    output = run_cli("fairseq-train", tiny_lm_data, *TINY, *flags).stdout
    count = int(re.search(r"num. shared model params: ([\d,]+)", output)[1].replace(",", ""))
    assert count == 155_988_540 - (267_744 - 72) * 512
    assert re.search(r'"train_num_updates": "1"', output)
    loss = float(re.search(r'"train_loss": "([\d.]+)"', output)[1])
    assert math.log2(72) - 1 < loss < 20  # untrained: it expects each symbol to come again


def test_hydra_trains_a_yaml_run_with_overrides(tiny_lm_data, tmp_path):
    changes = {
        "task.data": tiny_lm_data,
        "checkpoint.save_dir": tmp_path,
        "task.tokens_per_sample": 32,
        "model.decoder_embed_dim": 32,
        "model.decoder_layers": 2,
        "model.block_size": 8,
        "dataset.batch_size": 4,
        "optimization.max_update": 2,
        "common.log_interval": 1,
        "common.cpu": "true",
    }
    folder = ROOT / "fairseq_transnorm/config/transnormer"
    overrides = [f"{name}={value}" for name, value in changes.items()]
    run_cli("fairseq-hydra-train", "--config-dir", folder, "--config-name", "demo", *overrides)
    run = load_run(tmp_path / "checkpoint_last.pt")
    assert run.updates == 2
    assert [updates for updates, _ in losses(tmp_path / "train.log")] == [1, 2]
    decoder = run.model.decoder
    assert (len(decoder.layers), decoder.embed_tokens.embedding_dim, decoder.limit) == (2, 32, 32)
    assert decoder.layers[0].attn.block_size == 8
    assert run.cfg.model.chunk_length == 64  # a default that neither the file nor the command line names


def test_recomputing_activations_changes_no_number(tiny_lm_data, tmp_path):
    for name, flags in {"kept": [], "again": ["--checkpoint-activations"]}.items():
        where = ["--save-dir", tmp_path / name, "--log-file", tmp_path / f"{name}.log"]
        run_cli("fairseq-train", tiny_lm_data, *TINY, *where, *flags, "--no-epoch-checkpoints")
    assert losses(tmp_path / "kept.log") == losses(tmp_path / "again.log")
    assert len(losses(tmp_path / "kept.log")) == 3
    kept, again = (weights(tmp_path / name / "checkpoint_last.pt") for name in ("kept", "again"))
    for name in kept:
        torch.testing.assert_close(kept[name], again[name], rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="session")
def one_process(once, tiny_lm_data):
    """Three updates of 8 sequences in one process."""
    return once("one_process", lambda folder: train_by_script(tiny_lm_data, folder, NPROC=1))


def train_by_script(data, folder, command=("scripts/train_alm.sh",), **env):
    # The processes draw other dropout masks than one alone.
    flags = ["--tokens-per-sample", 32, "--max-update", 3, "--dropout", 0, "--log-interval", 1, "--lr", 1e-3]
    flags += ["--warmup-updates", 1, "--disable-validation"]
    env = SCRIPT_ENV | {"ARCH": "transnormer_lm_tiny", "BATCH_SIZE": 2, "SAVE_DIR": folder} | env
    return run_cli(*command, data, *flags, env=env)


def assert_same_training(one, other):
    assert losses(one / "train.log") == losses(other / "train.log")
    assert len(losses(one / "train.log")) == 3
    a, b = (weights(folder / "checkpoint_last.pt") for folder in (one, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_train_like_one_with_twice_the_update_freq(one_process, tiny_lm_data, tmp_path):
    output = train_by_script(tiny_lm_data, tmp_path, NPROC=2).stdout
    assert (
        "Batch: 8 sequences x 32 tokens = 256 tokens per update (2 sequences in each of 2 processes, 2 times)" in output
    )
    assert "--update-freq 4" in (one_process / "command.log").read_text()
    assert_same_training(one_process, tmp_path)


def test_torchrun_on_a_cpu_trains_like_one_process(one_process, tiny_lm_data, tmp_path):
    launcher = ["torchrun", "--standalone", "--nproc-per-node", 2, "--no-python", ROOT / "scripts/train_alm.sh"]
    train_by_script(tiny_lm_data, tmp_path, launcher)
    assert (tmp_path / "command.log").read_text().count("fairseq-train ") == 1  # the first process writes it
    assert_same_training(one_process, tmp_path)
