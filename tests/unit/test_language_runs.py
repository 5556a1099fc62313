"""Save folders of runs on formal languages: how they are found and named, and what a table has of them."""

import json
from pathlib import Path

import pytest
import torch

from fairseq_transnorm.measure.language_runs import (
    Found,
    accuracy_text,
    find_checkpoints,
    find_folders,
    group_rows,
    language_of,
    read_results,
    run_rows,
)

ARGUMENTS = {"language": "sort_26", "rasp_layers": 2, "rasp_heads": 1, "rasp_dim": 64, "rasp_ffn_dim": 128}
ARGUMENTS |= {
    "rasp_attention": "softmax",
    "positional_encoding": "sin",
    "model_bos": False,
    "dropout": 0.0,
    "attn_loss_weight": 100.0,
}
ARGUMENTS |= {"lr": 0.001, "gamma": 0.98, "batch_size": 50, "seed": 1}


def files(base, *names):
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()


def record(epoch, valid):
    values = {"loss": 1 - valid, "accuracy": valid}
    train = {"loss": 0.5, "accuracy": valid / 2}
    line = {"epoch": epoch, "updates": epoch, "seconds": 1.0, "lr": 0.1, "train": train, "valid": values}
    return line | {"best": True, "restored": False, "stop": None}


def write(folder, epochs=(), test=None, **arguments):
    """Write a run whose validations had these accuracies; with an accuracy on the test set it was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record(number, valid) for number, valid in enumerate(epochs, 1)]
    (folder / "epochs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    evaluated = test and {
        "checkpoint": "checkpoint_best.pt",
        "test": {"accuracy": test, "seq_accuracy": 0.0, "loss": 1 - test},
    }
    results = {"language": "sort_26", "arguments": ARGUMENTS | arguments, "epochs": len(epochs), "best_epoch": 1}
    (folder / "results.json").write_text(json.dumps(results | {"stop_reason": "end", "evaluated": evaluated}))


def test_folders_are_found_at_any_depth_and_named_by_as_much_of_their_path_as_it_takes(tmp_path):
    files(tmp_path, "a/x/results.json", "b/x/epochs.jsonl", "b/x/results.json", "b/c/d/checkpoint_1_20.pt", "b/e/log")
    found = find_folders([tmp_path, tmp_path / "b/c"])
    assert found == [
        Found("a/x", tmp_path / "a/x"),
        Found("d", tmp_path / "b/c/d"),
        Found("b/x", tmp_path / "b/x"),
    ]
    assert find_folders([tmp_path], "b/x") == [Found("x", tmp_path / "b/x")]
    with pytest.raises(FileNotFoundError, match="no path contains 'b/y'"):
        find_folders([tmp_path], "b/y")
    with pytest.raises(FileNotFoundError, match=r"no save folder at or below .*/b/e: .*holds \['log'\]"):
        find_folders([tmp_path / "b/e"])
    with pytest.raises(FileNotFoundError, match=r"below .*/nothing: .*holds \['a', 'b'\]"):
        find_folders([tmp_path / "nothing"])


def test_checkpoints_of_folders_and_by_themselves(tmp_path):
    files(tmp_path, "x/checkpoint_best.pt", "x/checkpoint_last.pt", "y/checkpoint_last.pt")
    assert find_checkpoints([tmp_path], "last") == [
        Found("x", tmp_path / "x/checkpoint_last.pt"),
        Found("y", tmp_path / "y/checkpoint_last.pt"),
    ]
    both = find_checkpoints([tmp_path / "x", tmp_path / "x/checkpoint_last.pt"])
    assert [name for name, _ in both] == ["checkpoint_best", "checkpoint_last"]
    assert [path.name for _, path in find_checkpoints([tmp_path])] == ["checkpoint_best.pt"] * 2, "there or not"


def test_settings_and_results_of_runs(tmp_path):
    write(tmp_path / "a", [0.1, 0.2, 0.4], test=0.5, seed=7)
    (row,), skipped = run_rows(find_folders([tmp_path]), at_epoch=2, group_epoch=3)
    assert not skipped
    settings = {"id": "a", "language": "sort_26", "layers": 2, "heads": 1, "dim": 64, "ffn_dim": 128}
    settings |= {
        "attention": "softmax",
        "position": "sin",
        "model_bos": False,
        "dropout": 0.0,
        "attn_loss_weight": 100.0,
        "lr": 0.001,
    }
    settings |= {"gamma": 0.98, "batch_size": 50, "seed": 7}
    results = {"test_accuracy": 0.5, "test_seq_accuracy": 0.0, "test_loss": 0.5}
    results |= {"epochs": 3, "best_epoch": 1, "stop_reason": "end"}
    results |= {"train_accuracy_epoch_2": 0.1, "valid_accuracy_epoch_2": 0.2}
    assert row == settings | results | {"valid_loss_epoch_3": 0.6, "valid_accuracy_epoch_3": 0.4}


def checkpoint(path, task="rasp_lang"):
    config = {"task": {"_name": task, "language": "hist_10"}, "model": {"_name": "rasp_transformer", "rasp_layers": 3}}
    config |= {"optimization": {"lr": [0.01]}, "common": {"seed": 5}, "dataset": {"batch_size": 8}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"cfg": config, "model": {"weight": torch.ones(1)}}, path)


def test_a_run_that_is_not_finished_has_no_results_and_its_settings_are_in_its_checkpoint(tmp_path):
    checkpoint(tmp_path / "a/checkpoint_last.pt")
    write(tmp_path / "a", [0.25, 0.5])
    (tmp_path / "a/results.json").unlink()
    ((row,), _) = run_rows(find_folders([tmp_path]), 2, 21)
    assert [row[name] for name in ("language", "layers", "lr", "seed", "batch_size")] == ["hist_10", 3, 0.01, 5, 8]
    assert [row[name] for name in ("test_accuracy", "test_loss", "stop_reason")] == [None, None, None]
    assert (row["epochs"], row["best_epoch"]) == (2, 2)
    assert row["valid_accuracy_epoch_2"] == 0.5
    assert row["valid_accuracy_epoch_21"] is None


def test_what_cannot_be_read_is_named_and_left_out(tmp_path):
    write(tmp_path / "good", [0.5], test=0.5)
    write(tmp_path / "cut", [0.5], test=0.5)
    (tmp_path / "cut/results.json").write_text('{"arg')
    write(tmp_path / "log", [0.5], test=0.5)
    (tmp_path / "log/epochs.jsonl").write_text("{}\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/epochs.jsonl").touch()
    checkpoint(tmp_path / "other/checkpoint_last.pt", "language_modeling")
    rows, skipped = run_rows(find_folders([tmp_path]), 1, 1)
    assert [row["id"] for row in rows] == ["good"]
    cut, empty, log, other = skipped
    assert "cut/results.json is no file of results" in cut
    assert "empty: neither results.json nor checkpoint_best.pt nor checkpoint_last.pt" in empty
    assert "line 1 is no record of an epoch" in log
    assert "is of the task 'language_modeling', not of rasp_lang" in other
    with pytest.raises(ValueError, match=r"no run can be read: .*/cut: "):
        run_rows(find_folders([tmp_path / "cut"]), 1, 1)


def test_models_that_differ_in_their_positions_or_their_bos_are_of_groups_of_their_own(tmp_path):
    write(tmp_path / "a", [0.1], dropout=0.5)
    write(tmp_path / "b", [0.1])
    write(tmp_path / "c", [0.1], model_bos=True)
    write(tmp_path / "d", [0.1], positional_encoding="embed")
    groups = group_rows(run_rows(find_folders([tmp_path]), 1, 1).rows, 1)
    assert [(group["position"], group["model_bos"], group["runs"]) for group in groups] == [
        ("sin", False, 2),
        ("sin", True, 1),
        ("embed", False, 1),
    ]


def test_groups_have_the_best_mean_and_worst_of_their_runs(tmp_path):
    write(tmp_path / "a", [0.1, 0.3], test=0.5, lr=0.1)
    write(tmp_path / "b", [0.2], test=0.7)
    write(tmp_path / "c", [0.2, 0.6])
    write(tmp_path / "d", [0.2, 0.4], test=0.1, rasp_heads=2)
    write(tmp_path / "e", [0.2, 0.4], test=0.1, rasp_attention="linear")
    first, linear, wide = sorted(
        group_rows(run_rows(find_folders([tmp_path]), 1, 2).rows, 2), key=lambda row: (row["heads"], -row["runs"])
    )
    assert [first[name] for name in ("language", "layers", "heads", "dim", "attention")] == [
        "sort_26",
        2,
        1,
        64,
        "softmax",
    ]
    assert [first[name] for name in ("runs", "evaluated", "runs_to_epoch_2")] == [3, 2, 2]
    spread = {
        name: [first[f"{name}_{each}"] for each in ("best", "mean", "worst")] for name in ("test_loss", "test_accuracy")
    }
    assert spread == {"test_loss": pytest.approx([0.3, 0.4, 0.5]), "test_accuracy": pytest.approx([0.7, 0.6, 0.5])}
    assert [first[f"valid_accuracy_epoch_2_{each}"] for each in ("best", "mean", "worst")] == pytest.approx(
        [0.6, 0.45, 0.3]
    )
    assert [first[f"valid_loss_epoch_2_{each}"] for each in ("best", "mean", "worst")] == pytest.approx(
        [0.4, 0.55, 0.7]
    )
    assert (linear["attention"], wide["heads"]) == ("linear", 2)
    write(tmp_path / "f", [0.5], rasp_dim=8)
    (group,) = group_rows(run_rows(find_folders([tmp_path / "f"]), 1, 2).rows, 2)
    assert {value for name, value in group.items() if name.startswith(("test_", "valid_"))} == {None}, "never 0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (0.999997, "1.0-"),
        (0.99999, "0.99999"),
        (0.0, "0.0"),
        (0.123456, "0.12346"),
        (0.00001, "0.00001"),
        (None, "not evaluated"),
    ],
)
def test_an_accuracy_in_a_table(value, text):
    assert accuracy_text(value) == text


def test_the_language_of_a_checkpoint(tmp_path):
    checkpoint(tmp_path / "a.pt")
    assert language_of(tmp_path / "a.pt") == "hist_10"
    assert read_results(Path(tmp_path)) is None
    with pytest.raises(FileNotFoundError, match="not there"):
        language_of(tmp_path / "b.pt")
