"""What computing parts of a layer again must not change: gradients, hooks, arguments, states."""

import pytest
import torch

from fairseq_transnorm.modules.attention import LinearAttention, LocalAttention
from fairseq_transnorm.modules.feed_forward import FeedForward, GatedFeedForward
from fairseq_transnorm.modules.layer import TransformerLayer, add_with_dropout
from fairseq_transnorm.modules.linear_attention import chunkwise_linear_attention
from fairseq_transnorm.modules.norms import RMSNorm, SimpleRMSNorm


def layer(dropout=0.0, attention_dropout=0.0, ffn=None):
    torch.manual_seed(0)
    attn = LocalAttention(8, 2, None, block_size=4, dropout=attention_dropout)
    return TransformerLayer(attn, ffn or GatedFeedForward(8, 12), SimpleRMSNorm(), SimpleRMSNorm(), dropout).double()


def gradients(module, x):
    torch.manual_seed(1)
    module(x).square().sum().backward()
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


def test_attention_dropout_that_is_set_later_gives_the_gradients_of_its_own_masks():
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    built, changed = layer(attention_dropout=0.3), layer()
    changed.attn.dropout = 0.3
    torch.testing.assert_close(gradients(changed, x), gradients(built, x))


def test_dropout_leaves_its_argument_alone_and_keeps_the_mean():
    torch.manual_seed(0)
    x, change = torch.zeros(200, 200), torch.ones(200, 200)
    out = add_with_dropout(x, change, 0.25)
    assert change.eq(1).all()
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("act", ["sigmoid", "exp", "relu"])
def test_a_step_in_training_can_be_differentiated(act):
    module = layer(dropout=0.5, ffn=GatedFeedForward(8, 12, final_activation=act))
    out, _ = module.step(torch.randn(1, 3, 8, dtype=torch.float64), None, 0)
    out.sum().backward()
    assert module.ffn.out.weight.grad is not None


@pytest.mark.parametrize("ffn", [GatedFeedForward(8, 12), FeedForward(8, 12)])
@pytest.mark.parametrize("tokens", [5, 3000])
def test_hooks_see_each_sublayer_once_and_whole(ffn, tokens):
    module = layer(ffn=ffn).eval()
    seen = []
    for sub in (module.attn, module.ffn):
        sub.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    with torch.no_grad():
        module(torch.randn(1, tokens, 8, dtype=torch.float64))
    assert seen == [(1, tokens, 8)] * 2


def test_the_state_alone_can_need_a_gradient():
    q, k, v = (torch.randn(2, 2, 10, 4) for _ in range(3))
    state = torch.randn(2, 2, 4, 4, requires_grad=True)
    out, _ = chunkwise_linear_attention(q, k, v, 4, state)
    out.sum().backward()
    torch.testing.assert_close(state.grad, q.sum(2)[..., None].expand_as(state))


def test_the_local_state_holds_no_more_than_the_open_block():
    attn = LocalAttention(8, 2, None, block_size=5)
    with torch.no_grad():
        _, state = attn.step(torch.randn(1, 38, 8), None, 0)
    assert [x.untyped_storage().nbytes() for x in state] == [2 * 3 * 4 * 4] * 2


@pytest.mark.parametrize("kind", [LinearAttention, LocalAttention])
def test_bidirectional_attention_has_no_steps(kind):
    with pytest.raises(ValueError, match="not causal"):
        kind(8, 2, None, causal=False).step(torch.randn(1, 1, 8), None, 0)


def test_a_zero_row_has_no_gradient_that_is_not_a_number():
    x = torch.zeros(1, 8, requires_grad=True)
    RMSNorm(8, partial=0.5)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_an_unknown_form_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="unknown causal_impl 'fast'"):
        LinearAttention(8, 2, None, impl="fast")
