"""Windows on the attention of a model that was given an induction head, and how often its heads look like one."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_transnorm.measure.attention_windows import Window, generated, given, head_shares, window_rows
from fairseq_transnorm.measure.checkpoints import Run
from fairseq_transnorm.models.birth.basic import InductionHeadBasic
from fairseq_transnorm.models.birth.config import InductionHeadBasicConfig
from tests.unit.test_bigram_icl_task import task_of
from tests.unit.test_memory_probes import remember

LENGTH = 24


@pytest.fixture(scope="module")
def run():
    task = task_of(tokens_per_sample=LENGTH, fixed_triggers=True, num_triggers=3)
    torch.manual_seed(0)
    options = InductionHeadBasicConfig(ihead_dim=4 * len(task.dictionary), tokens_per_sample=LENGTH)
    model = InductionHeadBasic.build_model(OmegaConf.structured(options), task).eval()
    remember(model, task.fixed_triggers)
    return Run(Path("some/checkpoint.pt"), model, None, task, updates=7, epochs=0)


def test_heads_of_perfect_memories_look_as_they_should(run):
    found = head_shares(run, generated(run, range(40)))
    assert set(found) == {(1, 1), (2, 1)}
    assert found[1, 1]["score_acc"] > 0.95
    assert found[2, 1]["score2_acc"] > 0.9
    assert found[1, 1]["score2_acc"] < 0.5
    assert found[2, 1]["score_acc"] < 0.5


def test_shares_of_many_sequences_are_those_of_all_their_positions(run):
    """More than are looked at together, of which some have no trigger twice."""
    batch = generated(run, range(40))
    alone = [head_shares(run, type(batch)(*(part[i : i + 1] for part in batch)))[2, 1]["score2_acc"] for i in range(40)]
    counts = (batch.c >= 2).sum(1).tolist()
    total = sum(share * count for share, count in zip(alone, counts, strict=True) if count)
    assert head_shares(run, batch)[2, 1]["score2_acc"] == pytest.approx(total / sum(counts))
    assert all((share is None) == (count == 0) for share, count in zip(alone, counts, strict=True))


def test_generated_sequences_are_those_of_the_data_set(run):
    one, two = generated(run, [3], seed=1), generated(run, [2, 3], seed=1)
    assert all(torch.equal(a, b[1:]) for a, b in zip(one, two, strict=True))
    run.task.cfg.data_seed = 42
    run.task.load_dataset("valid")
    assert generated(run, [3], "valid", 42).x.equal(run.task.dataset("valid")[3]["tokens"][None, :-1])
    assert not generated(run, [3], seed=2).x.equal(one.x)
    with pytest.raises(ValueError, match="no split 'tset'; there are train, valid, test"):
        generated(run, [0], "tset")


def test_a_window_has_the_weights_of_the_model(run):
    sequence = generated(run, [1])
    rows = window_rows(run, "m", sequence, Window(5, 8))
    maps = run.model(sequence.x, return_attention=True)[1]["attn"]
    x, c = sequence.x[0].tolist(), sequence.c[0].tolist()
    symbols = run.task.source_dictionary.symbols
    assert len(rows) == 2 * 8 * 9 // 2, "layers, and keys up to the query"
    for row in rows:
        t, j = row["query"], row["key"]
        assert row["weight"] == pytest.approx(maps[row["layer"] - 1][0, 0, t, j].item(), abs=1e-6)
        assert (row["query_token"], row["key_token"], row["query_counter"]) == (symbols[x[t]], symbols[x[j]], c[t])
        assert row["before_is_query"] == (c[t] >= 2 and x[j - 1] == x[t])
    assert {row["query"] for row in rows} == set(range(5, 13))
    assert {(row["updates"], row["head"], row["kind"]) for row in rows} == {(7, 1, "induction")}
    cut = window_rows(run, "m", sequence, Window(LENGTH - 2, 40))
    assert {row["query"] for row in cut} == {LENGTH - 2, LENGTH - 1}
    with pytest.raises(ValueError, match=f"begins at position {LENGTH}, and the sequence has {LENGTH}"):
        window_rows(run, "m", sequence, Window(LENGTH, 1))


def test_a_text_is_counted_by_the_fixed_triggers_or_by_those_given(run):
    a, b, c = (run.task.source_dictionary.symbols[i] for i in run.task.fixed_triggers)
    text = a + b + a + a + c
    assert given(run, text).c.tolist() == [[1, 1, 2, 3, 1]]
    assert given(run, text, b + c).c.tolist() == [[0, 1, 0, 0, 1]]
    drawn = Run(run.path, run.model, None, task_of(tokens_per_sample=LENGTH), 7, 0)
    assert given(drawn, text).c.tolist() == [[0] * 5]
    assert given(drawn, text, a).c.tolist() == [[1, 0, 2, 3, 0]]
    share = head_shares(run, given(run, text))[2, 1]["score2_acc"]
    assert share in (0, 0.5, 1), "of the two places where a has been before"


def test_texts_that_cannot_be_shown(run):
    with pytest.raises(ValueError, match=r"'€', '☃' are not in the corpus of some/checkpoint\.pt"):
        given(run, "a☃ €☃")
    with pytest.raises(ValueError, match="'€' is not in the corpus"):
        given(run, "aa", "€")
    for text in ("a", "a" * (LENGTH + 1)):
        with pytest.raises(ValueError, match=f"a text of {len(text)} characters; .* takes 2 to {LENGTH}"):
            given(run, text)
