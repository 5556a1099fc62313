"""scripts/train_birth.sh and repro_birth.sh: recipes, going on, what a training leaves, the table of phenomena."""

import json
import math
import re
import runpy
import shlex
import shutil

import numpy as np
import pytest
import torch

from fairseq_transnorm.data.bigram_statistics import count_file
from fairseq_transnorm.data.trigger_sequences import ReferenceSampler
from fairseq_transnorm.data.trigger_settings import TriggerSettings
from fairseq_transnorm.measure.birth_criteria import CRITERIA
from fairseq_transnorm.measure.checkpoints import read_mapped
from fairseq_transnorm.measure.probe_log import read_probes
from tests.cli.conftest import SCRIPT_ENV
from tests.cli.test_birth_probes import UPDATES, logged  # noqa: F401  (logged is a fixture)
from tests.helpers import BIN, ROOT, run_cli
from tests.unit.test_birth_criteria import good
from tests.unit.test_config_yaml import from_command

TEXT = ROOT / "tests/data/lighthouse.txt"
TINY = ["--ihead-dim", 24, "--tokens-per-sample", 32, "--num-triggers", 3, "--epoch-sequences", 48]
TINY += ["--valid-sequences", 16, "--probe-interval", 4, "--no-progress-bar", "--cpu"]

STAGED = ["--freeze-until", "6:layers.0.wk.weight,12:layers.1.wo.weight", "--log-norms", "--save-initial"]
STAGED += ["--curriculum", 3, "--lr", 2]  # batches in order in all epochs
SETTINGS = {"TRIGGERS": "random", "LOSS": "all"}


def train(folder, *flags, text=TEXT, check=True, **env):
    env = SCRIPT_ENV | {"SAVE_DIR": folder} | env
    return run_cli("scripts/train_birth.sh", text, *TINY, *flags, env=env, check=check).stdout


def planned(*arguments, check=True, **env):
    env = SCRIPT_ENV | {"DRY_RUN": 1, "SEQUENCES": "", "BATCH_SIZE": ""} | env
    return run_cli("scripts/train_birth.sh", *arguments, env=env, check=check).stdout


@pytest.fixture(scope="module")
def staged(once):
    """Folder of a run of 17 updates in epochs of 6, stopped after 8, and the output of its second start. Read it only.

    The key matrix of layer 1 is released before the stop, the output matrix of layer 2 after it.
    """

    def build(folder):
        train(folder, "--max-update", 8, *STAGED, **SETTINGS)
        output = train(folder, "--max-update", 17, *STAGED, **SETTINGS)
        (folder / "output.txt").write_text(output)

    return once("birth_staged", build)


def of_training(folder):
    return {line["iter"]: line for line in read_probes(folder) if "split" not in line}


def test_a_run_that_was_stopped_while_matrices_were_frozen_goes_on(staged):
    assert f"Going on from {staged}/checkpoint_last.pt after 8 updates" in (staged / "output.txt").read_text()
    lines = of_training(staged)
    assert list(lines) == [0, 4, 8, 12, 16]
    trained = {at: [name for name in line if name.startswith("norm_")] for at, line in lines.items()}
    assert trained[4] == ["norm_layers.1.wk.weight"]
    assert trained[8] == ["norm_layers.0.wk.weight", "norm_layers.1.wk.weight"]
    assert trained[12] == [*trained[8], "norm_layers.1.wo.weight"]
    assert lines[0]["wo1_acc"] == lines[12]["wo1_acc"]
    assert lines[12]["norm_layers.1.wo.weight"] != lines[16]["norm_layers.1.wo.weight"]


def test_a_run_does_not_go_on_with_another_text(staged, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT.read_text()[::-1])
    shutil.copy(staged / "checkpoint_last.pt", tmp_path)
    refused = train(tmp_path, "--max-update", 17, *STAGED, text=other, check=False, **SETTINGS)
    assert f"{tmp_path}/checkpoint_last.pt was trained on another text than {other}, with the same symbols" in refused
    assert "Nothing to do" not in refused


def test_training_is_a_plain_loop_over_the_formulas(staged):
    """SGD with momentum and decay on the mean loss, sequence after sequence, in one script of a few lines."""
    state = {name: tensor.double() for name, tensor in read_mapped(staged / "checkpoint_init.pt")["model"].items()}
    embeddings, positions, outputs = (state[name] for name in ("embed_tokens.weight", "positions", "output.weight"))
    sampler = ReferenceSampler(count_file(TEXT), TriggerSettings(num_triggers=3, length=32))
    release = {"layers.1.wk.weight": 0, "layers.0.wk.weight": 6, "layers.1.wo.weight": 12}
    velocity = dict.fromkeys(release, 0.0)
    future = torch.full((32, 32), -math.inf, dtype=torch.float64).triu(1)
    losses = []
    for update in range(17):
        epoch, first = update // 6 + 1, update % 6 * 8
        rngs = [np.random.default_rng([42, 0, epoch, number]) for number in range(first, first + 8)]
        tokens = torch.from_numpy(sampler.sequences(rngs).tokens)
        for name in release:
            state[name].requires_grad_()
        h = embeddings[tokens[:, :-1]] + positions
        for layer in ("layers.0", "layers.1"):
            wk, wv, wo = (state[f"{layer}.{name}.weight"] for name in ("wk", "wv", "wo"))
            weights = (h @ (h @ wk.T).mT / math.sqrt(24) + future).softmax(-1)
            h = h + weights @ h @ wv.T @ wo.T
        loss = torch.nn.functional.cross_entropy((h @ outputs.T).flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, [state[name] for name in release])
        for (name, start), gradient in zip(release.items(), gradients, strict=True):
            if update >= start:
                velocity[name] = 0.9 * velocity[name] + gradient + 1e-4 * state[name].detach()
                state[name] = state[name].detach() - 2 * velocity[name]
    logged_losses = {at: line["loss"] for at, line in of_training(staged).items()}
    assert logged_losses == pytest.approx({at: losses[at] for at in (0, 4, 8, 12, 16)}, rel=1e-5)
    assert losses[16] < losses[0] - 0.2, "it learns something"


def test_the_settings_choose_the_recipe_and_the_user_s_flags_win():
    basic, full = planned(TEXT), planned(TEXT, "--lr", 0.5, ARCH="ihead_full", TRIGGERS="random", SEQUENCES=8)
    assert "Batch: 512 sequences x 256 tokens" in basic
    assert all(f"--{name} " in basic for name in ("fixed-triggers", "loss-head-only", "freeze-output"))
    assert "Batch: 8 sequences x 128 tokens" in full
    assert not any(f"--{name} " in full for name in ("fixed-triggers", "loss-head-only", "freeze-output"))
    assert full.strip().endswith("--lr 0.5")
    other = planned(TEXT, "--optimizer", "sgd", ARCH="ihead_full", LOSS="head")
    assert "--loss-head-only" in other
    assert "--momentum 0.9 " in other
    assert "--adam-betas" not in other
    assert "--best-checkpoint-metric acc_end --maximize" in basic
    assert "-best-checkpoint-metric" not in planned(TEXT, "--num-triggers", 0, LOSS="all")


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


def test_a_text_that_is_none_and_a_seed_that_is_none_are_refused(tmp_path):
    for wrong in ("nowhere.txt", tmp_path):
        assert f"{wrong} is no file of text or statistics" in planned(wrong, check=False, DRY_RUN=0)
    for name, value in {"CORPUS": tmp_path, "SEED": "one"}.items():
        refused = run_cli("scripts/repro_birth.sh", env=SCRIPT_ENV | {"DRY_RUN": 1, name: value}, check=False)
        assert refused.returncode == 1
        assert re.search(rf"error: {name}:? .*{value}.*, (not a|or it)", refused.stdout)


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


@pytest.mark.registered
@pytest.mark.filterwarnings("ignore")
def test_linear_attention_is_trained_beside_softmax_with_the_same_settings(tmp_path):
    env = SCRIPT_ENV | {"DRY_RUN": 1, "OUT": tmp_path, "SEQUENCES": "", "BATCH_SIZE": "", "SEEDS": 1}
    lines = run_cli("scripts/repro/linear_induction.sh", env=env).stdout.splitlines()
    commands = {re.search(rf"--save-dir {tmp_path}/(\S+)", line)[1]: line for line in lines if "fairseq-train" in line}
    assert len(commands) == 9
    runs = {
        name: from_command(line) for name, line in commands.items() if name in ("softmax-1", "linear-1", "blocks-1")
    }
    parts = {"task", "criterion", "optimizer", "optimization", "dataset"}
    alike = [{key: value for key, value in run.items() if key.split(".")[0] in parts} for run in runs.values()]
    assert alike == [alike[0]] * 3
    assert runs["linear-1"]["model.layer_split"] == "0"
    assert runs["linear-1"]["model.dropout"] == 0
    assert (runs["blocks-1"]["model.layer_split"], runs["blocks-1"]["model.block_size"]) == ("0.5", 32)
    widths = [runs["softmax-1"]["model.ihead_dim"], runs["linear-1"]["model.decoder_embed_dim"]]
    assert widths == [64, 64]


def test_the_table_of_phenomena_tells_what_is_missed_by_its_status(tmp_path, capsys):
    for name, lines in good().items():
        (tmp_path / name).mkdir()
        lines = [{"epoch": 1, "wall": 0.0, "acc_end": None} | line for line in lines]
        (tmp_path / name / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert runpy.run_path(str(ROOT / "analysis/birth/phenomena.py"))["main"]([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" yes") == len(CRITERIA)
    shutil.copy(tmp_path / "wo2-1/probes.jsonl", tmp_path / "keys-1/probes.jsonl")
    done = run_cli("analysis/birth/phenomena.py", tmp_path, check=False)
    assert done.returncode == 3
    assert "1 of 20 criteria are missed" in done.stdout


def test_the_figures_of_the_reproduction_can_be_drawn(logged, tmp_path):  # noqa: F811
    """Its commands, noted by a stand-in for python, are run here: each would load torch anew."""
    environment, out, notes = tmp_path / "bin", tmp_path / "out", tmp_path / "notes"
    environment.mkdir()
    (environment / "fairseq-train").symlink_to(BIN / "fairseq-train")
    stand_in = f"""#!/usr/bin/env bash
        [[ $1 == analysis/* ]] || exec {BIN}/python "$@"
        (printf '%q ' "$@" && echo) >>{notes}
    """
    (environment / "python").write_text(stand_in)
    (environment / "python").chmod(0o755)
    env = SCRIPT_ENV | {"VIRTUAL_ENV": tmp_path, "OUT": out, "NO_VENV": 1, "SEEDS": 1, "MAX_UPDATE": UPDATES}
    env |= {"CORPUS": shutil.copy(TEXT, tmp_path)}
    printed = run_cli("scripts/repro_birth.sh", env=env | {"DRY_RUN": 1}).stdout
    out.mkdir()
    (out / "bigrams.json").write_text("before the runs")
    for name in re.findall(rf"--save-dir {out}/(\S+)", printed):
        shutil.copytree(logged, out / name)
        (out / name / "done").write_text("now")
    run_cli("scripts/repro_birth.sh", env=env)
    (tmp_path / TEXT.name).write_text("Another text")
    refused = run_cli("scripts/repro_birth.sh", env=env, check=False).stdout
    assert len(set(re.findall(rf"(?:it|now): +{tmp_path / TEXT.name} \(checksum (\d+) ", refused))) == 2, refused
    commands = [shlex.split(line) for line in notes.read_text().splitlines()]
    for script, *arguments in commands:
        status = runpy.run_path(str(ROOT / script))["main"](arguments)
        assert status == (1 if "phenomena" in script else 0), (script, arguments)  # there are no runs that long
    figures = "freezing triggers outputs feed_forward layers probes attention_maps memories"
    assert {path.stem for path in out.glob("*.png")} == set(figures.split())
