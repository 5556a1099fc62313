"""scripts/repro/passages.sh, scaled down: every step of it for real, then again."""

import json
import re

import pytest

from tests.cli.conftest import SCRIPT_ENV
from tests.data_sources import sdist
from tests.helpers import run_cli

pytestmark = pytest.mark.slow


def test_pretraining_and_fine_tuning_from_nothing_to_the_table(tmp_path):
    out = tmp_path / "out"
    env = {"VIRTUAL_ENV": SCRIPT_ENV["VIRTUAL_ENV"], "NO_VENV": 1, "OUT": out, "SOURCE": sdist(tmp_path)}
    env |= {"TOKENIZER": "sentencepiece", "VOCAB_SIZE": 90, "WORDS": 30, "MAX_UPDATE": 4, "TUNE_UPDATE": 4, "SEEDS": 2}
    output = run_cli("scripts/repro/passages.sh", env=env).stdout
    rows = json.loads((out / "passages.json").read_text())["rows"]
    assert {(row["model"], row["column"]) for row in rows} == {
        (model, column) for model in ("pretrained", "random weights") for column in ("passages", "passages test")
    }
    assert all(0 <= row["mean"] <= 100 and row["n"] == 1 for row in rows)
    assert (out / "passages.md").read_text() in output
    (valid, test) = json.loads((out / "perplexity.json").read_text())
    assert valid["subset"] == "valid"
    assert f"{test['perplexity']:.3f} masked perplexity" in output
    started = (out / "pretrained/command.log").read_text()

    again = run_cli("scripts/repro/passages.sh", env=env | {"SEEDS": "2 3"}).stdout
    assert re.search(r"\[1/5\] text: kept.*\[2/5\] pretraining: kept", again, re.DOTALL)
    assert (out / "pretrained/command.log").read_text() == started
    assert {row["n"] for row in json.loads((out / "passages.json").read_text())["rows"]} == {2}
    other = run_cli("scripts/repro/passages.sh", env=env | {"VOCAB_SIZE": 80}, check=False)
    assert (other.returncode, "holds a run with other settings" in other.stdout) == (1, True)
