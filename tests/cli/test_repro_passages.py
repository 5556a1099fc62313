"""scripts/repro/passages.sh, scaled down: every step of it for real, then again."""

import json
import re

import pytest

from fairseq_transnorm.data.folder import read_note
from tests.cli.conftest import SCRIPT_ENV
from tests.data_sources import sdist
from tests.helpers import run_cli

pytestmark = pytest.mark.slow


def test_pretraining_and_fine_tuning_from_nothing_to_the_table(tmp_path):
    out = tmp_path / "out"
    env = {"VIRTUAL_ENV": SCRIPT_ENV["VIRTUAL_ENV"], "NO_VENV": 1, "OUT": out, "SOURCE": sdist(tmp_path)}
    env |= {"TOKENIZER": "sentencepiece", "VOCAB_SIZE": 90, "WORDS": 30, "MAX_UPDATE": 4, "TUNE_UPDATE": 4, "SEEDS": 2}
    env |= {"PER_LABEL": "10 all"}
    output = run_cli("scripts/repro/passages.sh", env=env).stdout
    for number in ("10", "all"):
        rows = json.loads((out / f"accuracy-{number}.json").read_text())["rows"]
        assert {(row["model"], row["column"]) for row in rows} == {
            (model, column) for model in ("pretrained", "random weights") for column in ("passages", "passages test")
        }
        assert all(0 <= row["mean"] <= 100 and row["n"] == 1 for row in rows)
        assert (out / f"accuracy-{number}.md").read_text() in output
    few, every = (read_note(out / f"passages-{name}")["splits"]["train"]["rows"] for name in ("10-2", "all"))
    assert few == 20 < every
    (valid, test) = json.loads((out / "perplexity.json").read_text())
    assert valid["subset"] == "valid"
    assert f"{test['perplexity']:.3f} masked perplexity" in output
    started = (out / "pretrained/command.log").read_text()

    again = run_cli("scripts/repro/passages.sh", env=env | {"SEEDS": "2 3", "PER_LABEL": "10"}).stdout
    assert "[2/5] pretraining: kept" in again
    assert (out / "pretrained/command.log").read_text() == started
    assert {row["n"] for row in json.loads((out / "accuracy-10.json").read_text())["rows"]} == {2}
    drawn = [(out / f"passages-10-{seed}/input0/train.bin").read_bytes() for seed in (2, 3)]
    assert drawn[0] != drawn[1]
    for other in ({"VOCAB_SIZE": 80}, {"TUNE_UPDATE": 2}):
        refused = run_cli("scripts/repro/passages.sh", env=env | other, check=False)
        assert (refused.returncode, "holds a run with other settings" in refused.stdout) == (1, True)

    # another pretraining: its fine-tunings are made anew, those of random weights stay
    before = {name: (out / f"{name}-10-2/done").stat().st_mtime_ns for name in ("tuned", "random")}
    (out / "pretrained/done").touch()
    run_cli("scripts/repro/passages.sh", env=env | {"PER_LABEL": "10"})
    assert "Nothing to do" not in (out / "logs/tuned-10-2.log").read_text()
    log = (out / "tuned-10-2/train.log").read_text()
    assert max(map(int, re.findall(r'"train_num_updates": "(\d+)"', log))) == 4
    assert (out / "random-10-2/done").stat().st_mtime_ns == before["random"]
    assert (out / "tuned-10-2/done").stat().st_mtime_ns > before["tuned"]


@pytest.mark.parametrize(("name", "value"), [("PER_LABEL", "50 08"), ("SEEDS", "1 x"), ("TUNE_UPDATE", "0")])
def test_numbers_are_checked_before_anything_is_made(tmp_path, name, value):
    refused = run_cli("scripts/repro/passages.sh", env={"OUT": tmp_path / "out", name: value}, check=False)
    assert f"{name} is '{value.split()[-1]}', not a whole number of at least 1" in refused.stdout
    assert (refused.returncode, (tmp_path / "out").exists()) == (1, False)
