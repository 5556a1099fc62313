"""The grid of learning rates and weight decays as a user calls it, and killed in the middle."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.growth_grid import Grid, norms, train_cell
from tests.helpers import ROOT, cli_env, command_line, run_cli, someone_left

GRID = "analysis/normgrowth/grid.py"
MODEL = "--arch normgrowth_pre_norm --decoder-layers 2 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16"
MODEL += " --decoder-attention-heads 2 --tokens-per-sample 64 --max-epoch 3"
CELLS = ["--lr", 0.1, 0.01, 0.001, "--weight-decay", 0.1, 0.001]
DEADLINE = 90  # seconds for the first cell


@pytest.fixture
def one_thread():
    """As a cell is computed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def wait_until_nobody_is_left(group):
    end = time.monotonic() + 20
    while someone_left(group) and time.monotonic() < end:
        time.sleep(0.05)
    return not someone_left(group)


def test_a_cell_is_what_fairseq_train_computes(fairseq_lm, tiny_lm_data, one_thread):
    """To the bit, although that run validated and saved."""
    cfg = load_run(fairseq_lm).cfg
    flags = "--arch transformer_lm --decoder-embed-dim 48 --decoder-input-dim 48 --decoder-output-dim 48"
    flags += " --decoder-ffn-embed-dim 192 --decoder-attention-heads 2 --decoder-layers 2 --decoder-normalize-before"
    flags += " --share-decoder-input-output-embed --tokens-per-sample 64 --sample-break-mode none --batch-size 8"
    flags += " --required-batch-size-multiple 8 --max-epoch 9 --max-update 20"
    rate, decay = cfg.optimization.lr[0], cfg.optimizer.weight_decay
    row = train_cell(Grid(tiny_lm_data, tuple(flags.split()), seed=cfg.common.seed), rate, decay)
    assert row["updates"] == 20
    model = load_run(fairseq_lm).model
    assert {scope: row[f"{scope}_after"] for scope in ("layers", "all", "linear")} == norms(model)


def test_killed_grid_goes_on(tiny_lm_data, tmp_path, one_thread):
    """A kill loses the cells under way; one process and two give the same numbers."""
    out, cells = tmp_path / "grid", tmp_path / "grid_cells"
    args = [GRID, tiny_lm_data, *CELLS, "--out", out, "--quantity", "all"]
    command = [*command_line(GRID), *map(str, args[1:]), "--processes", "2", "--", *MODEL.split()]
    with subprocess.Popen(command, cwd=ROOT, env=cli_env(), stdout=subprocess.DEVNULL, start_new_session=True) as grid:
        end = time.monotonic() + DEADLINE
        while not list(cells.glob("lr*.json")) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(grid.pid, signal.SIGKILL)  # its processes must see by themselves that they are alone
    assert wait_until_nobody_is_left(grid.pid)
    finished = {path.name: path.stat().st_mtime_ns for path in cells.glob("lr*.json")}
    assert 1 <= len(finished) < 6

    printed = run_cli(*args, "--check", "--", *MODEL.split(), check=False)
    assert printed.returncode in (0, 3), printed.stdout
    assert "growth where η is 0.01 or more" in printed.stdout
    assert {name: (cells / name).stat().st_mtime_ns for name in finished} == finished, "no finished cell was done again"
    assert len(list(cells.glob("lr*.json"))) == 6
    rows = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert [(row["lr"], row["weight_decay"]) for row in rows] == [
        (lr, wd) for lr in (0.1, 0.01, 0.001) for wd in (0.1, 0.001)
    ]
    assert all(row["updates"] == 57 for row in rows), "three epochs of 300 sentences, 16 at a time"
    for row in rows:
        if f"lr{row['lr']}_wd{row['weight_decay']}.json" in finished:
            assert train_cell(Grid(tiny_lm_data, tuple(MODEL.split())), row["lr"], row["weight_decay"]) == row
            break
