"""Memories as tables of scores, and their probes against the log beside a checkpoint."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_transnorm.measure.checkpoints import Run
from fairseq_transnorm.measure.memory_maps import COLUMNS, memory_rows, mismatches
from fairseq_transnorm.measure.memory_probes import memories_of, output_scores, position_key_scores, token_key_scores
from fairseq_transnorm.models.birth.basic import InductionHeadBasic
from fairseq_transnorm.models.birth.config import InductionHeadBasicConfig, InductionHeadFullConfig
from fairseq_transnorm.models.birth.full import InductionHeadFull
from tests.unit.test_bigram_icl_task import task_of

LENGTH, CUTOFF, WIDTH = 12, 5, 16
CRITERION = {
    "_name": "bigram_icl",
    "probe_position_cutoff": CUTOFF,
    "probe_file": "p.jsonl",
    "probe_end_length": LENGTH,
}
DATA = {"valid_subset": "valid,valid1", "batch_size_valid": 4, "max_tokens_valid": None}


def run_in(folder, cls=InductionHeadBasic, config=InductionHeadBasicConfig, **options):
    task = task_of(tokens_per_sample=LENGTH, fixed_triggers=True, num_triggers=3)
    torch.manual_seed(0)
    values = OmegaConf.structured(config(ihead_dim=WIDTH, tokens_per_sample=LENGTH, **options))
    cfg = OmegaConf.create({"criterion": CRITERION, "dataset": DATA})
    return Run(folder / "checkpoint_last.pt", cls.build_model(values, task).eval(), cfg, task, updates=10, epochs=0)


def probes(rows):
    return {row["name"]: row for row in rows if row["kind"] == "probe"}


def log(folder, *lines):
    (folder / "p.jsonl").write_text("".join(json.dumps({"acc_end": None} | line) + "\n" for line in lines))


def test_scores_of_the_most_frequent_tokens_in_their_order(tmp_path):
    run = run_in(tmp_path)
    rows = memory_rows(run, "m", tokens=6, positions=4)
    assert all(set(row) == set(COLUMNS) for row in rows)
    counts, memories = run.task.statistics.unigram_counts, memories_of(run.model)
    kept = sorted(sorted(range(len(counts)), key=lambda i: (-counts[i], i))[:6])
    tables = {
        "wo1_acc": (output_scores(memories), kept),
        "wk1_acc": (token_key_scores(memories), kept),
        "wk0_acc": (position_key_scores(memories), list(range(4))),
    }
    for name, (table, places) in tables.items():
        mine = [row for row in rows if row["kind"] == "score" and row["name"] == name]
        assert [(row["row"], row["column"]) for row in mine] == [(i, j) for i in places for j in places]
        assert [row["value"] for row in mine] == pytest.approx([float(table[i, j]) for i in places for j in places])
        names = [str(i) if name == "wk0_acc" else run.task.statistics.vocab[i] for i in places]
        assert [row["column_name"] for row in mine[: len(places)]] == names
        triggers = {row["row"] for row in mine if row["trigger"]}
        assert triggers == (set() if name == "wk0_acc" else set(run.task.fixed_triggers))
    assert len([row for row in memory_rows(run, "m", 6) if row["name"] == "wk0_acc" and row["kind"] == "score"]) == 25


def test_probes_stand_beside_the_line_of_the_same_weights(tmp_path):
    run = run_in(tmp_path)
    found = probes(memory_rows(run, "m", 2))
    assert list(found) == ["acc_end_test", "wo1_acc", "wk1_acc", "wk0_acc", f"wk0_{CUTOFF}_acc", "ff1_loss"]
    assert not any(row["in_log"] for row in found.values()), "there is no log"
    own = {name: row["value"] for name, row in found.items()}
    log(tmp_path, {"iter": 9, "wo1_acc": 0.5})
    assert not any(row["in_log"] for row in probes(memory_rows(run, "m", 2)).values())
    log(tmp_path, {"iter": 10, **own, "wo1_acc": 0.5, "split": "valid"}, {"iter": 10, **own})
    rows = memory_rows(run, "m", 2)
    assert {name: row["logged"] for name, row in probes(rows).items()} == own, "a line of training comes first"
    assert mismatches(rows) == []
    log(
        tmp_path, {"iter": 10, **own, "wo1_acc": 0.5, "ff1_loss": 1.0, "acc_end": own["acc_end_test"], "split": "valid"}
    )
    assert mismatches(memory_rows(run, "m", 2)) == [
        f"wo1_acc of m after 10 updates is {own['wo1_acc']}, the log has 0.5",
        "ff1_loss of m after 10 updates is None, the log has 1.0",
    ]


def test_accuracies_and_norms_are_checked_where_the_log_has_them(tmp_path, caplog):
    run = run_in(tmp_path)
    own = {name: row["value"] for name, row in probes(memory_rows(run, "m", 2)).items()}
    assert "none of its probes was checked" in caplog.text
    right = {name: value for name, value in own.items() if name != "acc_end_test"} | {"acc_end": own["acc_end_test"]}
    other = right | {"acc_end": 0.9}
    log(tmp_path, {"iter": 10, **other, "split": "valid1"}, {"iter": 10, **right, "split": "valid"})
    assert mismatches(memory_rows(run, "m", 2)) == []
    log(tmp_path, {"iter": 10, **other, "split": "valid"})
    (found,) = mismatches(memory_rows(run, "m", 2))
    assert found.startswith("acc_end_test of m after 10 updates")
    log(tmp_path, {"iter": 10, **own, "norm_layers.1.wo.weight": 1e9})
    (found,) = mismatches(memory_rows(run, "m", 2))
    assert found.startswith("norm_layers.1.wo.weight of m")


def test_memories_that_a_model_does_not_have(tmp_path):
    rows = memory_rows(run_in(tmp_path, use_rope=True), "m", 2)
    assert {row["name"] for row in rows if row["kind"] == "score"} == {"wo1_acc", "wk1_acc"}
    shallow = run_in(tmp_path, InductionHeadFull, InductionHeadFullConfig, ihead_layers=1)
    with pytest.raises(ValueError, match="has one layer only: memories are those of its first two layers"):
        memory_rows(shallow, "m", 2)
