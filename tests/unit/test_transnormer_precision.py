"""Long sequences: half precision stays finite and near float32, and no tensor has a number for every pair of tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from tests.transnormer_reference import T1, T2, build_lm, random_tokens

N = 4096
VARIANTS = pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def long_model(**options) -> TransNormerLM:
    size = {"decoder_embed_dim": 128, "decoder_attention_heads": 2, "block_size": 64, "chunk_length": 64}
    return build_lm(**size, **options, dtype=torch.float32, tokens_per_sample=N, num_words=60)


def assert_near(got: Tensor, exact: Tensor, variant: dict) -> None:
    """Within 5e-2 of float32, relative to the largest logit.

    t1 may have a few tokens farther off: where the scores of all heads are nearly zero, rounding changes their sign,
    and ReLU with a norm turns that from a zero row into one of rms 1.
    """
    assert got.isfinite().all()
    error = (got.float() - exact).abs().amax(-1) / exact.abs().max()
    assert (error > 5e-2).float().mean() <= (0.002 if variant else 0)
    assert error.mean() < 1e-2


@VARIANTS
@HALF
@torch.no_grad()
def test_half_precision_is_near_float32(variant, dtype):
    model, tokens = long_model(**variant), random_tokens(1, N, num_words=60)
    exact = model(tokens)[0]
    with torch.autocast("cpu", dtype=dtype):
        assert_near(model(tokens)[0], exact, variant)
    model.to(dtype)
    got = model(tokens)[0]
    assert got.dtype == dtype
    assert_near(got, exact, variant)
    # and step by step after a long prefill
    state = {}
    model.decoder(tokens[:, : N - 3], incremental_state=state)
    for n in range(N - 2, N + 1):
        assert_near(model.decoder(tokens[:, :n], incremental_state=state)[0], exact[:, n - 1 : n], variant)


@VARIANTS
def test_gradients_under_autocast_are_near_float32(variant):
    tokens = random_tokens(2, 513, num_words=60)
    grads = []
    for enabled in (False, True):
        model = long_model(**variant).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(tokens[:, :-1])[0]
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert grads[1].isfinite().all()
    assert F.cosine_similarity(*grads, dim=0) > 0.99
    assert 0.97 < grads[1].norm() / grads[0].norm() < 1.03


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation gives, also in a backward pass."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)), 0)
        return out


def largest_of_training(**options) -> int:
    model = build_lm(**options, dtype=torch.float32, block_size=64, chunk_length=64, tokens_per_sample=N).train()
    tokens = random_tokens(1, N + 1)
    with Largest() as largest:
        logits = model(tokens[:, :-1])[0]
        F.cross_entropy(logits[0], tokens[0, 1:]).backward()
    return largest.elements


@VARIANTS
@pytest.mark.parametrize("options", [{}, {"attention_dropout": 0.1}, {"checkpoint_activations": True}], ids=str)
def test_training_makes_no_tensor_of_all_pairs(variant, options):
    # the largest should be about N times the feed-forward or the blocks, here up to 16 times less than N^2
    assert largest_of_training(**variant, **options) < N * N / 4


def test_the_watch_sees_the_quadratic_form():
    assert largest_of_training(causal_impl="quadratic") >= N * N


def test_the_watch_sees_a_backward_pass():
    x = torch.ones(50, requires_grad=True)
    y = x.expand(70, 50).sum()
    with Largest() as largest:
        y.backward()
    assert largest.elements == 3500


@VARIANTS
@torch.no_grad()
def test_decoding_makes_no_tensor_of_all_pairs(variant):
    model = build_lm(**variant, dtype=torch.float32, block_size=64, chunk_length=64, tokens_per_sample=N)
    tokens, state = random_tokens(1, N), {}
    with Largest() as largest:
        for n in (N - 70, N - 69):  # the table of positions grows at first
            model.decoder(tokens[:, :n], incremental_state=state)
    assert largest.elements < N * N / 4
    with Largest() as largest:
        for n in range(N - 68, N + 1):
            model.decoder(tokens[:, :n], incremental_state=state)
    # a step has nothing that grows with the position but the tokens that it is given
    assert largest.elements <= max(N, 2 * 64 * 64)


@VARIANTS
def test_a_padded_batch_makes_no_tensor_of_all_pairs(variant):
    model = build_lm(**variant, dtype=torch.float32, block_size=64, chunk_length=64, tokens_per_sample=N)
    tokens = random_tokens(2, N)
    tokens[0, 1000:] = 1
    with Largest() as largest:
        model(tokens)[0].sum().backward()
    assert largest.elements < N * N / 4
