"""Copying in context: sums and counts against loops over positions, a worked example, and what a model attends to."""

import copy

import pytest
import torch
from torch import nn

from fairseq_transnorm.measure import own_attention
from fairseq_transnorm.measure.attention import each_attention
from fairseq_transnorm.measure.copying import (
    ATTENTION,
    PREDICTION,
    Triggered,
    attended_sums,
    attention_sums,
    in_context_accuracy,
    packed,
    prediction_sums,
    ratios,
    summed,
)
from fairseq_transnorm.measure.own_attention import attended_positions
from tests.birth_reference import T, V, build

# Of the vocabulary a b c d: the trigger b has the output d.
LETTERS = torch.tensor([["abcd".index(letter) for letter in "abdbdca"]])
EXAMPLE = Triggered(LETTERS[:, :-1], LETTERS[:, 1:], torch.tensor([[0, 1, 0, 2, 0, 0]]))


def values(sums):
    return {name: (float(part.total), int(part.positions)) for name, part in sums.items()}


def test_the_worked_example():
    nats = torch.tensor([[1.0, 2, 4, 8, 16, 32]])
    predicted = torch.tensor([[0, 3, 0, 3, 2, 0]])
    assert values(prediction_sums(EXAMPLE, nats, EXAMPLE.c >= 2, predicted, start_length=2)) == {
        "loss": (8.0, 1),
        "loss_bigram": (1 + 4 + 16 + 32, 4),
        "loss_head": (8.0, 1),
        "acc_tot": (2.0, 2),
        "acc_start": (1.0, 1),
        "acc_end": (1.0, 1),
        "repeat_frac": (0.0, 2),
    }
    # the first layer looks one back; at the second b (position 3) the second layer looks at the d after the first b
    a1, a2 = torch.tensor([[0, 0, 1, 2, 3, 4]]), torch.tensor([[0, 0, 0, 2, 0, 0]])
    assert values(attention_sums(EXAMPLE, predicted, a1, a2)) == {
        "score_acc": (2.0, 2),
        "score_start_acc": (1.0, 1),
        "score2_next_acc": (1.0, 1),
        "pred_attended_acc": (1.0, 1),
        "score2_acc": (1.0, 1),
        "score_cond_acc": (1.0, 1),
        "score1_repeat_val_acc": (0.0, 0),
        "score2_repeat_val_acc": (0.0, 0),
    }


def test_a_trigger_that_is_its_own_output():
    x = torch.tensor([[1, 1, 1]])
    batch = Triggered(x, x, torch.tensor([[1, 2, 3]]))
    a1, a2 = torch.tensor([[0, 0, 2]]), torch.tensor([[0, 0, 1]])
    found = values(attention_sums(batch, torch.tensor([[0, 0, 1]]), a1, a2))
    assert found["score_acc"] == (1.0, 2), "the last position has none after it"
    assert found["score2_acc"] == (1.0, 2), "nothing stands before the first position"
    assert found["score_cond_acc"] == (1.0, 1), "of one that has a position before it"
    assert found["pred_attended_acc"] == (1.0, 2)
    assert found["score1_repeat_val_acc"] == found["score2_repeat_val_acc"] == (2.0, 2)
    assert values(prediction_sums(batch, torch.zeros(1, 3), x > 0, x))["repeat_frac"] == (3.0, 3)


def slow(batch, nats, counted, predicted, a1, a2, start, end):
    """The definitions, one position at a time."""
    sums = {name: [0.0, 0] for name in (*PREDICTION, *ATTENTION)}

    def add(name, hit, where=True):
        sums[name][0] += float(hit) if where else 0.0
        sums[name][1] += int(where)

    x, y, c, p, a1, a2 = (part.tolist() for part in (*batch, predicted, a1, a2))
    length = len(x[0])
    for b in range(len(x)):
        for t in range(length):
            loss, right = float(nats[b, t]), p[b][t] == y[b][t]
            add("loss", loss, bool(counted[b, t]))
            add("loss_bigram", loss, c[b][t] == 0)
            add("loss_head", loss, c[b][t] >= 2)
            add("acc_tot", right, c[b][t] >= 1)
            add("acc_start", right, c[b][t] >= 1 and t < start)
            add("acc_end", right, c[b][t] >= 2 and t >= length - end)
            add("repeat_frac", x[b][t] == y[b][t], c[b][t] >= 1)
            if t < length - 1:
                add("score_acc", a1[b][t + 1] == t, c[b][t] >= 1)
                add("score_start_acc", a1[b][t + 1] == t, c[b][t] == 1)
            if c[b][t] < 2:
                continue
            j = a2[b][t]
            add("score2_next_acc", x[b][j] == y[b][t])
            add("pred_attended_acc", x[b][j] == p[b][t])
            add("score2_acc", j >= 1 and x[b][j - 1] == x[b][t])
            add("score_cond_acc", a1[b][j] == j - 1, j >= 1)
            add("score1_repeat_val_acc", x[b][a1[b][t]] == y[b][t], x[b][t] == y[b][t])
            add("score2_repeat_val_acc", x[b][j] == y[b][t], x[b][t] == y[b][t])
    return {name: (pytest.approx(total), count) for name, (total, count) in sums.items()}


@pytest.mark.parametrize(
    ("rows", "length", "start", "end"), [(5, 12, 10, 500), (3, 9, 4, 5), (2, 1, 1, 1), (4, 2, 3, 1)]
)
def test_loops_over_positions_agree(rows, length, start, end):
    torch.manual_seed(length)
    x, y = torch.randint(0, 3, (2, rows, length))
    c = torch.randint(-1, 4, (rows, length))  # -1 is a trigger that is shown at the start
    predicted = torch.randint(0, 3, (rows, length))
    a1, a2 = torch.randint(0, length, (2, rows, length))
    nats, counted = torch.rand(rows, length), torch.rand(rows, length) < 0.5
    batch = Triggered(x, y, c)
    fast = prediction_sums(batch, nats, counted, predicted, start, end) | attention_sums(batch, predicted, a1, a2)
    assert values(fast) == slow(batch, nats, counted, predicted, a1, a2, start, end)


def test_heads_and_layers_that_have_no_value():
    torch.manual_seed(0)
    one, two = torch.zeros(1, 1, 6, dtype=torch.int64), torch.zeros(1, 2, 6, dtype=torch.int64)
    predicted = torch.zeros_like(EXAMPLE.x)
    for attended in ([], [one, two], [two], [two, one]):
        assert attended_sums(EXAMPLE, predicted, attended) == {}
    found = values(attended_sums(EXAMPLE, predicted, [one]))
    assert found["score_acc"][1] == 2
    assert found["score2_acc"] == found["score2_next_acc"] == found["score_cond_acc"] == (0.0, 0)
    assert values(attended_sums(EXAMPLE, predicted, [one, one, two])) == values(
        attention_sums(EXAMPLE, predicted, one[0], one[0])
    )


def test_tables_add_up_over_batches_and_no_position_is_no_value():
    logs = [
        {"prediction_sums": packed(prediction_sums(batch, torch.ones(1, n), batch.c > 9, batch.x), PREDICTION)}
        for batch, n in ((EXAMPLE, 6), (Triggered(*(part[:, :2] for part in EXAMPLE)), 2))
    ]
    found = ratios(summed(logs))
    assert list(found) == list(PREDICTION)
    assert found["loss"] is None
    assert found["loss_bigram"] == 1.0
    assert found["acc_tot"] == 0.0
    assert summed(logs)["acc_tot"] == (0.0, 3)
    assert set(ratios(summed([{"attention_sums": packed({}, ATTENTION)}])).values()) == {None}


MODELS = [
    ("ihead_basic", {}),
    ("ihead_basic", {"use_rope": True, "final_ffn": True}),
    ("ihead_full", {}),
    ("ihead_full", {"post_norm": True, "ihead_layers": 3}),
    ("ihead_full", {"ihead_heads": 1, "no_norm": True, "no_ffn": True}),
]


@pytest.mark.parametrize(("name", "options"), MODELS, ids=str)
def test_where_a_model_looks_while_it_runs(name, options, monkeypatch):
    model, tokens = build(name, **options), torch.randint(0, V, (5, T))
    _, extra = model(tokens, return_attention=True)
    plain = model(tokens)[0]
    for piece in (2**25, 1):  # all sequences at once, or one by one
        monkeypatch.setattr(own_attention, "_PIECE", piece)
        with attended_positions(model) as attended:
            watched = model(tokens)[0]
        assert torch.equal(watched, plain)
        assert len(attended) == len(extra["attn"])
        assert all(
            torch.equal(found, weights.argmax(-1)) for found, weights in zip(attended, extra["attn"], strict=True)
        )
        assert not any(found.requires_grad for found in attended)
    model(tokens)
    assert len(attended) == len(extra["attn"]), "nobody looks any more"
    for result, weights in zip(each_attention(model, tokens, lambda w: w), extra["attn"], strict=True):
        torch.testing.assert_close(result.value, weights)
        assert result.kind == "induction"


class Copies(nn.Module):
    """Predicts the token before the last, and knows whether it is trained."""

    def forward(self, src_tokens):
        assert not self.training
        return nn.functional.one_hot(src_tokens.roll(1, 1), 4).float(), {}


def test_accuracy_in_context_over_batches():
    model = Copies().train()
    sample = {"net_input": {"src_tokens": EXAMPLE.x}, "target": EXAMPLE.y, "counters": EXAMPLE.c}
    other = copy.deepcopy(sample)
    other["counters"] = torch.tensor([[2, 2, 2, 2, 0, 0]])
    assert in_context_accuracy(model, [sample]) == 1.0
    assert in_context_accuracy(model, [other]) == 2 / 4
    assert in_context_accuracy(model, [sample, other]) == 3 / 5
    assert in_context_accuracy(model, [sample], end_length=2) is None
    assert in_context_accuracy(model, []) is None
    assert model.training
