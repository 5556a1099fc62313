"""f(x; c theta) is scaling in place, with tied weights too, but leaves the model alone; padding changes nothing."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.measure.efficiency import build_model
from fairseq_transnorm.measure.hidden_states import HiddenStates
from fairseq_transnorm.measure.layer_saturation import FairseqStack, layer_rows
from fairseq_transnorm.measure.scaling import ScaledNetwork, sinusoidal_positions

SYMBOLS, LENGTH, PAD = 24, 12, 1
TIED = ("transformer_lm", "roberta")
OURS = ("normgrowth_control", "normgrowth_pre_norm", "normgrowth_control_rel", "transnormer_lm_tiny")
NAMES = (*OURS, "transnormer_mlm_tiny", *TIED)
NUMBERS = ("layer", "similarity", "collapse", "tokens")
FACTORS = st.floats(0.01, 1000.0)


@cache
def model_of(name):
    torch.manual_seed(0)
    return build_model(name, length=LENGTH, dim=8, layers=2, heads=2, vocabulary=SYMBOLS).double()


def sentences(lengths, seed):
    """Tokens padded on the right, and the mask of those to keep."""
    tokens = torch.randint(4, SYMBOLS, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.where(keep, PAD), keep


def scaled_in_place(model, c):
    """A copy with every parameter times c, each once, but for those that are not trained."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(c if parameter.requires_grad else 1)
    return model


@pytest.mark.parametrize("name", NAMES)
@given(c=FACTORS, lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_scaled_network_is_one_scaled_in_place(name, c, lengths, seed):
    tokens, keep = sentences(lengths, seed)
    expected, logits = scaled_in_place(model_of(name), c), ScaledNetwork(model_of(name), c)(tokens)[0]
    with torch.no_grad():
        torch.testing.assert_close(logits[keep], expected(tokens)[0][keep], rtol=1e-6, atol=1e-12)
        states = HiddenStates(expected)(tokens)
    got = ScaledNetwork(HiddenStates(model_of(name)), c)(tokens)
    for a, b in zip([*got.hidden, got.encodings], [*states.hidden, states.encodings], strict=True):
        torch.testing.assert_close(a[keep], b[keep], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", TIED)
def test_weights_are_tied_in_these_models(name):
    model = model_of(name)
    assert len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_measuring_changes_no_bit_of_the_model(name):
    model = model_of(name).train()
    model.get_submodule(next(n for n, m in model.named_modules() if "layers.1" in n)).eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    places = {n: p.data_ptr() for n, p in model.named_parameters()}
    trained = {n: p.requires_grad for n, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    layer_rows(FairseqStack(model), [sentences([3, 5], 0)], (10.0, 1000.0), scale_positions=True)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert places == {n: p.data_ptr() for n, p in model.named_parameters()}
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p.grad is not None or p.requires_grad is not trained[n] for n, p in model.named_parameters())


@given(c=FACTORS, seed=st.integers(0, 99))
def test_masks_choose_entries(c, seed):
    model, (tokens, _) = model_of("normgrowth_control"), sentences([LENGTH], seed)
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters() if "layers.0" in n}
    expected = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            expected.get_parameter(name)[mask] *= c
        torch.testing.assert_close(
            ScaledNetwork(model, c, masks)(tokens)[0], expected(tokens)[0], rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("name", ["transformer_lm", "normgrowth_control_rel", "transnormer_lm_tiny"])
def test_positions_that_are_no_parameters_can_be_scaled_too(name):
    """The embedding of every model is then 1-homogeneous, so that its cosine is 1."""
    assert sinusoidal_positions(model_of(name))
    network, batch = FairseqStack(model_of(name)), sentences([LENGTH, 4], 0)
    with_positions, without = (layer_rows(network, [batch], scale_positions=also)[0] for also in (True, False))
    assert (with_positions["state"], without["state"]) == ("embeddings", "embeddings")
    assert with_positions["similarity"] == pytest.approx(1.0, abs=1e-6)
    assert without["similarity"] < 0.99


@pytest.mark.parametrize("name", NAMES)
@given(lengths=st.lists(st.integers(1, LENGTH), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_padding_never_changes_a_number(name, lengths, seed):
    network = FairseqStack(model_of(name))
    tokens, keep = sentences(lengths, seed)
    alone = [(tokens[i : i + 1, :n], keep[i : i + 1, :n]) for i, n in enumerate(lengths)]
    together = layer_rows(network, [(tokens, keep)], (3.0,))
    for a, b in zip(together, layer_rows(network, alone, (3.0,)), strict=True):
        assert [a[name] for name in NUMBERS] == pytest.approx([b[name] for name in NUMBERS], rel=1e-9, abs=1e-9)
        assert a["tokens"] == sum(lengths)
