"""The two attention modules: formulas, padding, causality, steps, precision, initialisation and bad options."""

import itertools

import pytest
import torch
from torch import Tensor

from fairseq_transnorm.modules import attention as attention_module
from fairseq_transnorm.modules.attention import LinearAttention, LocalAttention, SelfAttention
from fairseq_transnorm.modules.norms import SimpleRMSNorm
from tests import transnormer_reference as reference

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # float32
KINDS = ["linear elu", "linear 1+elu", "local softmax", "local relu", "local sigmoid", "local 1+elu"]
BLOCK = 6


def build(kind: str, dim: int = 12, heads: int = 3, lrpe: str = "1d3", causal: bool = True, **options) -> SelfAttention:
    """Build an attention as t1 and t2 have it, in float64 and evaluation mode."""
    torch.manual_seed(0)
    name, act = kind.split()
    norm = None if act == "softmax" else SimpleRMSNorm()
    attn: SelfAttention
    if name == "linear":
        attn = LinearAttention(dim, heads, norm, act, lrpe, causal, **({"chunk_length": 5} | options))
    else:
        attn = LocalAttention(dim, heads, norm, BLOCK, act, lrpe, causal, **options)
    with torch.no_grad():
        for parameter in (attn.qkv.bias, attn.out.bias):  # biases of a size that shows
            parameter.normal_()
    return attn.double().eval()


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padding_of(lengths: list[int], T: int) -> Tensor:
    return torch.arange(T)[None] >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("T", [1, 5, 12, 15])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lrpe", ["none", "1d3", "1_1"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formula(kind, lrpe, causal, T):
    attn = build(kind, lrpe=lrpe, causal=causal)
    x = rows(T, 12)
    name, act = kind.split()
    if name == "linear":
        expected = reference.linear_attention(attn, x, act, causal)
    else:
        expected = reference.local_attention(attn, x, act, BLOCK, causal, norm=act != "softmax")
    torch.testing.assert_close(attn(x[None])[0], expected, **EXACT)


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("kind", ["linear 1+elu", "local softmax"])
def test_odd_head_widths(kind, width):
    attn, x = build(kind, dim=2 * width, heads=2), rows(8, 2 * width)
    name, act = kind.split()
    if name == "linear":
        expected = reference.linear_attention(attn, x, act)
    else:
        expected = reference.local_attention(attn, x, act, BLOCK, norm=False)
    torch.testing.assert_close(attn(x[None])[0], expected, **EXACT)


@pytest.mark.parametrize("impl", ["chunk", "quadratic", "recurrent"])
@pytest.mark.parametrize("denominator", [False, True])
def test_linear_attention_with_a_denominator(impl, denominator):
    attn = build("linear 1+elu", lrpe="none", impl=impl, denominator=denominator)
    x = rows(13, 12)
    q, k, v = reference.heads_of(attn, x)
    weights = torch.einsum("htk,hsk->hts", *(reference.FEATURE_MAPS["1+elu"](z) for z in (q, k))).tril()
    if denominator:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    o = torch.cat(list(weights @ v), dim=-1)
    expected = reference.srms(o) @ attn.out.weight.T + attn.out.bias
    torch.testing.assert_close(attn(x[None])[0], expected, **EXACT)


def test_a_denominator_of_zero_is_kept_off():
    attn = build("linear 1+elu", lrpe="none", denominator=True)
    attn.activation = torch.zeros_like
    assert attn(rows(1, 4, 12)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("T", [6, 17, 18, 40])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_real_position(kind, causal, T, dtype):
    attn = build(kind, causal=causal).to(dtype)
    lengths = sorted({1, 5, 6, 7, T - 1, T} & set(range(1, T + 1)))
    x = 3 * rows(len(lengths), T, 12).to(dtype)
    together = attn(x, padding_of(lengths, T))
    for row, (out, n) in enumerate(zip(together, lengths, strict=True)):
        torch.testing.assert_close(
            out[:n], attn(x[row : row + 1, :n])[0], **(EXACT if dtype == torch.float64 else NEAR)
        )


@pytest.mark.parametrize("options", [{"impl": "quadratic"}, {"impl": "recurrent"}, {"denominator": True}])
def test_padding_with_other_forms_and_a_denominator(options):
    attn = build("linear 1+elu", lrpe="none", **options)
    x = rows(2, 11, 12)
    torch.testing.assert_close(attn(x, padding_of([7, 11], 11))[0, :7], attn(x[:1, :7])[0], **EXACT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_padding_alone_is_finite(kind, causal):
    attn = build(kind, causal=causal)
    x = rows(2, 9, 12).requires_grad_()
    out = attn(x, padding_of([0, 3], 9))
    assert out.isfinite().all()
    (1e-9 * out).sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *attn.parameters()] if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 5, 6, 13])
def test_the_future_never_changes_the_past(kind, n):
    attn = build(kind)
    x = rows(1, 14, 12)
    y = x.clone()
    y[:, n] += 1
    before, after = attn(x), attn(y)
    assert torch.equal(before[:, :n], after[:, :n])
    assert not torch.isclose(before[:, n], after[:, n]).any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["local softmax", "local relu"])
def test_a_local_block_knows_neither_its_neighbours_nor_its_place(kind, causal):
    attn = build(kind, causal=causal)
    x = rows(1, 3 * BLOCK - 2, 12)
    whole = attn(x)
    for start in range(0, x.shape[1], BLOCK):
        # positions restart: a block in the middle is as good as the first
        torch.testing.assert_close(whole[:, start : start + BLOCK], attn(x[:, start : start + BLOCK]), **EXACT)


def test_a_local_block_far_away_is_as_exact_as_the_first():
    attn, x = build("local softmax").float(), rows(1, BLOCK, 12).float()
    blocks = attn(x.repeat(1, 3000, 1)).view(3000, BLOCK, 12)
    # were positions counted on, angles of 18,000 radians would be rounded by 1e-3
    torch.testing.assert_close(blocks[-1], blocks[0], rtol=0, atol=1e-6)


def test_linear_attention_counts_positions_over_the_whole_sequence():
    attn = build("linear elu")
    x = rows(1, 30, 12)
    q, k, _ = reference.heads_of(attn, x[0])
    n, m = 29, 3
    # one query and one key far apart: its weight of the value
    weight = attn.attention_weights(x)[0, :, n, m]
    at = [reference.place(attn, reference.FEATURE_MAPS["elu"](z[:, i : i + 1]), [i]) for z, i in ((q, n), (k, m))]
    torch.testing.assert_close(weight, (at[0] * at[1]).sum((-2, -1)), **EXACT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_for_measures_are_those_of_the_output(kind, padded, causal):
    attn = build(kind, causal=causal)
    x = rows(2, 15, 12)
    padding = padding_of([9, 15], 15) if padded else None
    weights = attn.attention_weights(x, padding)
    assert weights.shape == (2, 3, 15, 15)
    v = torch.stack([reference.heads_of(attn, row)[2] for row in x])
    o = (weights @ v).transpose(1, 2).reshape(2, 15, 12)
    expected = attn.out(o if attn.norm is None else reference.srms(o))
    torch.testing.assert_close(attn(x, padding), expected, **EXACT)


def test_the_weights_with_a_denominator_sum_to_one():
    weights = build("linear 1+elu", lrpe="none", denominator=True).attention_weights(rows(2, 9, 12))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("act", ["elu", "1+elu"])
def test_a_positive_factor_for_each_token_does_not_change_normalised_attention(act, causal, monkeypatch):
    attn = build(f"linear {act}", causal=causal)
    x = rows(2, 17, 12)
    expected = attn(x)
    scale = torch.rand(2, 1, 17, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 50 + 0.02
    name = "causal_linear_attention" if causal else "bidirectional_linear_attention"
    form = getattr(attention_module, name)
    monkeypatch.setattr(attention_module, name, lambda *args: scale * form(*args))
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-6)


def test_the_norm_sees_all_heads_together():
    attn = build("linear 1+elu")
    x = rows(1, 4, 12)
    seen = []
    attn.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    attn(x)
    assert [tuple(s.shape) for s in seen] == [(1, 4, 12)]


def pieces_of(attn: SelfAttention, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Step through ``x`` in pieces; return the outputs and the number of values in each state tensor."""
    state, n = None, 0
    outs: list[Tensor] = []
    numbers: list[tuple[int, ...]] = []
    for size in itertools.chain(sizes, itertools.repeat(1)):
        if n >= x.shape[1]:
            return torch.cat(outs, dim=1), numbers
        out, state = attn.step(x[:, n : n + size], state, n)
        n += out.shape[1]
        outs.append(out)
        numbers.append(tuple(s[0].numel() for s in state))
    raise AssertionError("steps never end")


@pytest.mark.parametrize("sizes", [[], [1], [5], [6], [7], [12], [13, 1, 6, 2], [3, 3, 3], [40]])
@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in KINDS), ("linear 1+elu", {"denominator": True, "lrpe": "none"})]
)
def test_steps_of_any_size_equal_the_whole(kind, sizes, options):
    attn = build(kind, **options)
    x = rows(2, 40, 12)
    out, numbers = pieces_of(attn, x, sizes)
    torch.testing.assert_close(out, attn(x), **EXACT)
    if kind.startswith("linear"):
        assert set(numbers) == {(3 * 4 * (4 + bool(options)),)}, "the state has a size of its own"
    else:
        ends = [min(n, 40) for n in itertools.accumulate([*sizes, *[1] * 40])][: len(numbers)]
        assert numbers == [(end % BLOCK * 12,) * 2 for end in ends], "keys and values of the open block only"


@pytest.mark.parametrize("kind", ["linear 1+elu", "local softmax", "local relu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_computes_and_remembers_in_float32(kind, dtype):
    attn = build(kind, dim=16, heads=2).to(dtype)
    x = rows(2, 8, 16).to(dtype)
    seen = []
    if attn.norm is not None:
        attn.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    out, state = attn.step(x[:, :7], None, 0)
    assert out.dtype == attn(x).dtype == dtype
    assert {s.dtype for s in state} == {torch.float32}
    assert set(seen) <= {torch.float32}
    exact = build(kind, dim=16, heads=2).to(dtype).float()
    torch.testing.assert_close(attn(x).float(), exact(x.float()), rtol=0, atol=5e-2)


@pytest.mark.parametrize("causal", [True, False])
def test_sums_beyond_the_reach_of_float16(causal):
    attn = build("linear 1+elu", causal=causal).half()
    with torch.no_grad():
        attn.qkv.bias.fill_(30.0)
    x = rows(1, 600, 12).half()
    k, v = (z.float() for z in reference.heads_of(attn, x[0])[1:])
    assert (k.transpose(1, 2) @ v).max() > 65504
    assert attn(x).isfinite().all()


def test_a_step_inside_a_block_needs_the_state():
    attn, x = build("local softmax"), rows(1, 1, 12)
    attn.step(x, None, 2 * BLOCK)
    with pytest.raises(ValueError, match=f"position {BLOCK + 1} is inside a block"):
        attn.step(x, None, BLOCK + 1)


@pytest.mark.parametrize("kind", ["linear 1+elu", "local softmax", "local relu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_leaves_the_products_in_float32(kind, dtype, monkeypatch):
    seen = []

    def spy(form):
        def call(*args, **options):
            out = form(*args, **options)
            seen.extend(z.dtype for z in [*args[:3], *(out if isinstance(out, tuple) else [out])])
            return out

        return call

    for name in (
        "causal_linear_attention",
        "chunkwise_linear_attention",
        "recurrent_linear_attention",
        "block_local_attention",
    ):
        monkeypatch.setattr(attention_module, name, spy(getattr(attention_module, name)))
    attn = build(kind).float()
    x = rows(2, 9, 12).float()
    with torch.autocast("cpu", dtype=dtype):
        attn(x).sum().backward()
        state = None
        for first, last in ((0, 6), (6, 8), (8, 9)):
            _, state = attn.step(x[:, first:last], state, first)
    assert len(seen) >= 8
    assert set(seen) == {torch.float32}
    assert {s.dtype for s in state} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in attn.parameters() if p.requires_grad)


def test_only_local_weights_are_dropped_and_only_in_training():
    x = rows(2, 2 * BLOCK, 12)
    for kind in KINDS:
        attn = build(kind)
        assert torch.equal(attn(x), attn.train()(x)), "no dropout unless asked for"
    attn = build("local softmax", dropout=0.25)
    whole = attn(x)
    assert torch.equal(whole, build("local softmax")(x))
    torch.manual_seed(0)
    attn.train()
    mean = sum(attn(x) for _ in range(400)) / 400
    assert not torch.isclose(attn(x), whole).all(-1).any(), "drawn for every token"
    # a weight is dropped with a chance of 1/4 and enlarged by 4/3 otherwise: unbiased, with 1/sqrt(400) of the spread
    spread = (attn(x) - whole).std()
    assert (mean - whole).square().mean().sqrt() < 1.5 * spread / 20


def within_four_errors(x: Tensor, bound: float) -> bool:
    """Whether ``x`` looks uniform on (-bound, bound): in range, and with its second moment."""
    spread = bound**2 * (4 / 45 / x.numel()) ** 0.5
    return bool(x.abs().max() <= bound and abs(x.square().mean() - bound**2 / 3) < 4 * spread)


@pytest.mark.parametrize(("kind", "numerator"), [("linear 1+elu", 1.5), ("local softmax", 3.0)])
def test_initialisation(kind, numerator):
    torch.manual_seed(0)
    dim = 64
    attn = LinearAttention(dim, 4, None) if kind.startswith("linear") else LocalAttention(dim, 4, None)
    for weight in attn.qkv.weight.chunk(3):  # q, k and v each by their own fan-out
        assert within_four_errors(weight, (numerator / dim) ** 0.5)
    for bias in attn.qkv.bias.chunk(3):
        assert within_four_errors(bias, dim**-0.5)
    assert within_four_errors(attn.out.weight, (3 / dim) ** 0.5)
    assert (attn.out.bias == 0).all()


@pytest.mark.parametrize(
    ("build_bad", "message"),
    [
        (lambda: LinearAttention(12, 5, None), r"5 attention heads do not divide the width 12; use one of \[1, 2, 3"),
        (lambda: LocalAttention(12, 0, None), "0 attention heads do not divide the width 12"),
        (
            lambda: LinearAttention(12, 3, None, activation="1+elo"),
            r"unknown activation '1\+elo'; did you mean '1\+elu'",
        ),
        (lambda: LinearAttention(12, 3, None, lrpe="3d1"), r"unknown LRPE kind '3d1'"),
        (lambda: LinearAttention(12, 12, None), "head width 1 has no channel pair"),
        (lambda: LinearAttention(12, 3, None, denominator=True), "not activation 1.elu with lrpe 1d3; use one of 1"),
        (lambda: LinearAttention(12, 3, None, "elu", "none", denominator=True), "not activation elu with lrpe none"),
        (lambda: LinearAttention(12, 3, None, "1+leu", "none", denominator=True), "did you mean '1.elu'"),
        (lambda: LinearAttention(12, 3, None, chunk_length=0), "chunk length 0 must be at least 1"),
        (lambda: LinearAttention(12, 3, None, impl="chunks"), "'chunks'"),
        (lambda: LocalAttention(12, 3, None, block_size=0), "block size 0 must be at least 1"),
        (lambda: LocalAttention(12, 3, None, activation="softmix"), "unknown activation 'softmix'"),
    ],
)
def test_bad_options_are_refused_at_construction(build_bad, message):
    with pytest.raises(ValueError, match=message):
        build_bad()
