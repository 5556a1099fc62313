"""scripts/train_birth.sh and repro_birth.sh: recipes, going on, what a training leaves, the table of phenomena."""

import json
import re
import shutil

import pytest

from fairseq_transnorm.measure.birth_criteria import CRITERIA
from fairseq_transnorm.measure.probe_log import read_probes
from tests.cli.conftest import SCRIPT_ENV
from tests.helpers import ROOT, run_cli
from tests.unit.test_birth_criteria import good
from tests.unit.test_config_yaml import from_command

TEXT = ROOT / "tests/data/lighthouse.txt"
TINY = ["--ihead-dim", 24, "--tokens-per-sample", 32, "--num-triggers", 3, "--epoch-sequences", 48]
TINY += ["--valid-sequences", 16, "--probe-interval", 4, "--no-progress-bar", "--cpu"]


def train(folder, *flags, **env):
    return run_cli("scripts/train_birth.sh", TEXT, *TINY, *flags, env=SCRIPT_ENV | {"SAVE_DIR": folder} | env).stdout


def planned(*arguments, check=True, **env):
    env = SCRIPT_ENV | {"DRY_RUN": 1, "SEQUENCES": "", "BATCH_SIZE": ""} | env
    return run_cli("scripts/train_birth.sh", *arguments, env=env, check=check).stdout


def values(line):
    return {name: value for name, value in line.items() if name != "wall"}


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    """Within an epoch of 6 updates, with random triggers and matrices that are released before and after the stop."""
    freeze = "6:layers.0.wk.weight,10:layers.1.wo.weight"
    settings = {"TRIGGERS": "random", "LOSS": "all"}
    train(tmp_path / "whole", "--max-update", 13, "--freeze-until", freeze, **settings)
    train(tmp_path / "parts", "--max-update", 8, "--freeze-until", freeze, **settings)
    output = train(tmp_path / "parts", "--max-update", 13, "--freeze-until", freeze, **settings)
    assert "Going on from" in output
    assert "after 8 updates" in output
    whole, parts = read_probes(tmp_path / "whole"), read_probes(tmp_path / "parts")
    assert {line["iter"] for line in whole} >= {0, 4, 8, 12}
    after = [values(line) for line in whole if line["iter"] in (0, 4, 12)]
    assert after == [values(line) for line in parts if line["iter"] in (0, 4, 12)]


def test_the_settings_choose_the_recipe_and_the_user_s_flags_win():
    basic, full = planned(TEXT), planned(TEXT, "--lr", 0.5, ARCH="ihead_full", TRIGGERS="random", SEQUENCES=8)
    assert "Batch: 512 sequences x 256 tokens" in basic
    assert all(f"--{name} " in basic for name in ("fixed-triggers", "loss-head-only", "freeze-output"))
    assert "Batch: 8 sequences x 128 tokens" in full
    assert not any(f"--{name} " in full for name in ("fixed-triggers", "loss-head-only", "freeze-output"))
    assert full.strip().endswith("--lr 0.5")
    assert "--loss-head-only" in planned(TEXT, ARCH="ihead_full", LOSS="head")


def test_without_a_text_statistics_of_plays_go_into_the_save_folder(tmp_path):
    assert f"--bigram-stats {tmp_path}/run/bigrams.json " in planned("--save-dir", tmp_path / "run")
    assert "--bigram-stats" not in planned("--corpus", TEXT)
    assert "--bigram-stats counts.json " in planned("counts.json")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ARCH": "ihead_ful"}, "no recipe for ARCH=ihead_ful; there are: ihead_basic ihead_full transnormer_lm"),
        ({"LOSS": "tail"}, "LOSS is 'tail'; it can be: head all"),
        ({"TRIGGERS": "some"}, "TRIGGERS is 'some'; it can be: fixed random"),
    ],
)
def test_a_wrong_setting_is_refused(env, message):
    assert message in planned(TEXT, check=False, **env)


def test_a_text_that_is_not_there_is_refused():
    assert "no text or statistics nowhere.txt" in planned("nowhere.txt", check=False, DRY_RUN=0)


@pytest.mark.registered
@pytest.mark.filterwarnings("ignore")
def test_the_reproduction_has_commands_that_fairseq_takes_and_all_runs_of_the_criteria(tmp_path):
    env = SCRIPT_ENV | {"DRY_RUN": 1, "OUT": tmp_path, "SEQUENCES": "", "BATCH_SIZE": ""}
    lines = run_cli("scripts/repro_birth.sh", env=env).stdout.splitlines()
    commands = {re.search(rf"--save-dir {tmp_path}/(\S+)", line)[1]: line for line in lines if "fairseq-train" in line}
    assert {*good(), "keys-2", "keys-3", "example-1"} <= set(commands)
    assert "--seed 3 --data-seed 44 " in commands["keys-3"]
    runs = {name: from_command(line) for name, line in commands.items() if name.endswith("-1")}
    assert runs["keys-1"]["model.freeze_until"] == "200:layers.0.wk.weight,200:layers.1.wk.weight"
    assert runs["basic-1"]["criterion.loss_head_only"] is True
    assert runs["ffn-1"]["criterion.loss_head_only"] is False
    assert runs["example-1"]["dataset.batch_size"] == 64
    assert not list(tmp_path.iterdir())


def test_the_table_of_phenomena_tells_what_is_missed_by_its_status(tmp_path):
    for name, lines in good().items():
        (tmp_path / name).mkdir()
        lines = [{"epoch": 1, "wall": 0.0, "acc_end": None} | line for line in lines]
        (tmp_path / name / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_cli("analysis/birth/phenomena.py", tmp_path)
    assert done.stdout.count(" yes") == len(CRITERIA)
    shutil.copy(tmp_path / "wo2-1/probes.jsonl", tmp_path / "keys-1/probes.jsonl")
    done = run_cli("analysis/birth/phenomena.py", tmp_path, check=False)
    assert done.returncode == 3
    assert "1 of 20 criteria are missed" in done.stdout
