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
from tests.transnormer_reference import T1, build_lm, random_tokens

FORMS = {
    "linear": lambda: LinearAttention(12, 3, SimpleRMSNorm(), "1+elu", "1d3"),
    "scaled linear": lambda: LinearAttention(12, 3, None, "1+elu", "none", denominator=True),
    "softmax": lambda: LocalAttention(12, 3, None, 5, "softmax", "1d3"),
    "silu": lambda: LocalAttention(12, 3, None, 5, "silu", "1d3"),
}


def averaged(kind, scores, v):
    seen = torch.ones_like(scores, dtype=torch.bool).tril()
    if kind in ("softmax", "silu"):
        block = torch.arange(scores.shape[-1]) // 5
        seen &= block[:, None] == block
    if kind == "softmax":
        return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    if kind == "silu":
        scores = torch.nn.functional.silu(scores)
    scores = scores.masked_fill(~seen, 0.0)
    if kind == "scaled linear":
        scores = scores / scores.sum(-1, keepdim=True).clamp(min=1e-6)
    return scores @ v


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("T", [1, 5, 13])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_equals_autograd_through_the_scores(kind, T, size):
    torch.manual_seed(T)
    attn = FORMS[kind]().double()
    if size < 1:  # sums of relu features below the floor of the denominator, some of them 0
        attn.activation = torch.relu if kind == "scaled linear" else attn.activation
        attn.qkv.weight.data.mul_(size)
    x, upstream = torch.randn(2, T, 12).double(), torch.randn(2, T, 12).double()
    q, k, v = (t.detach() for t in attn.features(attn.heads(attn.qkv(x))))
    scores = (q @ k.transpose(-1, -2)).requires_grad_()
    out = averaged(kind, scores, v[..., :4]).transpose(1, 2).flatten(2)
    (expected,) = torch.autograd.grad(out, scores, upstream)
    torch.testing.assert_close(score_gradients(attn, x, upstream), expected, rtol=1e-9, atol=1e-10)


def test_attention_that_sees_later_tokens_is_refused():
    attn = LinearAttention(12, 3, None, causal=False)
    with pytest.raises(ValueError, match="causal attention only"):
        score_gradients(attn, torch.zeros(1, 4, 12), torch.zeros(1, 4, 12))


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


def test_the_bound_by_hand():
    """One token and one layer: T = (q . k) v, and the bound is |dL / dO| |longest head of v| / (rms(T) + eps)."""
    model = build_lm(decoder_layers=1, layer_split="0", norm_eps=0.1)
    tokens = torch.tensor([[5, 6]])
    (row,) = gradient_rows(run_of(model), "tiny", tokens)
    attn = model.decoder.layers[0].attn
    kept = {}
    attn.qkv.register_forward_hook(lambda _m, _x, out: kept.update(v=out[0, 0, -16:].view(2, 8)))
    attn.norm.register_forward_hook(lambda _m, x, _out: kept.update(mixed=x[0]))
    attn.out.register_forward_pre_hook(lambda _m, x: kept.update(out=x[0]))
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :1])[0][0], tokens[0, 1:])
    (grad,) = torch.autograd.grad(loss, kept["out"])
    gain = 1 / (float(kept["mixed"].square().mean().sqrt()) + 0.1)
    assert row["norm_gain"] == row["median_norm_gain"] == pytest.approx(gain)
    assert row["bound"] == pytest.approx(gain * float(grad.norm() * kept["v"].norm(dim=-1).max()))


def test_all_layers_are_counted_and_dropout_is_off():
    model = build_lm(decoder_layers=4, block_size=5, dropout=0.5, **T1).train()
    tokens = random_tokens(1, 12)
    run = SimpleNamespace(model=model, path="model.pt", updates=3)
    first, second = (gradient_rows(run, "tiny", tokens) for _ in range(2))
    assert first == second
    assert model.training
    assert [(row["layer"], row["kind"]) for row in first] == [(1, "relu"), (2, "relu"), (3, "linear"), (4, "linear")]


def test_numbers_that_are_not_are_not_hidden():
    model = build_lm(decoder_layers=2)
    model.decoder.layers[-1].attn.qkv.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"model.pt: .* not finite numbers in decoder.layers.0.attn"):
        gradient_rows(run_of(model), "tiny", random_tokens(1, 12))
    with largest_norm_gains(model) as gains:
        model(random_tokens(1, 12))
    assert gains["decoder.layers.1.attn.norm"] != gains["decoder.layers.1.attn.norm"]


def test_a_norm_after_a_denominator_bounds_nothing():
    model = build_lm(decoder_layers=2, attention_denominator=True, lrpe="none", layer_split="0")
    rows = gradient_rows(run_of(model), "tiny", random_tokens(1, 12))
    assert [row["bound"] for row in rows] == [None, None]
    assert all(row["norm_gain"] > 0 for row in rows)


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
    with pytest.raises(ValueError, match="no linear or local attention"):
        gradient_rows(run_of(torch.nn.Linear(2, 2)), "tiny", torch.full((1, 4), 5))
