"""The benchmark of training on a formal language: both forms learn the same, and disagreement is seen."""

from dataclasses import replace

import pytest
import torch

from fairseq_transnorm.measure.paired_training import FAIRSEQ, PLAIN, check_agreement
from fairseq_transnorm.measure.rasp_throughput import Setting, both_trainings, throughput_rows

TINY = Setting(language="hist_10_bos", heads=2, width=8, max_length=6, batch=5, updates=4)


def test_rows_of_both_forms_in_turns():
    rows = throughput_rows(TINY, repeats=2)
    assert [(row["turn"], row["form"]) for row in rows] == [(0, PLAIN), (0, FAIRSEQ), (1, PLAIN), (1, FAIRSEQ)]
    for row in rows:
        assert row["sequences"] == 20
        assert row["loss_difference"] < 1e-5
        assert row["parameter_difference"] < 1e-4


def test_forms_that_disagree_are_not_timed():
    with both_trainings(replace(TINY, optimizer="sgd", dropout=0.0)) as (ours, plain):
        with torch.no_grad():
            plain.model.layers[1]["ffn"]["out"].weight.mul_(1.5)
        with pytest.raises(ValueError, match=r"4 updates on the same batches .* do not compute the same"):
            check_agreement(ours, plain)
