"""MNLI, QQP and RACE from the official files to the table of accuracies, through the scripts."""

import json
import re
from dataclasses import replace

import pytest
import torch

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.data.binarize import read_note
from fairseq_transnorm.measure import fine_tuning
from fairseq_transnorm.measure.checkpoints import load_run, read_state
from fairseq_transnorm.measure.logs import read_log
from tests.cli.conftest import SCRIPT_ENV
from tests.data_sources import sdist
from tests.glue_files import write_glue
from tests.helpers import run_cli
from tests.race_files import QUESTIONS, write_race

ROWS = 70  # of each split of MNLI and QQP: 3 updates an epoch, the last of a smaller batch
PAPER = SCRIPT_ENV | {"SEQUENCES": "", "BATCH_SIZE": ""}
RECIPE = [
    "--max-positions 512 ",
    "--dropout 0.1 --attention-dropout 0.1 --pooler-dropout 0.1 ",
    r"--optimizer bert_adam --adam-betas \(0.9\,\ 0.999\) --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0 ",
    "--lr-scheduler polynomial_decay --power 1 --end-learning-rate 0 ",
    "--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric ",
]


RUNS = (
    ("MNLI", [], {}),
    ("QQP", [], {"LR": "5e-5", "SEED": 3}),
    ("RACE", ["--max-option-length", 20], {"NPROC": 2}),
)


def run_of(tuned, task):
    return tuned / "checkpoints/finetune" / task / ("lr5e-5_seed3" if task == "QQP" else "lr2e-5_seed1")


@pytest.fixture(scope="session")
def pretrained(once):
    """Checkpoint of a tiny dslm_bert, pretrained on plays by the scripts in two goes; beside it ``data``."""

    def make(folder):
        plays = ["--source", sdist(folder), "--documents", "--tokenizer", "wordpiece", "--vocab-size", 200]
        run_cli("preprocessing/plays.py", *plays, "--out", folder / "data")
        env = SCRIPT_ENV | {"ARCH": "dslm_bert_tiny", "SAVE_DIR": folder}
        flags = ["--tokens-per-sample", 64, "--max-positions", 64, "--encoder-layers", 2, "--log-interval", 1]
        for updates in (2, 4):
            run_cli("scripts/train_dslm_bert.sh", folder / "data", "--max-update", updates, *flags, env=env)

    return once("pretrained_bert", make) / "checkpoint_last.pt"


def test_pretraining_on_the_plays_goes_on_and_validates(pretrained):
    log = read_log(pretrained.parent)
    assert [row["updates"] for row in log if row["split"] == "train_inner"] == [1, 2, 3, 4]
    assert load_run(pretrained).updates == 4
    task = ["--user-dir", USER_DIR, "--task", "bert_sop_lm", "--criterion", "bert_sop", "--tokens-per-sample", 64]
    flags = ["--path", pretrained, "--cpu", "--batch-size", 8, "--required-batch-size-multiple", 1]
    output = run_cli("fairseq-validate", pretrained.parent / "data", *task, *flags).stdout
    found = {name: float(value) for name, value in re.findall(r"(\w+) (\d+(?:\.\d+)?) ", output)}
    last = next(row for row in reversed(log) if row["split"] == "valid")
    assert found["loss"] == pytest.approx(last["loss"], abs=2e-3)
    assert 0 <= found["sop_accuracy"] <= 100


def accuracies(folder):
    """What the log says of the last validation."""
    rows = [row for row in read_log(folder) if row["split"].startswith("valid")]
    return {row["split"]: row["accuracy"] for row in rows if row["updates"] == rows[-1]["updates"]}


def counted(folder, split):
    """Accuracy in percent, one example after the other."""
    run = load_run(folder / "checkpoint_last.pt")
    data = run.task.load_dataset(split)
    right = 0
    with torch.no_grad():
        for index in range(len(data)):
            batch = data.collater([data[index]])
            logits, _ = run.model(**batch["net_input"], classification_head_name="sentence_classification_head")
            right += int(logits.flatten().argmax() == batch["target"])
    return 100 * right / len(data)


@pytest.fixture(scope="session")
def tuned(once, pretrained):
    """``data`` has a folder of each task, ``checkpoints`` what the scripts made of it by their recipe."""

    def make(folder):
        like = ["--like", pretrained.parent / "data", "--workers", 1]
        glue = write_glue(folder / "glue", ROWS)
        with open(glue / "QQP/train.tsv", "a") as handle:
            handle.write("7\tq1\tq2\tno second question\n")
        output = run_cli(
            "preprocessing/glue.py",
            "all",
            "--dslm",
            "--source",
            glue,
            "--out",
            folder / "data",
            *like,
            "--max-bad",
            0.1,
        ).stdout
        (folder / "glue.output").write_text(output)
        run_cli("preprocessing/race.py", "--source", write_race(folder), "--out", folder / "data/RACE", *like)
        for task, flags, env in RUNS:
            script = f"scripts/finetune_{task.lower()}.sh"
            arguments = [folder / "data" / task, pretrained, *flags]
            output = run_cli(script, *arguments, env=PAPER | env, cwd=folder).stdout
            assert f"loading pretrained model from {pretrained}" in output
            (folder / f"{task}.output").write_text(output)

    return once("tuned_bert", make)


def test_mnli(tuned, pretrained):
    note = read_note(tuned / "data/MNLI")
    assert note["labels"] == ["contradiction", "entailment", "neutral"]
    assert list(note["splits"]) == ["train", "valid", "valid1", "test", "test1"]
    command = (run_of(tuned, "MNLI") / "command.log").read_text()
    tail = [
        "--lr 2e-5 ",
        "--warmup-updates 0 --max-update 9 --total-num-update 9 --seed 1 ",
        r"--valid-subset valid\,valid1 ",
    ]
    tail += ["--task dslm_sentence_prediction --criterion sentence_prediction --num-classes 3 --arch dslm_bert_tiny "]
    for flags in [*RECIPE, *tail, "--encoder-layers=2 ", "--max-positions=64 ", f"--finetune-from-model {pretrained} "]:
        assert flags in command
    found = accuracies(run_of(tuned, "MNLI"))
    for split in ("valid", "valid1"):
        assert found[split] == pytest.approx(counted(run_of(tuned, "MNLI"), split), abs=0.06)


def test_qqp(tuned):
    assert "QQP train, train.tsv: 1 bad rows" in (tuned / "glue.output").read_text()
    command = (run_of(tuned, "QQP") / "command.log").read_text()
    for flags in [
        *RECIPE,
        "--num-classes 2 ",
        "--lr 5e-5 ",
        "--warmup-updates 1 --max-update 15 --total-num-update 15 --seed 3 ",
    ]:
        assert flags in command
    rows = [row for row in read_log(run_of(tuned, "QQP")) if row["split"] == "valid"]
    assert [row["updates"] for row in rows] == [3, 6, 9, 12, 15], "an epoch is 70 rows in batches of 32"
    assert rows[-1]["accuracy"] == pytest.approx(counted(run_of(tuned, "QQP"), "valid"), abs=0.06)


def test_race_by_level_and_overall(tuned):
    command = (run_of(tuned, "RACE") / "command.log").read_text()
    tail = ["--task dslm_sentence_ranking --criterion dslm_sentence_ranking --num-classes 4 --max-option-length 128 "]
    tail += [r"--valid-subset valid\,valid1\,valid2 "]
    for flags in [*RECIPE[1:], *tail, "--warmup-updates 1 --max-update 20 --total-num-update 20 "]:
        assert flags in command
    assert "(4 sequences in each of 2 processes, 1 times)" in (tuned / "RACE.output").read_text()
    found = accuracies(run_of(tuned, "RACE"))  # 13, 9 and 4 questions in batches of 4 in two processes
    for split in ("valid", "valid1", "valid2"):
        assert found[split] == pytest.approx(counted(run_of(tuned, "RACE"), split), abs=0.06)
    middle, high = QUESTIONS["dev"].values()
    assert found["valid"] == pytest.approx(
        (middle * found["valid1"] + high * found["valid2"]) / (middle + high), abs=0.1
    )


def test_the_table_and_what_is_noted_for_it(tuned, pretrained, tmp_path):
    runs = [run_of(tuned, task) for task, *_ in RUNS]
    for run in runs:
        note = json.loads((run / "finetune.json").read_text())
        assert note["start"] == str(pretrained)
        for path in run.glob("*.pt"):
            assert torch.load(path, weights_only=True)["extra_state"]["best"] >= 0
    assert note["rows"] == {"train": 27, "valid": 13, "valid1": 9, "valid2": 4}
    output = run_cli("analysis/dslm/fine_tuning.py", *runs, "--out", tmp_path / "table").stdout
    lines = (tmp_path / "table.md").read_text().splitlines()
    header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert header == ["model", "MNLI-m", "MNLI-mm", "MNLI", "QQP", "RACE-m", "RACE-h", "RACE"]
    scores, other = (dict(zip(header, line, strict=True)) for line in lines)
    assert (scores["model"], other["model"]) == ("lr2e-5", "lr5e-5")
    assert float(scores["MNLI"]) == pytest.approx((float(scores["MNLI-m"]) + float(scores["MNLI-mm"])) / 2, abs=0.01)
    assert (scores["QQP"], other["RACE"]) == ("-", "-")
    assert (tmp_path / "table.md").read_text() in output
    assert re.search(r"MNLI-m accuracy, .*RACE-h accuracy", output)


def test_what_cannot_be_trained_is_refused(tuned, pretrained, tmp_path):
    data = tuned / "data/MNLI"
    with pytest.raises(ValueError, match="holds the task MNLI, not RACE"):
        fine_tuning.fine_tuning("RACE", data)
    state = read_state(pretrained)
    state["model"] = {name: value for name, value in state["model"].items() if "embed_segments" not in name}
    found = fine_tuning.fine_tuning("MNLI", data)
    with pytest.raises(
        ValueError, match=r"\(dslm_bert_tiny\) has no segment embeddings, which MNLI, pairs of texts in .*MNLI, needs"
    ):
        fine_tuning.check_segments(pretrained, state, data, found)
    fine_tuning.check_segments(pretrained, state, data, replace(found, flags=["--task", "sentence_prediction"]))
    words = (pretrained.parent / "data/dict.txt").read_text().splitlines()
    (tmp_path / "input0").mkdir()
    (tmp_path / "input0/dict.txt").write_text("\n".join(reversed(words)) + "\n")
    with pytest.raises(ValueError, match=r"other symbols, or in another order, .*; prepare the task with --like"):
        fine_tuning.check_dictionary(pretrained, state, tmp_path)


def test_lengths_that_do_not_fit_are_refused_before_anything_starts(pretrained):
    state = read_state(pretrained)
    race = fine_tuning.FineTuning("RACE", "accuracy", ["valid"], {}, ["--max-option-length", "128"], {})
    mnli = replace(race, flags=[])
    fine_tuning.check_lengths(race)
    fine_tuning.check_lengths(race, pretrained, state, 64, 61)
    fine_tuning.check_lengths(mnli, pretrained, state)
    with pytest.raises(ValueError, match="learned embeddings of 64 positions, which --max-positions 128 cannot change"):
        fine_tuning.check_lengths(mnli, pretrained, state, 128)
    with pytest.raises(ValueError, match=r"--max-option-length 128 leaves no room .*checkpoint_last\.pt: 64; give "):
        fine_tuning.check_lengths(race, pretrained, state)
    with pytest.raises(ValueError, match=r"--max-option-length 62 .* in --max-positions 64; give .* at most 61"):
        fine_tuning.check_lengths(race, max_positions=64, max_option_length=62)
