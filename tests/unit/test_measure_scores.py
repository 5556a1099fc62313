"""Scores of fine-tunings: which validation counts, and what several seeds give."""

import json

import pytest

from fairseq_transnorm.measure.scores import over_seeds, run_scores, score_runs


def fine_tuning(folder, task, metric, validations):
    """Write the folder of a run; ``validations`` are (split, updates, scores)."""
    folder.mkdir()
    (folder / "finetune.json").write_text(json.dumps({"task": task, "metric": metric}))
    lines = [{"epoch": 1, "loss": "1", "accuracy": "99", "num_updates": "1"}]
    for split, updates, scores in validations:
        row = {"loss": "0.5", "num_updates": str(updates)} | {name: str(score) for name, score in scores.items()}
        lines.append({"epoch": 1} | {f"{split}_{name}": value for name, value in row.items()})
    (folder / "train.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_best_validation_counts_with_all_its_splits(tmp_path):
    scores = [(1, 70.0, 75.0), (2, 80.0, 71.0), (3, 80.0, 72.0), (4, 60.0, 90.0)]
    rows = [
        (split, u, {"accuracy": s}) for u, *both in scores for split, s in zip(("valid", "valid1"), both, strict=True)
    ]
    run = fine_tuning(tmp_path / "run", "MNLI", "accuracy", rows)
    got = [(row["column"], row["split"], row["score"], row["updates"]) for row in run_scores(run)]
    assert got == [("MNLI-m", "valid", 80.0, 3), ("MNLI-mm", "valid1", 72.0, 3)], "of equals the later one"
    assert [row["score"] for row in run_scores(run, last=True)] == [60.0, 90.0]


def test_a_task_can_be_scored_by_another_metric(tmp_path):
    rows = [("valid", 1, {"accuracy": 80, "f1": 60}), ("valid", 2, {"accuracy": 70, "f1": 65})]
    run = fine_tuning(tmp_path / "run", "MRPC", "accuracy", rows)
    assert [(r["metric"], r["score"]) for r in run_scores(run)] == [("accuracy", 80.0)]
    assert [(r["metric"], r["score"]) for r in run_scores(run, {"MRPC": "f1", "QQP": "f1"})] == [("f1", 65.0)]
    with pytest.raises(ValueError, match=r"no validation reports 'mcc', only \['accuracy', 'f1'\]"):
        run_scores(run, {"MRPC": "mcc"})


def test_a_correlation_that_is_not_defined_is_never_the_best(tmp_path):
    rows = [("valid", u, {"pearson": score}) for u, score in ((1, "nan"), (2, "-3.5"), (3, "nan"))]
    (row,) = run_scores(fine_tuning(tmp_path / "run", "STS-B", "pearson", rows))
    assert (row["score"], row["updates"], row["column"]) == (-3.5, 2, "STS-B")


def test_mean_and_spread_over_seeds_by_hand():
    def run(score, column="CoLA", metric="mcc"):
        return [{"column": column, "metric": metric, "score": score}]

    rows = over_seeds([("t2", run(40.0)), ("t1", run(10.0)), ("t2", run(44.0)), ("t2", run(90.0, "RTE", "accuracy"))])
    common = {"model": "t2", "column": "CoLA", "metric": "mcc"}
    assert rows[0] == common | {"mean": 42.0, "std": pytest.approx(8**0.5), "low": 40.0, "high": 44.0, "n": 2}
    assert [(r["model"], r["column"], r["mean"], r["std"], r["n"]) for r in rows[1:]] == [
        ("t1", "CoLA", 10.0, None, 1),
        ("t2", "RTE", 90.0, None, 1),
    ]
    with pytest.raises(ValueError, match="t2, MRPC: some runs report accuracy and some f1"):
        over_seeds([("t2", run(1.0, "MRPC", "f1")), ("t2", run(1.0, "MRPC", "accuracy"))])


def test_runs_that_are_no_seeds_of_one_model_are_refused(tmp_path):
    def run(name, **note):
        run = fine_tuning(tmp_path / name, "QQP", "accuracy", [("valid", 1, {"accuracy": 80})])
        (run / "finetune.json").write_text(json.dumps({"task": "QQP", "metric": "accuracy"} | note))
        return run

    a, b = run("a_seed1", start="a.pt"), run("b_seed2", start="b.pt")
    with pytest.raises(
        ValueError, match=r"lr, QQP: runs of different weights are no seeds.*a_seed1 from a\.pt; .*b\.pt"
    ):
        score_runs([("lr", a), ("lr", b)])
    other = run("c_seed1", start="a.pt")
    with pytest.raises(ValueError, match=r"lr, QQP: .*a_seed1 and .*c_seed1 both have the seed 1; leave one out"):
        score_runs([("lr", a), ("lr", other)])
    noted = run("d_seed1", start="a.pt", seed=4)
    (row,) = score_runs([("lr", a), ("lr", noted)])
    assert row["n"] == 2, "the note says more than the folder's name"
    assert [row["n"] for row in score_runs([("x", a), ("y", b), ("z", other)])] == [1, 1, 1]


def test_a_folder_that_does_not_say_its_task(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*finetune\.json, which says what was trained, as {\"task\": "):
        run_scores(tmp_path)


def test_the_accuracy_over_both_sets_of_mnli_is_weighted_by_their_examples(tmp_path):
    rows = [("valid", 1, {"accuracy": 80}), ("valid1", 1, {"accuracy": 60})]
    run = fine_tuning(tmp_path / "run", "MNLI", "accuracy", rows)
    assert [row["column"] for row in run_scores(run, overall=True)] == ["MNLI-m", "MNLI-mm"], "no numbers of examples"
    note = {"task": "MNLI", "metric": "accuracy", "rows": {"train": 9, "valid": 300, "valid1": 100}}
    (run / "finetune.json").write_text(json.dumps(note))
    assert [row["column"] for row in run_scores(run)] == ["MNLI-m", "MNLI-mm"]
    *_, both = run_scores(run, overall=True)
    assert both == {"column": "MNLI", "task": "MNLI", "split": "valid+valid1", "metric": "accuracy"} | {
        "score": 75.0,
        "updates": 1,
        "run": run,
        "start": None,
        "seed": None,
    }


def test_levels_of_race_are_columns(tmp_path):
    rows = [(split, 1, {"accuracy": score}) for split, score in (("valid", 40), ("valid1", 50), ("valid2", 30))]
    run = fine_tuning(tmp_path / "run", "RACE", "accuracy", rows)
    table = score_runs([("a", run)], overall=True)
    assert [(row["column"], row["mean"], row["mark"]) for row in table] == [
        ("RACE", 40, None),
        ("RACE-m", 50, None),
        ("RACE-h", 30, None),
    ]
    with pytest.raises(ValueError, match="run is given twice"):
        score_runs([("a", run), ("b", tmp_path / "." / "run")])
    with pytest.raises(ValueError, match="--metric CoLA=mcc: none of the runs is of the task 'CoLA'"):
        score_runs([("a", run)], {"CoLA": "mcc"})
