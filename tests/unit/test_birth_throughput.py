"""The benchmark of training: both forms learn the same, and what is timed is what it says."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairseq_transnorm.measure.birth_throughput import Setting, both_trainings, throughput_rows
from fairseq_transnorm.measure.paired_training import FAIRSEQ, PLAIN, check_agreement, medians
from tests.helpers import ROOT

TINY = Setting(str(ROOT / "tests/data/lighthouse.txt"), width=16, length=24, batch=4, held=2, updates=3)


def test_rows_of_both_forms_in_turns():
    rows = throughput_rows(replace(TINY, sampler="reference"), repeats=2)
    assert [(row["turn"], row["form"]) for row in rows] == [(0, PLAIN), (0, FAIRSEQ), (1, PLAIN), (1, FAIRSEQ)]
    for row in rows:
        assert row["sequences"] == 12
        assert row["sequences_per_second"] == pytest.approx(12 / row["seconds"])
        assert 0 < row["data_share"] < 1
        assert row["loss_difference"] < 1e-5
        assert row["parameter_difference"] < 1e-4
    plain, ours = rows[:2]
    assert plain["ratio"] == 1
    assert ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert 0 < ours["first_batch"] <= ours["data_share"] * ours["seconds"]
    lines = medians(rows)
    assert [line["form"] for line in lines] == [PLAIN, FAIRSEQ]
    assert lines[1]["ratio"] == pytest.approx((rows[1]["ratio"] + rows[3]["ratio"]) / 2)


def test_forms_that_disagree_are_not_timed():
    with both_trainings(TINY) as (ours, plain):
        with torch.no_grad():
            plain.model.layers[1]["wo"].weight.mul_(1.5)
        with pytest.raises(ValueError, match=r"3 updates on the same batches .* do not compute the same"):
            check_agreement(ours, plain)


def test_what_is_frozen_stays_and_no_process_is_left():
    with both_trainings(TINY) as (ours, plain):
        before = {name: value.clone() for name, value in plain.model.state_dict().items()}
        times = ours.turn()
        assert ours.trainer.get_num_updates() == 3
        assert not multiprocessing.active_children(), "they would work on while the other form is timed"
        assert 0 < times["data_seconds"] < times["seconds"]
        plain.turn(2)
        for model in (ours.model, plain.model):
            moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
            assert moved == {"layers.0.wk.weight", "layers.1.wk.weight", "layers.1.wo.weight"}


def test_the_plain_loop_goes_through_one_stream():
    with both_trainings(TINY) as (_, plain):
        (tokens, targets, counters), again = plain.draw(), plain.draw()
        rng = np.random.default_rng([42, 0])
        expected = [plain.sampler.sequence(rng) for _ in range(8)]
        assert tokens.tolist() == [sequence.tokens[:-1].tolist() for sequence in expected[:4]]
        assert targets.tolist() == [sequence.tokens[1:].tolist() for sequence in expected[:4]]
        assert counters.tolist() == [sequence.counters.tolist() for sequence in expected[:4]]
        assert again[0].tolist() == [sequence.tokens[:-1].tolist() for sequence in expected[4:]]
