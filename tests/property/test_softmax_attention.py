"""Softmax attention: the kernels against the formula, in values and gradients; steps against the whole."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_transnorm.modules.softmax_attention import SoftmaxAttention

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64


def layer(causal: bool, seed: int) -> SoftmaxAttention:
    torch.manual_seed(seed)
    return SoftmaxAttention(8, 2, causal=causal).double()


def by_the_formula(attn, x, padding, causal):
    """Each head and query by itself."""
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    rows = []
    for b in range(len(x)):
        for t in range(x.shape[1]):
            seen = [s for s in range(x.shape[1]) if (s <= t or not causal) and not padding[b, s]]
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([q[b, t, h] @ k[b, s, h] / 2 for s in seen])  # sqrt(4)
                heads.append(scores.softmax(0) @ v[b, seen, h])
            rows.append(torch.cat(heads))
    return attn.out(torch.stack(rows).view_as(x))


@settings(max_examples=30)
@given(T=st.integers(1, 7), causal=st.booleans(), masked=st.integers(0, 3), seed=st.integers(0, 99))
def test_equals_the_formula(T, causal, masked, seed):
    attn = layer(causal, seed)
    x = torch.randn(2, T, 8, dtype=torch.float64, requires_grad=True)
    padding = torch.zeros(2, T, dtype=torch.bool)
    padding[1, max(1, T - masked) :] = True
    real = ~padding[..., None]
    fast = attn(x, padding if padding.any() else None)
    slow = by_the_formula(attn, x, padding, causal)
    torch.testing.assert_close(fast * real, slow * real, **EXACT)
    wanted = [x, *attn.parameters()]
    seen = torch.randn_like(x) * real
    for one, other in zip(
        torch.autograd.grad((fast * seen).sum(), wanted), torch.autograd.grad((slow * seen).sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, **EXACT)
    weights = attn.attention_weights(x, padding if padding.any() else None)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, T, dtype=torch.float64))
    assert not weights[1, ..., padding[1]].any()


@settings(max_examples=20)
@given(parts=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
@torch.no_grad()
def test_steps_equal_the_whole(parts, seed):
    attn = layer(True, seed)
    x = torch.randn(2, sum(parts), 8, dtype=torch.float64)
    outs, state, position = [], None, 0
    for part in x.split(parts, dim=1):
        out, state = attn.step(part, state, position)
        outs.append(out)
        position += part.shape[1]
    torch.testing.assert_close(torch.cat(outs, 1), attn(x), **EXACT)
