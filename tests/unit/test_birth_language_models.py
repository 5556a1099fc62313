"""Language models of the package on sequences with triggers: where they look, and what their weights recall."""

import pytest
import torch

from fairseq_transnorm.measure.own_attention import attended_positions
from fairseq_transnorm.modules.attention import LinearAttention, LocalAttention


def against_itself(attention):
    """Let the score of two vectors be minus their product: every weight of a query at a key that it sees is negative."""
    dim = attention.out.in_features
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat([-torch.eye(dim), torch.eye(dim), torch.eye(dim)]))
        attention.qkv.bias.zero_()
    return attention


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (LinearAttention(4, 1, None, "identity", "none"), [0, 0, 0, 3, 3]),
        (LocalAttention(4, 1, None, 2, "identity", "none"), [0, 0, 2, 3, 4]),
        (LocalAttention(4, 1, None, 2, "softmax", "none"), [0, 0, 2, 3, 4]),
    ],
    ids=["linear", "local", "local softmax"],
)
def test_a_key_that_is_not_seen_never_wins(attention, expected):
    """Weights of -|x| |y| of parallel vectors: the shortest key that is seen wins, with a pointwise map or a softmax."""
    x = torch.tensor([1.0, 2.0, 4.0, 0.5, 3.0])[None, :, None].expand(1, 5, 4)
    with attended_positions(against_itself(attention)) as found:
        attention(x)
    assert found[0].tolist() == [[expected]]
