"""What scripts/train_alm.sh asks of fairseq on different machines, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fairseq_transnorm import USER_DIR
from tests.cli.conftest import SCRIPT_ENV
from tests.helpers import ROOT, cli_env, command_line, run_cli, someone_left

PAPER = SCRIPT_ENV | {"SEQUENCES": 128, "BATCH_SIZE": 8, "DRY_RUN": 1}
TORCHRUN = {"WORLD_SIZE": 16, "RANK": 0, "MASTER_ADDR": "host", "MASTER_PORT": 29500}
SLURM = {"SLURM_JOB_ID": 77, "SLURM_STEP_ID": 0, "SLURM_NNODES": 2, "SLURM_NTASKS": 2, "SLURM_PROCID": 0}


def planned(data, *flags, **env):
    return run_cli("scripts/train_alm.sh", data, *flags, env=PAPER | env, check=False)


# 128 sequences whatever the number of processes; machines of one GPU and many, many machines, several CPU processes
@pytest.mark.parametrize(
    ("env", "flags", "update_freq", "told"),
    [
        ({}, [], 16, ["--cpu", "--distributed-world-size 1"]),
        ({"GPUS": 1}, [], 16, []),
        ({"GPUS": 8}, [], 2, []),
        ({"GPUS": 8}, ["--cpu"], 16, ["--cpu", "--distributed-world-size 1"]),
        ({"GPUS": 8, "BATCH_SIZE": 16}, [], 1, []),
        ({"GPUS": 4}, ["--batch-size=4"], 8, []),
        ({"GPUS": 4}, ["--max-tokens", 1024], 16, []),
        ({"GPUS": 4, "BATCH_SIZE": ""}, ["--max-tokens", 8192], 2, ["--batch-size 16"]),
        ({"GPUS": 4}, ["--distributed-world-size", 2], 8, []),
        ({"NPROC": 2}, [], 8, ["--distributed-backend gloo", "--ddp-backend legacy_ddp", "--distributed-rank 1"]),
        ({"GPUS": 8} | TORCHRUN, [], 1, ["--distributed-world-size 16"]),
        ({"GPUS": 1} | TORCHRUN | {"WORLD_SIZE": 2}, [], 8, ["--distributed-world-size 2"]),
        ({"GPUS": 8} | SLURM, [], 1, ["--distributed-world-size 16", "--distributed-port 10077"]),
        ({"GPUS": 1} | SLURM, [], 8, ["--distributed-world-size 2", "--distributed-port 10077"]),
        ({"GPUS": 8} | SLURM | {"SLURM_NTASKS": 16}, [], 1, ["--distributed-world-size 16"]),
    ],
)
def test_the_batch_of_the_paper_holds_on_every_machine(env, flags, update_freq, told, tiny_lm_data):
    result = planned(tiny_lm_data, *flags, **env)
    assert result.returncode == 0, result.stdout
    assert "Batch: 128 sequences x 512 tokens = 65536 tokens per update" in result.stdout
    command = result.stdout[result.stdout.index("fairseq-train") :]
    assert f"--update-freq {update_freq} " in command
    for flag in told:
        assert flag in command


def test_bfloat16_without_a_tpu_is_refused(tiny_lm_data):
    result = planned(tiny_lm_data, "--bf16")
    assert result.returncode == 1
    assert "--bf16 is for TPUs, and torch_xla is not installed; on GPUs use --amp or --fp16" in result.stdout


def test_a_batch_that_cannot_be_reached_is_refused_with_what_can(tiny_lm_data):
    result = planned(tiny_lm_data, GPUS=8, BATCH_SIZE=32)
    assert result.returncode == 1
    assert "128 sequences per update cannot be made of 32 a process and 8 processes" in result.stdout
    assert "may be: 1 2 4 8 16." in result.stdout
    result = planned(tiny_lm_data, GPUS=3)
    assert result.returncode == 1
    assert "128 sequences per update cannot be shared by 3 processes equally" in result.stdout
    result = planned(tiny_lm_data, "--max-tokens", 100, GPUS=1)
    assert result.returncode == 1
    assert "--max-tokens 100 has no room for a sequence of --tokens-per-sample 512" in result.stdout


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"GPUS": 2, "NPROC": 2}, "NPROC=2 is for CPUs"),
        ({"NPROC": "two"}, "NPROC is 'two', not a whole number"),
        ({"BATCH_SIZE": 0}, "the batch size is '0', not a whole number"),
        ({"GPUS": 8} | SLURM | {"SLURM_STEP_ID": ""}, "start it with srun"),
        ({"GPUS": 1} | SLURM | {"SLURM_NTASKS": 16}, "not --gpus-per-task"),
        (SLURM, "start torchrun on each node"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_settings_are_refused(env, message, tiny_lm_data):
    result = planned(tiny_lm_data, **env)
    assert result.returncode == 1
    assert message in result.stdout


def test_the_user_s_flags_come_last_and_a_batch_of_their_own_is_told(tiny_lm_data, tmp_path):
    flags = ["--update-freq", 3, "--lr", 1e-3, "--save-dir", tmp_path / "run", "--tokens-per-sample", 64]
    output = planned(tiny_lm_data, *flags).stdout
    assert "Batch: 24 sequences x 64 tokens = 1536 tokens per update" in output
    assert output.strip().endswith(" ".join(map(str, flags)))
    assert f"--log-file {tmp_path}/run/train.log" in output
    assert f"--user-dir {USER_DIR} " in output
    assert not (tmp_path / "run").exists(), "DRY_RUN made something"


@pytest.mark.parametrize(
    ("env", "flags", "steps"),
    [
        ({}, [], 1600),
        ({"NPROC": 2, "BATCH_SIZE": 16}, [], 400),
        ({"BATCH_SIZE": 3, "SEQUENCES": 6}, [], 4267),
        ({}, ["--batch-size-valid", 256], 50),
    ],
)
def test_validation_of_a_pretraining_reads_as_many_sequences_on_every_machine(env, flags, steps, tiny_lm_data):
    """50 batches of 256; fairseq does one step more than it is told."""
    env = {"DRY_RUN": 1, "GPUS": 0, "BATCH_SIZE": ""} | env
    output = run_cli("scripts/train_dslm_bert.sh", tiny_lm_data, *flags, env=env).stdout
    assert f"--max-valid-steps {steps - 1} " in output


def test_help_is_the_comment_of_the_script(tiny_lm_data):
    tuning = [f"finetune_{task}" for task in ("glue", "mnli", "qqp", "race")]
    for script in ("train_alm", "eval_alm", "generate", "train_blm", "eval_blm", *tuning):
        output = run_cli(f"scripts/{script}.sh", "--help").stdout
        assert f"scripts/{script}.sh" in output
        assert "set -euo" not in output


def copy_of_scripts(folder):
    (folder / "scripts").mkdir()
    for name in ("_run.sh", "train_alm.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    return folder / "scripts/train_alm.sh"


def start(script, data, path, **env):
    env = cli_env(PAPER | {"PATH": path, "VIRTUAL_ENV": "", "CONDA_PREFIX": ""} | env)
    return subprocess.run(["bash", script, data], env=env, capture_output=True, text=True, check=False)


def test_without_fairseq_the_script_says_where_it_looked(tiny_lm_data, tmp_path):
    result = start(copy_of_scripts(tmp_path), tiny_lm_data, "/usr/bin:/bin")
    assert result.returncode == 1
    assert "no fairseq-train: not in an activated environment" in result.stderr
    assert "demo.sh" in result.stderr


def test_the_package_is_taken_from_the_repository_when_it_is_not_installed(tiny_lm_data, tmp_path):
    commands = tmp_path / ".venv/bin"
    commands.mkdir(parents=True)
    # -S: without site-packages
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (commands / "fairseq-train").write_text("#!/bin/sh\n")
    for path in commands.iterdir():
        path.chmod(0o755)
    result = start(copy_of_scripts(tmp_path), tiny_lm_data, "/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert f"--user-dir {tmp_path}/fairseq_transnorm " in result.stdout


def test_a_training_that_trained_nothing_fails(tiny_lm_data, tmp_path):
    flags = ["--distributed-init-method", "tcp://127.0.0.1:9", "--distributed-world-size", 2, "--tokens-per-sample", 32]
    env = SCRIPT_ENV | {"ARCH": "transnormer_lm_tiny", "BATCH_SIZE": 4, "SAVE_DIR": tmp_path}
    result = run_cli("scripts/train_alm.sh", tiny_lm_data, *flags, env=env, check=False)
    assert result.returncode == 1
    assert "ended without an error, but there is no new checkpoint" in result.stdout


def test_one_failing_process_ends_all(tiny_lm_data, tmp_path):
    env = SCRIPT_ENV | {"ARCH": "transnormer_lm_tiny", "NPROC": 2, "BATCH_SIZE": 2, "SAVE_DIR": tmp_path}
    flags = ["--tokens-per-sample", 32, "--block-size", 0]
    result = run_cli("scripts/train_alm.sh", tiny_lm_data, *flags, env=env, check=False, timeout=120)
    assert result.returncode == 1
    assert "--block-size 0 must be at least 1" in result.stdout
    assert result.stdout.strip().splitlines()[-1].startswith("error: fairseq-train ended with status")


@pytest.mark.parametrize(("sent", "processes"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_stopping_the_script_stops_its_processes(sent, processes, tiny_lm_data, tmp_path):
    settings = {"ARCH": "transnormer_lm_tiny", "NPROC": processes, "BATCH_SIZE": 2, "SAVE_DIR": tmp_path}
    flags = ["--tokens-per-sample", "32", "--log-interval", "1", "--max-update", "5000"]
    script = subprocess.Popen(
        [*command_line("scripts/train_alm.sh"), str(tiny_lm_data), *flags],
        env=cli_env(SCRIPT_ENV | settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        log, deadline = tmp_path / "train.log", time.monotonic() + 300
        while not (log.exists() and "num_updates" in log.read_text()):
            assert time.monotonic() < deadline, "training did not begin"
            assert script.poll() is None, "the script ended by itself"
            time.sleep(0.1)
        script.send_signal(sent)  # to the script alone
        assert script.wait(timeout=180) == 128 + sent
        while someone_left(script.pid):
            assert time.monotonic() < deadline, "its processes go on"
            time.sleep(0.1)
    finally:
        if someone_left(script.pid):
            os.killpg(script.pid, signal.SIGKILL)
        script.wait()


def test_a_fine_tuning_does_not_go_on_with_other_data(tmp_path):
    def note(start="a.pt", seed=1, **facts):
        script = 'source _run.sh; source _finetune.sh; task=$2 metric=accuracy facts=$5; note_run "$1" "$3" "$4"'
        arguments = [tmp_path / "run", "MNLI", start, seed, json.dumps({"rows": {"train": 2}} | facts)]
        command = ["bash", "-c", script, "-", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT / "scripts", env=cli_env(), capture_output=True, text=True)

    assert note().returncode == 0
    path = tmp_path / "run/finetune.json"
    old = {"task": "MNLI", "metric": "accuracy", "start": "a.pt", "seed": 1, "rows": {"train": 2}}
    assert json.loads(path.read_text()) == old
    assert note(dictionary_sha256="1", data_sha256="2").returncode == 0, "an older note tells less"
    whole = path.read_text()
    assert json.loads(whole) == old | {"dictionary_sha256": "1", "data_sha256": "2"}
    for change in ({"data_sha256": "3"}, {"dictionary_sha256": "x"}, {"seed": 2}, {"start": "b.pt"}):
        ((key, value),) = change.items()
        result = note(**change)
        assert result.returncode == 1
        assert f"{tmp_path}/run is of another fine-tuning: {key} " in result.stderr
        assert f"there, {value} now\nerror: give another SAVE_DIR" in result.stderr
    assert path.read_text() == whole
    assert [found.name for found in path.parent.iterdir()] == ["finetune.json"]
