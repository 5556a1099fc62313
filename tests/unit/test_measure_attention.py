"""Attention weights of every layer: of ours, and of fairseq's own transformer, head by head."""

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_transnorm.measure.attention import attention_modules, each_attention
from fairseq_transnorm.measure.efficiency import build_model
from fairseq_transnorm.measure.recorder import record
from tests.transnormer_reference import T1, build_lm, random_tokens

TOLERANCE = {"rtol": 0, "atol": 1e-12}  # float64


def keep(weights):
    return weights.clone()


def test_layers_come_in_order_with_their_kinds():
    model = build_lm(layer_split="linear,local,linear,local")
    found = each_attention(model, random_tokens(2, 12), lambda w: tuple(w.shape))
    assert [(r.module, r.kind, r.value) for r in found] == [
        (f"decoder.layers.{i}.attn", kind, (2, 2, 12, 12)) for i, kind in enumerate(["linear", "local"] * 2)
    ]


@pytest.mark.parametrize(
    ("name", "kind", "causal"),
    [("normgrowth_control", "softmax", True), ("normgrowth_si_norm", "si_norm", True), ("dslm_bert", "softmax", False)],
)
def test_softmax_attention_of_the_package_is_known(name, kind, causal):
    model, tokens = build_model(name, 12, 16, 2, 4, 24), random_tokens(3, 12)
    tokens[1, 9:] = 1  # padding
    for number, result in enumerate(each_attention(model, tokens, keep)):
        assert result.module.endswith(f"layers.{number}.attn")
        assert result.kind == kind
        torch.testing.assert_close(result.value.sum(-1), torch.ones(3, 4, 12))
        assert torch.equal(result.value, result.value.tril()) == causal
        assert (result.value[1, :, :9, 9:] == 0).all(), "padding comes last, or is masked"


@pytest.mark.parametrize("options", [{}, T1, {"post_norm": True}], ids=["t2", "t1", "post-norm"])
def test_the_weights_explain_the_output_of_each_layer(options):
    """Weights times values, normalised and projected, is what the layer's attention really adds."""
    model, tokens = build_lm(**options), random_tokens(2, 21)
    with torch.no_grad():
        hidden = model.decoder(tokens, return_all_hiddens=True)[1]["inner_states"]
        found = each_attention(model, tokens, keep)
        for layer, x, result in zip(model.decoder.layers, hidden, found, strict=False):
            x = x.transpose(0, 1)
            attn_in = layer.attn_norm(x) if layer.norm_placement == "pre" else x
            width = x.shape[-1]
            v = (attn_in @ layer.attn.qkv.weight[2 * width :].T + layer.attn.qkv.bias[2 * width :]).unflatten(
                -1, (2, -1)
            )
            out = (result.value @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
            out = layer.attn.out(out if layer.attn.norm is None else layer.attn.norm(out))
            torch.testing.assert_close(out, layer.attn(attn_in), **TOLERANCE)


def test_looking_changes_nothing():
    model, tokens = build_lm(dropout=0.3), random_tokens(2, 9)
    before = model(tokens)[0]
    model.train()
    first = each_attention(model, tokens, keep)
    second = each_attention(model, tokens, keep)
    assert model.training
    assert all(torch.equal(a.value, b.value) for a, b in zip(first, second, strict=True)), "dropout is off"
    assert not any(m._forward_pre_hooks for m in model.modules()), "no hook stays"
    torch.testing.assert_close(model.eval()(tokens)[0], before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="reduce failed"):
        each_attention(model, tokens, fail)
    assert not any(m._forward_pre_hooks for m in model.modules()), "not even after an error"


def fail(_weights):
    raise RuntimeError("reduce failed")


class FairseqLayers(nn.Module):
    """Two self-attentions of fairseq one after the other, called as its decoder calls them."""

    def __init__(self, causal):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(24, 16)
        self.layers = nn.ModuleList(MultiheadAttention(16, 4, dropout=0.5, self_attention=True) for _ in range(2))
        for parameter in self.parameters():  # its own start gives weights that hardly differ between heads
            nn.init.normal_(parameter, std=0.7)
        self.causal = causal
        self.outputs = []

    def forward(self, tokens):
        x = self.embed(tokens).transpose(0, 1)
        mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1) if self.causal else None
        for layer in self.layers:
            x, mean = layer(query=x, key=x, value=x, incremental_state=None, need_weights=True, attn_mask=mask)
            self.outputs.append((x, mean))
        return x


@pytest.mark.parametrize("causal", [True, False])
def test_fairseqs_heads_are_told_apart(causal):
    model, tokens = FairseqLayers(causal).double().eval(), random_tokens(3, 10)
    found = each_attention(model, tokens, keep)
    x = model.embed(tokens).transpose(0, 1)
    for layer, result, (out, mean) in zip(model.layers, found, model.outputs, strict=True):
        weights = result.value.double()  # fairseq takes its softmax in float32
        assert weights.shape == (3, 4, 10, 10)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 10).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(weights.mean(1), mean, rtol=0, atol=1e-6)
        v = layer.v_proj(x).unflatten(-1, (4, 4)).permute(1, 2, 0, 3)
        again = layer.out_proj((weights @ v).permute(2, 0, 1, 3).flatten(2))
        torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4)
        assert (weights.std(1) > 1e-3).any(), "a mean over heads would pass otherwise"
        assert torch.equal(weights, weights.tril()) == causal
        x = out


def test_other_attentions_are_refused():
    model = nn.Sequential(nn.Embedding(24, 4), nn.Linear(4, 4))
    assert attention_modules(model) == {}
    with pytest.raises(ValueError, match="no attention in Sequential"):
        each_attention(model, random_tokens(1, 4), keep)


def test_recorder_collects_in_order_and_leaves_no_hook():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    with record(model, "[02]", lambda out: out.shape[-1]) as rows:
        model(torch.zeros(1, 2))
        model[0](torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert rows == [{"module": "0", "value": 3}, {"module": "2", "value": 4}, {"module": "0", "value": 3}]
    with (
        pytest.raises(LookupError, match=r"no module matches 'attn\*'; at the top are \['0', '1', '2'\]"),
        record(model, "attn*", lambda out: out),
    ):
        pass
