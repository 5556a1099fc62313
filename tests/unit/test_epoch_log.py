"""What a run on a formal language writes of its epochs, in this process."""

import json
import math

import pytest
from fairseq import checkpoint_utils, tasks
from omegaconf import OmegaConf

from fairseq_transnorm.data import languages
from fairseq_transnorm.data.language_samples import Samples
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.epoch_log import (
    METRICS,
    EpochLog,
    plain_metrics,
    read_epochs,
    results,
    run_arguments,
    saved,
    write_prints,
)
from fairseq_transnorm.measure.language_accuracy import evaluate
from fairseq_transnorm.tasks.epoch_log import dataset_prints
from tests.rasp_runs import train

VALUES = {"loss": 1.5, "seq_loss": 1.25, "attn_loss": 0.0025, "accuracy": 0.75, "accuracy_batchmean": 0.5}
VALUES |= {"seq_accuracy": 0.9999999}


def sequences(split):
    return Samples(max_length=6, train_size=40, valid_size=20, test_size=5).draw(
        languages.get("sort_10").sampler, split
    )


def record(epoch, **other):
    common = {"epoch": epoch, "updates": 10 * epoch, "seconds": 2.0, "lr": 0.003, "train": VALUES, "valid": VALUES}
    return common | {"best": False, "restored": False, "stop": None} | other


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run of 3 epochs, validated on two sets, and in the middle of epochs too. Read it only."""
    folder = tmp_path_factory.mktemp("rasp")
    train(
        folder, *["--max-epoch", 3, "--batch-size", 8, "--valid-subset", "test,valid", "--validate-interval-updates", 2]
    )
    return folder


def test_epochs_have_a_record_of_valid_each_whatever_else_is_validated(run):
    records = read_epochs(run)
    tokens = {split: sum(map(len, sequences(split))) for split in ("valid", "test")}
    assert tokens["valid"] % tokens["test"], "a share of the one could be one of the other"
    assert [(line["epoch"], line["updates"]) for line in records] == [(1, 5), (2, 10), (3, 15)]
    assert [line["lr"] for line in records] == pytest.approx([0.003, 0.0027, 0.00243], rel=1e-12)
    for line in records:
        assert list(line["train"]) == list(line["valid"]) == list(METRICS)
        right = line["valid"]["accuracy"] * tokens["valid"]
        assert right == pytest.approx(round(right), abs=1e-9), "the values are rounded, or of another set"
        assert line["train"]["loss"] == pytest.approx(line["train"]["seq_loss"] + 100 * line["train"]["attn_loss"])
        assert 0 < line["seconds"] < 60
        assert not line["restored"]
        assert line["stop"] is None


def test_the_evaluation_agrees_with_validation(run):
    found = evaluate(load_run(run / "checkpoint_last.pt"))
    assert (found["checkpoint"], found["updates"]) == ("checkpoint_last.pt", 15)
    valid = read_epochs(run)[-1]["valid"]
    for name in ("accuracy", "accuracy_batchmean", "seq_accuracy"):
        assert found["valid"][name] == valid[name]
    assert found["valid"] == pytest.approx(valid, rel=1e-6)
    assert found["train"]["accuracy"] != found["test"]["accuracy"]
    assert evaluate(load_run(run / "checkpoint_last.pt"), ["test"])["test"] == found["test"]


def test_a_model_of_another_task_is_not_evaluated(run):
    loaded = load_run(run / "checkpoint_last.pt")
    loaded.cfg.task._name = "bigram_icl"
    with pytest.raises(ValueError, match="is of the task 'bigram_icl'; only models of rasp_lang are evaluated here"):
        evaluate(loaded)


def test_what_was_evaluated_before_is_not_that_of_a_new_run(tmp_path):
    for name in ("checkpoint_best.pt", "results.json", "epochs.jsonl"):
        (tmp_path / name).write_text(f"old {name}")
    train(tmp_path, "--max-epoch", 1, "--batch-size", 40)
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "results.json.old").read_text() == "old results.json"
    assert (tmp_path / "checkpoint_best.pt.old").read_text() == "old checkpoint_best.pt"
    assert len(read_epochs(tmp_path)) == 1
    (tmp_path / "results.json").write_text("of this run")
    train(tmp_path, "--max-epoch", 2, "--batch-size", 40)
    assert len(read_epochs(tmp_path)) == 2
    assert not (tmp_path / "results.json").exists(), "it tells of a model that may be the best no longer"


def test_a_run_that_went_on_has_the_epochs_of_one_that_was_not_stopped(tmp_path):
    flags = ["--batch-size", 8, "--save-interval-updates", 3, "--keep-interval-updates", -1]
    train(tmp_path / "whole", *flags, "--max-epoch", 3)
    train(tmp_path / "parts", *flags, "--max-epoch", 3)
    middle = tmp_path / "parts/checkpoint_2_9.pt"  # in the middle of the second epoch
    train(tmp_path / "parts", *flags, "--max-epoch", 3, "--restore-file", middle)
    wanted, found = read_epochs(tmp_path / "whole"), read_epochs(tmp_path / "parts")
    for line in wanted + found:
        del line["seconds"]
    assert found == wanted
    assert (tmp_path / "parts/training_prints.txt").read_text().count("epoch 2:") == 1


def test_the_text_of_a_run(tmp_path):
    settings = {"language": "sort_10", "lr": 0.003, "batch_size": 50, "rasp_layers": None}
    records = [record(1, best=True), record(2, restored=True), record(3, best=True)]
    evaluated = {"checkpoint": "checkpoint_best.pt", "updates": 10, "train": VALUES, "test": VALUES}
    found = results(settings, saved(records, evaluated), "perfect", evaluated)
    assert (found["epochs"], found["best_epoch"], found["seconds"]) == (3, 1, 6.0)
    write_prints(tmp_path, found, saved(records, evaluated), {"train": 501, "valid": 100, "test": 50})
    values = "loss 1.5, outputs 1.25, attention 0.0025, accuracy 0.75, mean of batches 0.5, whole sequences 0.9999999"
    assert (tmp_path / "training_prints.txt").read_text() == (
        "arguments\n"
        "  language     sort_10\n"
        "  lr           0.003\n"
        "  batch_size   50\n"
        "  rasp_layers  None\n"
        "\n"
        "batches of 50: train 11 (501 samples), valid 2 (100 samples), test 1 (50 samples)\n"
        "\n"
        f"epoch 1: 2.0 s, 10 updates, rate 0.003\n  train {values}\n  valid {values}\n  saved as best model\n"
        "best model taken up again, with a fresh optimizer\n"
        f"epoch 2: 2.0 s, 20 updates, rate 0.003\n  train {values}\n  valid {values}\n"
        f"epoch 3: 2.0 s, 30 updates, rate 0.003\n  train {values}\n  valid {values}\n"
        "stopped training - perfect\n"
        "total time 6.0 s in 3 epochs\n"
        "checkpoint_best.pt (10 updates) in evaluation mode\n"
        f"  train {values}\n"
        f"  test  {values}\n"
    )


def test_values_that_are_none_are_null():
    found = plain_metrics({"loss": math.nan, "accuracy": 1, "other": 3})
    assert found == dict.fromkeys(METRICS) | {"accuracy": 1.0}
    assert "NaN" not in json.dumps(found)


def test_later_epochs_are_cut_off(tmp_path):
    log = EpochLog(tmp_path, 0, 1)
    for epoch in (1, 2, 3):
        log.write(record(epoch))
    with (tmp_path / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 4, "upd')
    log = EpochLog(tmp_path, 20, 3)
    assert [line["epoch"] for line in log.records] == [1, 2] == [line["epoch"] for line in read_epochs(tmp_path)]
    (tmp_path / "epochs.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"epochs\.jsonl: line 1 is no record of an epoch"):
        EpochLog(tmp_path, 20, 3)


def test_settings_are_told_by_their_flags(run):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(run / "checkpoint_last.pt"))
    found = run_arguments(OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True))
    wanted = {"language": "sort_10_with_attns", "arch": "rasp_transformer", "rasp_layers": 2, "rasp_heads": 1}
    wanted |= {"rasp_dim": 8, "rasp_ffn_dim": 16, "rasp_attention": "softmax", "positional_encoding": "sin"}
    wanted |= {"dropout": 0.0, "attn_loss_weight": 100.0, "lr": 0.003, "gamma": 0.9, "max_epoch": 3, "batch_size": 8}
    wanted |= {"seed": 4, "min_length": 1, "max_length": 6, "train_size": 40, "valid_size": 20, "test_size": 5}
    assert {name: found[name] for name in wanted} == wanted
    assert json.loads(json.dumps(found)) == found
    fixed = {"_name": "fixed", "lr_shrink": 0.5, "lr": "${optimization.lr}"}
    other = {"task": {"language": "a"}, "optimization": {"lr": [1.0, 2.0]}, "dataset": {}, "common": {}}
    assert run_arguments(other | {"lr_scheduler": fixed})["gamma"] == 0.5
    assert run_arguments(other | {"lr_scheduler": fixed})["lr"] == [1.0, 2.0]


def test_the_text_of_the_data(run):
    text = (run / "dataset_prints.txt").read_text()
    task = tasks.setup_task(load_run(run / "checkpoint_last.pt").cfg.task)
    assert dataset_prints(task) == text, "it depends on what is loaded"
    drawn = {split: sequences(split) for split in ("train", "valid", "test")}
    assert "alphabet of 10 symbols: 'abcdefghij'\noutput classes: 10: 'a' 'b'" in text
    for split, texts in drawn.items():
        assert f"\n{split}: {len(texts)} samples of mean length {sum(map(len, texts)) / len(texts):.2f}\n" in text
        assert f"\n  first input  {texts[0]!r}\n  first target {sorted(texts[0])}\n" in text
        if split != "train":
            assert f"  {sum(text in drawn['train'] for text in texts)} of its inputs occur in train\n" in text
