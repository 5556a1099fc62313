"""Deep training as one command, and what a step costs."""

import json

import pytest

from tests.cli.conftest import SCRIPT_ENV
from tests.helpers import run_cli


def test_four_models_train_alike_and_are_drawn(tmp_path):
    env = SCRIPT_ENV | {"OUT": tmp_path / "out", "NO_VENV": 1, "LAYERS": 2, "WIDTH": 16, "MAX_UPDATE": 4}
    output = run_cli("scripts/repro/deep_training.sh", env=env).stdout
    rows = json.loads((tmp_path / "out/learning_curves.json").read_text())["rows"]
    last = {row["run"]: row for row in rows if row["kind"] == "validation"}
    assert list(last) == ["DSLM Post-LN", "DSLM Pre-LN", "Xavier Post-LN", "Xavier Pre-LN"]
    assert {row["updates"] for row in last.values()} == {4}
    assert len({row["loss"] for row in last.values()}) == 4, "four different models"
    commands = {path.parent.name: path.read_text() for path in tmp_path.glob("out/*/command.log")}
    for name, command in commands.items():
        assert ("--arch dslm_bert" in command) == name.startswith("dslm")
        assert ("--encoder-normalize-before" in command) == ("pre-ln" in name)
        for flag in ("--encoder-layers 2 ", "--masked-lm-only", "--dropout 0 ", "--lr 3e-4", "--warmup-updates 1 "):
            assert flag in command
    assert "last loss (nats)" in output
    again = run_cli("scripts/repro/deep_training.sh", env=env).stdout  # nothing is trained twice
    assert {p.parent.name: p.read_text() for p in tmp_path.glob("out/*/command.log")} == commands
    assert "last loss (nats)" in again


def test_step_cost(tmp_path):
    sizes = ["--layers", 2, "--memory-layers", 3, "--width", 16, "--heads", 2, "--length", 16, "--tokens", 64]
    output = run_cli(
        "analysis/dslm/step_cost.py", *sizes, "--vocabulary", 50, "--repeats", 1, "--out", tmp_path / "cost"
    ).stdout
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    steps = {row["model"]: row for row in rows if row["quantity"] == "step"}
    assert list(steps) == ["dslm_bert", "vanilla_bert", "roberta"]
    assert steps["dslm_bert"]["parameters"] == steps["vanilla_bert"]["parameters"]
    memory = {row["model"]: row["value"] for row in rows if row["quantity"] == "memory of the process"}
    assert sorted(memory) == ["all activations kept", "checkpoint activations"]
    ratio = steps["dslm_bert"]["value"] / steps["vanilla_bert"]["value"]
    line = next(line for line in output.splitlines() if "dslm_bert / vanilla_bert" in line)
    assert float(line.split()[-3]) == pytest.approx(ratio, rel=1e-3)
    assert line.endswith("<= 1.05")
