"""The whole language model on random texts: padding, causality and decoding."""

import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_transnorm.modules import linear_attention, recompute
from tests.transnormer_reference import T1, T2, build_lm, gradients, padded, random_tokens, train_step

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
OPTIONS = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 3, 8, 64]),
        "chunk_length": st.sampled_from([1, 5, 64]),
        "layer_split": st.sampled_from(["0", "0.5", "1", "linear,local,local,linear"]),
        "lrpe": st.sampled_from(["1d3", "1_1", "none"]),
        "local_act": st.sampled_from(["softmax", "relu", "sigmoid", "1+elu"]),
        "linear_act": st.sampled_from(["elu", "1+elu", "exp"]),
        "abs_pos": st.sampled_from(["sinusoidal", "learned", "none"]),
        "post_norm": st.booleans(),
    }
) | st.sampled_from([T1, T2])


@settings(max_examples=20)
@given(options=OPTIONS, lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), seed=st.integers(0, 99))
@torch.no_grad()
def test_padded_rows_equal_single_rows(options, lengths, seed):
    model = build_lm(seed, **options)
    rows = [random_tokens(n, seed=i) for i, n in enumerate(lengths)]
    together = model(padded(rows))[0]
    for row, out in zip(rows, together, strict=True):
        torch.testing.assert_close(out[: len(row)], model(row[None])[0][0], **EXACT)
    assert together.isfinite().all()


@settings(max_examples=20)
@given(options=OPTIONS, T=st.integers(2, 40), where=st.floats(0, 1), seed=st.integers(0, 99))
@torch.no_grad()
def test_the_future_never_changes_the_past(options, T, where, seed):
    model, n = build_lm(seed, **options), int(where * (T - 1))
    tokens = random_tokens(1, T)
    other = torch.cat([tokens[:, :n], random_tokens(1, T - n, seed=seed + 1)], dim=1)
    assert torch.equal(model(tokens)[0][:, :n], model(other)[0][:, :n])


@settings(max_examples=20)
@given(
    options=OPTIONS,
    pieces=st.lists(st.sampled_from([1, 1, 1, 2, 3, 8, 13]), min_size=2, max_size=9),
    orders=st.lists(st.permutations([0, 1, 2]) | st.none(), min_size=9, max_size=9),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_decoding_in_any_pieces_equals_the_full_forward(options, pieces, orders, seed):
    model, ends = build_lm(seed, **options), [*itertools.accumulate(pieces)]
    tokens, state, outs = random_tokens(3, ends[-1]), {}, []
    for end, order in zip(ends, orders, strict=False):
        outs.append(model.decoder(tokens[:, :end], incremental_state=state)[0])
        if order is not None:
            order = torch.tensor(order)
            model.decoder.reorder_incremental_state_scripting(state, order)
            tokens, outs = tokens[order], [out[order] for out in outs]
    torch.testing.assert_close(torch.cat(outs, dim=1), model(tokens)[0], **EXACT)


@settings(max_examples=20)
@given(
    options=OPTIONS,
    numbers=st.sampled_from([1, 100, 1000]),
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=3),
)
def test_the_size_of_segments_changes_nothing(options, numbers, lengths):
    """On a CPU the work is cut so that it fits into the cache: one token or block at a time, or all at once."""
    tokens = padded([random_tokens(n, seed=i) for i, n in enumerate(lengths)])
    results = []
    for size in (2**30, numbers):
        model = build_lm(**options).train()
        with (
            mock.patch.dict(linear_attention._SEGMENT_NUMBERS, {"cpu": size}),
            mock.patch.object(recompute, "SEGMENT_NUMBERS", size),
        ):
            results.append((train_step(model, tokens), gradients(model)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])
def test_a_long_row_trains_like_its_steps(variant):
    """Longer than any part that the work is cut into."""
    model, tokens = build_lm(**variant, tokens_per_sample=3000), random_tokens(1, 2600)
    state = {}
    with torch.no_grad():
        pieces = [model.decoder(tokens[:, :end], incremental_state=state)[0] for end in (700, 1900, 2600)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens)[0], rtol=0, atol=1e-9)
