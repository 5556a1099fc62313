"""In-context accuracy without one kind of look: which keys it takes, and that nothing else changes."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_transnorm.data.symbol_dictionary import SymbolDictionary
from fairseq_transnorm.measure.birth_ablation import cut_sums, looked_at
from fairseq_transnorm.measure.copying import Triggered
from fairseq_transnorm.measure.own_attention import edited_weights
from fairseq_transnorm.models.birth.basic import InductionHeadBasic
from fairseq_transnorm.models.birth.config import InductionHeadBasicConfig, InductionHeadFullConfig
from fairseq_transnorm.models.birth.full import InductionHeadFull
from fairseq_transnorm.models.normgrowth.config import NormGrowthLMConfig
from fairseq_transnorm.models.normgrowth.lm import NormGrowthLM
from fairseq_transnorm.models.transnormer.config import TransNormerLMConfig
from fairseq_transnorm.models.transnormer.lm import TransNormerLM

V, T = 3, 6
SYMBOLS = SymbolDictionary("abc")
LM = {"decoder_embed_dim": 8, "decoder_layers": 2, "decoder_attention_heads": 2, "max_target_positions": None}
LINEAR = LM | {"layer_split": "0"}
PLAIN = {"lrpe": "none", "attention_denominator": True}
MODELS = {
    "basic": (InductionHeadBasic, InductionHeadBasicConfig, {"ihead_dim": 8}),
    "full": (InductionHeadFull, InductionHeadFullConfig, {"ihead_dim": 8, "ihead_heads": 2}),
    "linear": (TransNormerLM, TransNormerLMConfig, LINEAR),
    "linear with a denominator": (TransNormerLM, TransNormerLMConfig, LINEAR | PLAIN),
    "local": (TransNormerLM, TransNormerLMConfig, LM | {"layer_split": "1", "block_size": 4}),
    "normgrowth": (NormGrowthLM, NormGrowthLMConfig, LM | {"decoder_ffn_embed_dim": 8}),
}


def build(name, **more):
    kind, config, options = MODELS[name]
    torch.manual_seed(0)
    cfg = OmegaConf.structured(config(**{**options, "tokens_per_sample": T, **more}))
    return kind.build_model(cfg, SimpleNamespace(target_dictionary=SYMBOLS)).eval()


def sequences():
    """The trigger 1 is followed by 0; it comes at 1, 3 and 5, in the first sequence."""
    x = torch.tensor([[2, 1, 0, 1, 0, 1], [0, 2, 2, 0, 1, 0]])
    return Triggered(x, x.roll(-1, 1), (x == 1).cumsum(1) * (x == 1))


def test_where_each_look_is():
    x = sequences().x
    assert looked_at(x, "back")[1].nonzero().tolist() == [[t, t - 1] for t in range(1, T)]
    assert looked_at(x, "itself")[0].nonzero().tolist() == [[t, t] for t in range(T)]
    # behind 1, at 2 and 4; behind 0, at 3 and 5
    assert looked_at(x, "behind")[0].nonzero().tolist() == [[3, 2], [4, 3], [5, 2], [5, 4]]


@pytest.mark.parametrize("name", MODELS)
def test_weights_left_as_they_are_change_nothing(name):
    model, tokens, seen = build(name), sequences().x, []

    def edit(layer, weights):
        seen.append((layer, tuple(weights.shape)))
        return weights

    with torch.no_grad():
        expected = model(tokens)[0]
        with edited_weights(model, edit):
            torch.testing.assert_close(model(tokens)[0], expected)
        heads = 1 if name == "basic" else 2
        assert seen == [(0, (2, heads, T, T)), (1, (2, heads, T, T))]
        with edited_weights(model, lambda layer, weights: weights * (layer == 0)):
            assert not torch.allclose(model(tokens)[0], expected)
        torch.testing.assert_close(model(tokens)[0], expected)
    assert not any({"mix", "attend", "read_out"} & set(vars(module)) for module in model.modules())


def test_shares_of_uniform_weights():
    """With keys of 0 all weights of a query are 1/(t + 1)."""
    model = build("basic")
    with torch.no_grad():
        for layer in model.layers:
            layer.wk.weight.zero_()
    batch = sequences()
    _, known, share, count = cut_sums(model, batch, 0, "back").tolist()
    # after the first 1: at position 2 of the first sequence, at 5 of the second
    assert (known, count) == (2, 2)
    assert share == pytest.approx(1 / 3 + 1 / 6)
    _, known, share, count = cut_sums(model, batch, 1, "behind").tolist()
    assert (known, count) == (2, 2)
    assert share == pytest.approx(1 / 4 + 2 / 6)
    assert cut_sums(model, batch).tolist()[1:] == [2, 0, 0]


def test_the_predictions_are_those_of_the_cut_model():
    model, batch = build("normgrowth"), sequences()
    keys = looked_at(batch.x, "behind")[:, None]
    with torch.no_grad(), edited_weights(model, lambda n, w: w * ~keys if n == 1 else w):
        predicted = model(batch.x)[0].argmax(-1)
    hits = sum(int(predicted[0, t] == batch.y[0, t]) for t in (3, 5))
    assert cut_sums(model, batch, 1, "behind")[:2].tolist() == [hits, 2]


def test_attention_over_the_batch_is_refused():
    model = build("normgrowth", attention_axis="batch")
    with pytest.raises(ValueError, match="attends over the sequences of a batch"):
        cut_sums(model, sequences())
