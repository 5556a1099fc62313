"""The forms of linear attention agree, in values and in gradients, also of a carried state."""

import itertools
import sys
import types
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_transnorm.modules import linear_attention as forms
from fairseq_transnorm.modules.linear_attention import (
    CAUSAL_FORMS,
    bidirectional_linear_attention,
    causal_linear_attention,
    chunkwise_linear_attention,
    fla_linear_attention,
    quadratic_linear_attention,
    recurrent_linear_attention,
)
from tests.transnormer_reference import random_qkv

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
SHAPES = st.fixed_dictionaries(
    {
        "B": st.integers(1, 3),
        "H": st.integers(1, 3),
        "T": st.sampled_from([1, 2, 3, 16, 37, 64, 128]) | st.integers(1, 80),
        "K": st.integers(1, 5),
        "V": st.integers(1, 5),
        "seed": st.integers(0, 9999),
        "time_first": st.booleans(),
    }
)
CHUNKS = st.sampled_from([1, 7, 16, 64, 1000])
# numbers that a step may hold: 1 makes a segment of every chunk, the others a few segments or one
SEGMENTS = st.sampled_from([1, 60, 400, 2**18])


def segments_of(numbers: int):
    return mock.patch.dict(forms._SEGMENT_NUMBERS, {"cpu": numbers})


def by_definition(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """out[t] = q[t] (state + sum over s <= t of k[s]^T v[s]), written with the T x T scores."""
    scores = torch.einsum("bhtk,bhsk->bhts", q, k) * torch.ones(q.shape[2], q.shape[2], dtype=q.dtype).tril()
    out = torch.einsum("bhts,bhsv->bhtv", scores, v) + torch.einsum("bhtk,bhkv->bhtv", q, state)
    return out, state + torch.einsum("bhtk,bhtv->bhkv", k, v)


def first_state(q: Tensor, v: Tensor, seed: int) -> Tensor:
    shape = (*q.shape[:2], v.shape[-1], q.shape[-1])
    state = torch.randn(shape, dtype=q.dtype, generator=torch.Generator().manual_seed(seed + 1))
    return state.transpose(2, 3).requires_grad_()  # not contiguous


def values_and_gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs, and the gradients of a fixed random mixture of them with respect to the inputs."""
    generator = torch.Generator().manual_seed(7)
    total = sum((torch.randn(x.shape, dtype=x.dtype, generator=generator) * x).sum() for x in outputs)
    return [*(x.detach() for x in outputs), *torch.autograd.grad(total, inputs)]


@settings(max_examples=80)
@given(shape=SHAPES, chunk=CHUNKS, numbers=SEGMENTS, carried=st.booleans())
@example(
    shape={"B": 1, "H": 1, "T": 1, "K": 1, "V": 2, "seed": 0, "time_first": False}, chunk=64, numbers=1, carried=True
)
@example(
    shape={"B": 2, "H": 2, "T": 37, "K": 4, "V": 3, "seed": 0, "time_first": True}, chunk=7, numbers=1, carried=True
)
@example(
    shape={"B": 2, "H": 1, "T": 128, "K": 3, "V": 5, "seed": 0, "time_first": True},
    chunk=16,
    numbers=400,
    carried=False,
)
@example(
    shape={"B": 1, "H": 2, "T": 128, "K": 3, "V": 5, "seed": 0, "time_first": False}, chunk=128, numbers=1, carried=True
)
def test_chunkwise_and_recurrent_equal_the_definition(shape, chunk, numbers, carried):
    q, k, v = random_qkv(**shape)
    state = first_state(q, v, shape["seed"]) if carried else None
    zeros = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype)
    inputs = (q, k, v, state) if carried else (q, k, v)
    expected = values_and_gradients(by_definition(q, k, v, state if carried else zeros), inputs)
    with segments_of(numbers):
        got = values_and_gradients(chunkwise_linear_attention(q, k, v, chunk, state), inputs)
    torch.testing.assert_close(got, expected, **EXACT)
    got = values_and_gradients(recurrent_linear_attention(q, k, v, state), inputs)
    torch.testing.assert_close(got, expected, **EXACT)


@given(shape=SHAPES)
def test_quadratic_and_bidirectional_equal_the_definition(shape):
    q, k, v = random_qkv(**shape)
    zeros = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype)
    expected = values_and_gradients(by_definition(q, k, v, zeros)[:1], (q, k, v))
    torch.testing.assert_close(
        values_and_gradients((quadratic_linear_attention(q, k, v),), (q, k, v)), expected, **EXACT
    )

    total = torch.stack([k[:, :, s, :, None] * v[:, :, s, None, :] for s in range(k.shape[2])]).sum(0)
    everything = torch.stack([(q[:, :, t, None] @ total)[:, :, 0] for t in range(q.shape[2])], dim=2)
    expected = values_and_gradients((everything,), (q, k, v))
    for got in (bidirectional_linear_attention(q, k, v), quadratic_linear_attention(q, k, v, causal=False)):
        torch.testing.assert_close(values_and_gradients((got,), (q, k, v)), expected, **EXACT)


@given(shape=SHAPES, chunk=CHUNKS, impl=st.sampled_from([form for form in CAUSAL_FORMS if form != "fla"]))
def test_the_forms_by_name(shape, chunk, impl):
    q, k, v = random_qkv(**shape)
    expected = quadratic_linear_attention(q, k, v)
    torch.testing.assert_close(causal_linear_attention(q, k, v, impl, chunk), expected, **EXACT)


def test_values_by_hand():
    # one head of width 1: out[t] = q[t] * sum of k[s] v[s]
    q, k, v = (
        torch.tensor(x, dtype=torch.float64).view(1, 1, 4, 1) for x in ([1, 2, 3, -1], [1, -1, 2, 5], [3, 1, 0.5, 2])
    )
    expected = [1 * 3, 2 * (3 - 1), 3 * (3 - 1 + 1), -1 * (3 - 1 + 1 + 10)]
    for impl in ("chunk", "quadratic", "recurrent"):
        assert causal_linear_attention(q, k, v, impl, 3).flatten().tolist() == expected
    assert bidirectional_linear_attention(q, k, v).flatten().tolist() == [13, 26, 39, -13]
    assert chunkwise_linear_attention(q, k, v)[1].item() == 13


@given(shape=SHAPES, chunk=CHUNKS, numbers=SEGMENTS, cuts=st.lists(st.integers(1, 79), max_size=4), mixed=st.booleans())
def test_a_split_run_with_carried_state_equals_one_run(shape, chunk, numbers, cuts, mixed):
    q, k, v = random_qkv(**shape)
    T = q.shape[2]
    borders = [0, *sorted({cut for cut in cuts if cut < T}), T]

    def split():
        state, pieces = None, []
        for i, (start, stop) in enumerate(itertools.pairwise(borders)):
            part = (x[:, :, start:stop] for x in (q, k, v))
            if mixed and i % 2:
                out, state = recurrent_linear_attention(*part, state)
            else:
                out, state = chunkwise_linear_attention(*part, chunk, state)
            pieces.append(out)
        return torch.cat(pieces, dim=2), state

    with segments_of(numbers):
        whole = values_and_gradients(chunkwise_linear_attention(q, k, v, chunk), (q, k, v))
        torch.testing.assert_close(values_and_gradients(split(), (q, k, v)), whole, **EXACT)


@given(shape=SHAPES, chunk=CHUNKS, numbers=SEGMENTS, carried=st.booleans())
def test_inputs_are_left_alone(shape, chunk, numbers, carried):
    q, k, v = random_qkv(**shape)
    inputs = [q, k, v, first_state(q, v, 0)] if carried else [q, k, v]
    copies = [x.detach().clone() for x in inputs]
    with segments_of(numbers):
        out, state = chunkwise_linear_attention(q, k, v, chunk, *inputs[3:])
    (out.sum() + state.sum()).backward()
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@given(shape=SHAPES, chunk=CHUNKS, numbers=SEGMENTS, where=st.floats(0, 1))
def test_the_future_never_changes_the_past(shape, chunk, numbers, where):
    q, k, v = (x.detach() for x in random_qkv(**shape))
    n = int(where * (q.shape[2] - 1))
    others = [x.clone() for x in (q, k, v)]  # of the same layout: another one may round differently
    for x in others:
        x[:, :, n:] += 1
    with segments_of(numbers):
        before, after = (chunkwise_linear_attention(*x, chunk)[0] for x in ((q, k, v), others))
    assert torch.equal(before[:, :, :n], after[:, :, :n])


@pytest.mark.parametrize("numbers", [1, 2**18])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_gradcheck(chunk, numbers):
    q, k, v = random_qkv(B=2, H=1, T=7, K=2, V=3, seed=0, time_first=True)
    with segments_of(numbers):
        assert torch.autograd.gradcheck(
            lambda *x: chunkwise_linear_attention(*x[:3], chunk, x[3]), (q, k, v, first_state(q, v, 0))
        )


def test_a_gradient_into_the_state_alone_reaches_keys_and_values():
    q, k, v = random_qkv(B=1, H=2, T=11, K=3, V=2, seed=0)
    _, state = chunkwise_linear_attention(q, k, v, 4)
    dk, dv = torch.autograd.grad(state.sum(), (k, v))
    torch.testing.assert_close(dk, v.sum(-1, keepdim=True).expand_as(k), **EXACT)
    torch.testing.assert_close(dv, k.sum(-1, keepdim=True).expand_as(v), **EXACT)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_gradients_of_some_inputs_only(wanted):
    inputs = [*random_qkv(B=2, H=1, T=9, K=3, V=2, seed=0)]
    inputs.append(first_state(inputs[0], inputs[2], 0))
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    asked = tuple(inputs[i] for i in wanted)
    expected = values_and_gradients(by_definition(*inputs), asked)
    got = values_and_gradients(chunkwise_linear_attention(*inputs[:3], 4, inputs[3]), asked)
    torch.testing.assert_close(got, expected, **EXACT)


def test_autocast_changes_nothing():
    q, k, v = random_qkv(B=1, H=2, T=9, K=3, V=2, seed=0, dtype=torch.float32)
    expected = values_and_gradients(chunkwise_linear_attention(q, k, v, 4), (q, k, v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = values_and_gradients(chunkwise_linear_attention(q, k, v, 4), (q, k, v))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chunk", [1, 64, 200])
def test_float32_is_near_float64(chunk):
    q, k, v = random_qkv(B=1, H=2, T=300, K=16, V=16, seed=0, dtype=torch.float32)
    exact = quadratic_linear_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(
        chunkwise_linear_attention(q, k, v, chunk)[0].double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item()
    )


def test_nothing_to_read_leaves_the_state_alone():
    q, k, v = random_qkv(B=1, H=2, T=0, K=3, V=2, seed=0)
    state = torch.randn(1, 2, 3, 2, dtype=torch.float64)
    out, after = chunkwise_linear_attention(q, k, v, 4, state)
    assert out.shape == (1, 2, 0, 2)
    assert torch.equal(after, state)


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_without_positions_is_refused(chunk):
    q, k, v = random_qkv(1, 1, 4, 2, 2, seed=0)
    with pytest.raises(ValueError, match=f"chunk_length {chunk} must be at least 1"):
        chunkwise_linear_attention(q, k, v, chunk)


def test_an_unknown_form_is_refused():
    q, k, v = random_qkv(1, 1, 4, 2, 2, seed=0)
    with pytest.raises(ValueError, match=r"unknown causal_impl 'chunks'.*known: chunk, quadratic, recurrent, fla"):
        causal_linear_attention(q, k, v, "chunks")


def test_the_gpu_form_says_that_it_needs_a_gpu():
    q, k, v = random_qkv(1, 1, 4, 2, 2, seed=0)
    with pytest.raises(ValueError, match=r"causal_impl 'fla' needs a GPU.* on cpu; use 'chunk'"):
        causal_linear_attention(q, k, v, "fla")


class OnGpu(Tensor):
    """A tensor that claims to be on a GPU."""

    is_cuda = True


def on_gpu(x: Tensor) -> Tensor:
    return x.detach().as_subclass(OnGpu)


def test_the_gpu_form_names_the_extra_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    monkeypatch.setitem(sys.modules, "fla.ops", None)
    monkeypatch.setitem(sys.modules, "fla.ops.linear_attn", None)
    q, k, v = map(on_gpu, random_qkv(1, 1, 4, 2, 2, seed=0))
    with pytest.raises(ModuleNotFoundError, match=r"fla-core: pip install 'fairseq_transnorm\[gpu\]'"):
        fla_linear_attention(q, k, v)


def test_the_gpu_form_calls_the_library_rightly(monkeypatch):
    # what fla-core 0.6 documents: B T H K in, B T H V out, a default scale of K^-1/2 and a denominator unless told
    def chunk_linear_attn(q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True):
        assert all(x.is_contiguous() for x in (q, k, v))
        assert not normalize
        out = quadratic_linear_attention(*(x.transpose(1, 2).as_subclass(Tensor) for x in (q, k, v)))
        return (q.shape[-1] ** -0.5 if scale is None else scale) * out.transpose(1, 2), None

    for name in ("fla", "fla.ops", "fla.ops.linear_attn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["fla.ops.linear_attn"].chunk_linear_attn = chunk_linear_attn
    q, k, v = random_qkv(2, 3, 9, 4, 5, seed=0)
    got = fla_linear_attention(on_gpu(q), on_gpu(k), on_gpu(v)).as_subclass(Tensor)
    torch.testing.assert_close(got, quadratic_linear_attention(q, k, v), **EXACT)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "V"), [(1, 32, 32), (128, 64, 64), (1000, 64, 65)])
def test_the_gpu_form_equals_the_chunkwise_one(T, K, V):
    pytest.importorskip("fla", reason="needs fla-core")
    q, k, v = (x.detach().cuda().requires_grad_() for x in random_qkv(2, 4, T, K, V, seed=0, dtype=torch.float32))
    expected = values_and_gradients((chunkwise_linear_attention(q, k, v)[0],), (q, k, v))
    got = values_and_gradients((fla_linear_attention(q, k, v),), (q, k, v))
    for ours, theirs in zip(expected, got, strict=True):
        # its products may use TF32, which has 10 bits of mantissa
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-2 * ours.abs().max().item())
