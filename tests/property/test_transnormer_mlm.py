"""The whole masked model on random texts: padding changes nothing, every token reaches every other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_transnorm.modules import recompute
from fairseq_transnorm.modules.masked_lm import POOLINGS
from tests.transnormer_reference import T1, T2, build_mlm, padded, random_tokens

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
OPTIONS = st.sampled_from([T1, T2]) | st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 3, 8, 64]),
        "layer_split": st.sampled_from(["0", "0.5", "1", "linear,local,local,linear"]),
        "lrpe": st.sampled_from(["1d3", "1_1", "none"]),
        "local_act": st.sampled_from(["softmax", "relu", "sigmoid", "1+elu"]),
        "linear_act": st.sampled_from(["elu", "1+elu", "exp"]),
        "abs_pos": st.sampled_from(["sinusoidal", "learned", "none"]),
        "pre_norm": st.booleans(),
    }
)
# 8 is the block of the tiny model: multiples of it, one more, one less, anything
LENGTHS = st.lists(st.sampled_from([1, 7, 8, 9, 16, 24, 40]) | st.integers(1, 40), min_size=2, max_size=4)


@settings(max_examples=40)
@given(options=OPTIONS, lengths=LENGTHS, seed=st.integers(0, 99), pooling=st.sampled_from(list(POOLINGS)))
@torch.no_grad()
def test_padded_rows_equal_single_rows(options, lengths, seed, pooling):
    model = build_mlm(seed, pooling=pooling, **options)
    model.register_classification_head("a", 3)
    rows = [random_tokens(n, seed=i) for i, n in enumerate(lengths)]
    together = model(padded(rows))[0]
    for row, out in zip(rows, together, strict=True):
        torch.testing.assert_close(out[: len(row)], model(row[None])[0][0], **EXACT)
    assert together.isfinite().all()
    logits, _ = model(padded(rows), classification_head_name="a")
    alone = torch.cat([model(row[None], classification_head_name="a")[0] for row in rows])
    torch.testing.assert_close(logits, alone, **EXACT)


@settings(max_examples=10)
@given(variant=st.sampled_from([T1, T2]), lengths=LENGTHS, seed=st.integers(0, 99))
def test_padding_changes_no_gradient(variant, lengths, seed):
    model = build_mlm(seed, **variant)
    rows = [random_tokens(n, seed=i) for i, n in enumerate(lengths)]

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            logits = model(batch)[0]
            (logits.log_softmax(-1)[..., 5] * (batch != 1)).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    alone = gradients([row[None] for row in rows])
    for name, grad in gradients([padded(rows)]).items():
        torch.testing.assert_close(grad, alone[name], msg=name, **EXACT)


@pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])
def test_segments_of_any_size_compute_the_same(variant, monkeypatch):
    model, tokens = build_mlm(**variant), padded([random_tokens(37), random_tokens(20, seed=1)])
    whole = model(tokens)[0]
    monkeypatch.setattr(recompute, "SEGMENT_NUMBERS", 100)
    torch.testing.assert_close(model(tokens)[0], whole, **EXACT)


@settings(max_examples=15)
@given(variant=st.sampled_from([T1, T2]), T=st.integers(2, 40), where=st.floats(0, 1), seed=st.integers(0, 99))
@torch.no_grad()
def test_a_change_reaches_tokens_on_both_sides(variant, T, where, seed):
    model, n = build_mlm(seed, **variant), int(where * (T - 1))
    tokens = random_tokens(1, T)
    other = tokens.clone()
    other[0, n] = 4 + (tokens[0, n] - 4 + 1) % 20
    changed = (model(tokens, features_only=True)[0] - model(other, features_only=True)[0]).abs().amax(-1)[0]
    assert (changed > 0).all()
