"""Sequences in groups of about one length: nothing is lost, and a layer computes what it does on a padded batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_transnorm.modules.attention import LinearAttention
from fairseq_transnorm.modules.feed_forward import FeedForward
from fairseq_transnorm.modules.layer import NORM_PLACEMENTS, TransformerLayer
from fairseq_transnorm.modules.length_groups import ROWS, LengthGroups
from fairseq_transnorm.modules.norms import SimpleRMSNorm
from fairseq_transnorm.modules.softmax_attention import SoftmaxAttention

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=14)


def padding_of(lengths, beyond=0):
    return torch.arange(max(lengths) + beyond) >= torch.tensor(lengths)[:, None]


@given(LENGTHS, st.integers(0, 3), st.integers(1, 8))
def test_each_symbol_is_in_one_group_and_comes_back(lengths, beyond, most):
    padding = padding_of(lengths, beyond)
    groups = LengthGroups.of(padding, most)
    assert len(groups.shapes) <= most
    assert len(groups.places) % ROWS == 0
    assert sum(size for size, _ in groups.shapes) == len(lengths)
    x = torch.randn(*padding.shape, 3)
    rows = groups.rows(x)
    parts = groups.parts(rows)
    real = sum(
        int(part.shape[0] * part.shape[1] - (0 if p is None else p.sum()))
        for part, p in zip(parts, groups.paddings, strict=True)
    )
    assert real == sum(lengths)
    back = groups.batched(rows)
    torch.testing.assert_close(back[~padding], x[~padding], rtol=0, atol=0)
    torch.testing.assert_close(groups.batched(groups.joined(parts)), back, rtol=0, atol=0)
    for part, group_padding in zip(parts, groups.paddings, strict=True):
        assert group_padding is None or group_padding.shape == part.shape[:2]
        assert group_padding is None or group_padding.any()
        assert group_padding is None or not group_padding[0].any(), "a group is as wide as its longest"


def layer(kind, placement, seed):
    torch.manual_seed(seed)
    attn = (
        SoftmaxAttention(8, 2, causal=kind == "causal")
        if kind in ("softmax", "causal")
        else LinearAttention(
            8, 2, SimpleRMSNorm() if kind == "linear" else None, lrpe="none", causal=False, denominator=kind != "linear"
        )
    )
    norms = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
    return TransformerLayer(attn, FeedForward(8, 12), *norms, norm_placement=placement).double()


@settings(max_examples=30)
@given(
    lengths=LENGTHS,
    kind=st.sampled_from(["softmax", "causal", "linear", "linear_denominator"]),
    placement=st.sampled_from(NORM_PLACEMENTS),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_padded_batch(lengths, kind, placement, seed):
    model, padding = layer(kind, placement, seed), padding_of(lengths)
    x = torch.randn(*padding.shape, 8, dtype=torch.float64, requires_grad=True)
    groups = LengthGroups.of(padding)
    fast, _ = model.forward_groups(groups.rows(x), groups)
    fast = groups.batched(fast)
    slow = model(x, padding if padding.any() else None)
    real = ~padding[..., None]
    torch.testing.assert_close(fast * real, slow * real, **EXACT)
    seen, wanted = torch.randn_like(x) * real, [x, *model.parameters()]
    for one, other in zip(
        torch.autograd.grad((fast * seen).sum(), wanted), torch.autograd.grad((slow * seen).sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, **EXACT)


@settings(max_examples=20)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_maps_are_those_of_the_padded_batch(lengths, seed):
    model, padding = layer("softmax", "post", seed), padding_of(lengths)
    x = torch.randn(*padding.shape, 8, dtype=torch.float64)
    groups = LengthGroups.of(padding)
    plain, none = model.forward_groups(groups.rows(x), groups)
    assert none is None
    rows, (weights, scores) = model.forward_groups(groups.rows(x), groups, maps=True)
    torch.testing.assert_close(rows[: groups.used], plain[: groups.used], **EXACT)
    keys = ~padding[:, None, None, :]
    both = (~padding)[:, None, :, None] & keys
    wanted = model.attn.attention_weights(x, padding if padding.any() else None)
    torch.testing.assert_close(weights.masked_fill(~both, 0.0), wanted.masked_fill(~both, 0.0), **EXACT)
    assert not weights.masked_fill(keys, 0.0).any()
    assert (scores.masked_fill(keys, float("-inf")) == float("-inf")).all()
    torch.testing.assert_close(scores.softmax(-1)[both.expand_as(scores)], wanted[both.expand_as(scores)], **EXACT)
    assert weights.shape == (len(lengths), 2, max(lengths), max(lengths))


def test_dropout_reaches_every_part():
    """Of the weights, of the wide channels and of both sublayers: with only one of them the output is random."""
    padding = padding_of([4, 2, 3])
    groups = LengthGroups.of(padding)
    for where in ("attn", "ffn", "self"):
        model = layer("softmax", "post", 1).train()
        (model if where == "self" else getattr(model, where)).dropout = 0.5
        rows = torch.randn(len(groups.places), 8, dtype=torch.float64)
        one, other = (model.forward_groups(rows, groups)[0][: groups.used] for _ in range(2))
        assert not torch.allclose(one, other), where
        model.eval()
        one, other = (model.forward_groups(rows, groups)[0][: groups.used] for _ in range(2))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
