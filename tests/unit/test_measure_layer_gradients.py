"""Gradients in the scores of real modules: against autograd through the scores, and never above their bound."""

from types import SimpleNamespace

import pytest
import torch

from fairseq_transnorm.measure.layer_gradients import (
    gradient_rows,
    largest_norm_gains,
    norm_gain,
    score_gradients,
)
from fairseq_transnorm.modules.attention import LinearAttention, LocalAttention
from fairseq_transnorm.modules.norms import SimpleRMSNorm
from tests.transnormer_reference import build_lm

FORMS = {
    "linear": lambda: LinearAttention(12, 3, SimpleRMSNorm(), "1+elu", "1d3"),
    "scaled linear": lambda: LinearAttention(12, 3, None, "1+elu", "none", denominator=True),
    "softmax": lambda: LocalAttention(12, 3, None, 5, "softmax", "1d3"),
}


def averaged(kind, scores, v):
    seen = torch.ones_like(scores, dtype=torch.bool).tril()
    if kind == "softmax":
        block = torch.arange(scores.shape[-1]) // 5
        seen &= block[:, None] == block
        return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    scores = scores.masked_fill(~seen, 0.0)
    return (scores / scores.sum(-1, keepdim=True) if kind == "scaled linear" else scores) @ v


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("T", [1, 5, 13])
def test_equals_autograd_through_the_scores(kind, T):
    torch.manual_seed(T)
    attn = FORMS[kind]().double()
    x, upstream = torch.randn(2, T, 12).double(), torch.randn(2, T, 12).double()
    q, k, v = (t.detach() for t in attn.features(attn.heads(attn.qkv(x))))
    scores = (q @ k.transpose(-1, -2)).requires_grad_()
    out = averaged(kind, scores, v[..., :4]).transpose(1, 2).flatten(2)
    (expected,) = torch.autograd.grad(out, scores, upstream)
    torch.testing.assert_close(score_gradients(attn, x, upstream), expected, rtol=1e-10, atol=1e-10)


def test_gain_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(norm_gain(SimpleRMSNorm(0.5), x), torch.tensor([1 / (12.5**0.5 + 0.5), 2.0]))
    torch.testing.assert_close(norm_gain(SimpleRMSNorm(0.25, True), x), torch.tensor([12.75**-0.5, 2.0]))


def test_largest_gains_while_training():
    model = build_lm(decoder_layers=2, norm_eps=1e-3)
    tokens = torch.randint(4, 20, (2, 9))
    with largest_norm_gains(model) as gains:
        model(tokens)[0].sum().backward()
        assert len(gains) == 6  # the linear attention's, two a layer, and the last
        before = dict(gains)
        with torch.no_grad():
            model.decoder.layers[-1].attn.qkv.weight.zero_()
            model.decoder.layers[-1].attn.qkv.bias.zero_()
        model(tokens)
    name = "decoder.layers.1.attn.norm"
    assert gains[name] == pytest.approx(1e3)  # v is zero, so is what the norm sees
    assert before[name] < 1e3
    assert all(not module._forward_pre_hooks for module in model.modules())


def run_of(model):
    return SimpleNamespace(model=model.eval(), path="model.pt", updates=3)


@pytest.mark.parametrize("options", [{}, {"norm_eps": 1e-2}, {"norm_eps": 1e-4, "norm_eps_inside": True}], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_in_a_model(options, seed):
    torch.manual_seed(seed)
    model = build_lm(decoder_layers=4, block_size=5, layer_split="0", **options)
    tokens = torch.randint(4, 20, (3, 14))
    rows = gradient_rows(run_of(model), "tiny", tokens)
    assert [row["layer"] for row in rows] == [1, 2, 3, 4]
    assert {(row["kind"], row["length"], row["sequences"], row["updates"]) for row in rows} == {("linear", 13, 3, 3)}
    eps = options.get("norm_eps", 1e-8)
    for row in rows:
        assert 0 < row["score_gradient"] <= row["bound"]
        assert row["median_norm_gain"] <= row["norm_gain"] <= (eps**-0.5 if "norm_eps_inside" in options else 1 / eps)
    together = gradient_rows(run_of(model), "tiny", tokens, batch=3)
    for row, same in zip(rows, together, strict=True):
        assert same["score_gradient"] == pytest.approx(row["score_gradient"], rel=1e-3)
        assert same["norm_gain"] == pytest.approx(row["norm_gain"], rel=1e-3)


def test_layers_without_a_norm_have_no_bound():
    model = build_lm(decoder_layers=2, block_size=5, attention_denominator=True, lrpe="none", linear_norm="none")
    rows = gradient_rows(run_of(model), "tiny", torch.randint(4, 20, (1, 12)))
    assert [row["kind"] for row in rows] == ["softmax", "scaled linear"]
    assert [row["bound"] for row in rows] == [row["norm_gain"] for row in rows] == [None, None]
    assert all(row["score_gradient"] > 0 for row in rows)


def test_what_cannot_be_measured_is_refused():
    model = build_lm(decoder_layers=2, max_target_positions=32, tokens_per_sample=32)
    with pytest.raises(ValueError, match="no next token"):
        gradient_rows(run_of(model), "tiny", torch.ones(1, 1).long())
    with pytest.raises(ValueError, match=r"model.pt: 40 tokens are more than the 32 positions"):
        gradient_rows(run_of(model), "tiny", torch.full((1, 41), 5))
    with pytest.raises(ValueError, match="no linear attention"):
        gradient_rows(run_of(torch.nn.Linear(2, 2)), "tiny", torch.full((1, 4), 5))
