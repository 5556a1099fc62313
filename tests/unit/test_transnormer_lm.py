"""The language model: its formula, size, initialisation, dropouts, padding, causality and errors."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from tests import transnormer_reference as reference
from tests.transnormer_reference import PAD, T1, T2, build_lm, gradients, lm_config, padded, random_tokens, train_step

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
VARIANTS = pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])


@VARIANTS
@pytest.mark.parametrize("glu_act", ["silu", "identity"])
def test_equals_the_formula(variant, glu_act):
    options = {**variant, "glu_act": glu_act}
    model, tokens = build_lm(**options), random_tokens(1, 19)
    expected = reference.logits(model, lm_config(**options), tokens[0])
    # the table of sinusoids is rounded to float32
    torch.testing.assert_close(model(tokens)[0][0], expected, rtol=0, atol=1e-6)


@VARIANTS
def test_post_norm_norms_each_sum_and_not_the_end(variant):
    model, tokens = build_lm(**variant, post_norm=True, abs_pos="none"), random_tokens(1, 11)
    x = 4 * model.decoder.embed_tokens.weight[tokens]  # sqrt(16)
    for layer in model.decoder.layers:
        x = reference.srms(x + layer.attn(x))
        x = reference.srms(x + layer.ffn(x))
    torch.testing.assert_close(model(tokens)[0], x @ model.decoder.embed_tokens.weight.T, **EXACT)


def test_embedding_options():
    tokens = random_tokens(2, 5)

    def embedded(**options):
        model = build_lm(**options)
        hiddens = model(tokens, return_all_hiddens=True)[1]["inner_states"]
        assert [tuple(h.shape) for h in hiddens] == [(5, 2, 16)] * 5  # T B D, before and after each of 4 layers
        return hiddens[0].transpose(0, 1), model.decoder

    x, decoder = embedded(abs_pos="none")
    torch.testing.assert_close(x, 4 * decoder.embed_tokens.weight[tokens], **EXACT)
    x, decoder = embedded(abs_pos="none", no_scale_embedding=True)
    torch.testing.assert_close(x, decoder.embed_tokens.weight[tokens], **EXACT)
    x, decoder = embedded(abs_pos="learned")
    learned = decoder.embed_positions.embedding.weight[2:7]  # real tokens are numbered from 2
    torch.testing.assert_close(x, 4 * decoder.embed_tokens.weight[tokens] + learned, **EXACT)
    x, decoder = embedded(layernorm_embedding=True)
    torch.testing.assert_close(x.mean(-1), torch.zeros(2, 5, dtype=x.dtype), rtol=0, atol=1e-12)
    # eps 1e-5 of a variance of about 1.5
    torch.testing.assert_close(x.var(-1, unbiased=False), torch.ones(2, 5, dtype=x.dtype), rtol=0, atol=1e-4)


def test_features_and_output_layer():
    model, tokens = build_lm(), random_tokens(2, 5)
    logits, extra = model(tokens)
    assert logits.shape == (2, 5, 24)
    assert extra["inner_states"] is None
    features, _ = model.extract_features(tokens)
    assert features.shape == (2, 5, 16)
    torch.testing.assert_close(features.square().mean(-1), torch.ones(2, 5, dtype=torch.float64))  # the final norm
    torch.testing.assert_close(model.output_layer(features), logits, **EXACT)
    torch.testing.assert_close(features @ model.decoder.embed_tokens.weight.T, logits, **EXACT)
    untied = build_lm(untied_output=True)
    features, _ = untied.extract_features(tokens)
    assert not torch.equal(untied.decoder.output_projection.weight, untied.decoder.embed_tokens.weight)
    torch.testing.assert_close(untied(tokens)[0], features @ untied.decoder.output_projection.weight.T, **EXACT)


class Vocabulary:
    """A dictionary of which only the size matters."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def pad(self) -> int:
        return PAD


def on_meta(size: int, **options) -> TransNormerLM:
    task = reference.LMTask(0)
    task.target_dictionary = Vocabulary(size)
    paper = {"decoder_embed_dim": 512, "decoder_layers": 6, "decoder_attention_heads": 8, "block_size": 64}
    with torch.device("meta"):
        return TransNormerLM.build_model(lm_config(**{**paper, **options}), task)


def count(model: TransNormerLM) -> tuple[int, int]:
    """All parameters, and those that are not trained."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if not p.requires_grad)


@VARIANTS
def test_the_papers_model_has_exactly_its_parameters(variant):
    assert count(on_meta(267744, **variant)) == (155_988_540, 384)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"untied_output": True}, 512 * 1000),
        ({"lrpe": "1d1"}, -6 * 64),
        ({"lrpe": "1_3"}, -6 * 32),
        ({"lrpe": "none"}, -6 * 96),
        ({"lrpe_layers": "local"}, -3 * 96),
        ({"layernorm_embedding": True}, 2 * 512),
        ({"layer_norm_type": "layernorm"}, 13 * 2 * 512),
        ({"abs_pos": "learned"}, (512 + 2) * 512),
        ({"linear_norm": "gatedrmsnorm"}, 3 * 2 * 512),
        # 2 d F + F + d of width 2048 instead of 3 d F + 2 F + d of width 1365
        ({"ffn": "classic"}, 6 * (2 * 512 * 2048 + 2048 - 3 * 512 * 1365 - 2 * 1365)),
        ({"glu_mult": 2.0}, 6 * (1024 - 1365) * (3 * 512 + 2)),
    ],
    ids=str,
)
def test_what_an_option_adds(options, change):
    base = 1000 * 512 + 6 * (4 * (512**2 + 512) + 3 * 512 * 1365 + 2 * 1365 + 512 + 32 + 64)
    assert count(on_meta(1000, **options))[0] == base + change


def test_initialisation():
    model = build_lm(decoder_embed_dim=64, num_words=2000, dtype=torch.float32)
    weight = model.decoder.embed_tokens.weight
    assert (weight[PAD] == 0).all()
    others = torch.cat([weight[:PAD], weight[PAD + 1 :]])
    # 128,192 draws of N(0, 1/64): mean within 3 standard errors, so its standard deviation
    assert abs(others.mean().item()) < 3 * 0.125 / others.numel() ** 0.5
    assert abs(others.std().item() - 0.125) < 3 * 0.125 / (2 * others.numel()) ** 0.5
    for i, layer in enumerate(model.decoder.layers):
        # Xavier, with gain 1/sqrt(2) in the linear layers; 4,096 draws come within 1 % of the bound
        bound = ((3.0 if i < 2 else 1.5) / 64) ** 0.5
        for part in layer.attn.qkv.weight.chunk(3):
            assert 0.99 * bound < part.abs().max() <= bound
        assert 0.99 * (3 / 64) ** 0.5 < layer.attn.out.weight.abs().max() <= (3 / 64) ** 0.5
        assert (layer.attn.out.bias == 0).all()
        assert 0.9 / 8 < layer.attn.qkv.bias.abs().max() <= 1 / 8
        for linear in (layer.ffn.gate_and_value, layer.ffn.out):
            bound = linear.in_features**-0.5
            assert 0.99 * bound < linear.weight.abs().max() <= bound
            assert 0.9 * bound < linear.bias.abs().max() <= bound
    angles = torch.tensor([10000 ** (-2 * k / 32) for k in range(16)])
    assert all(torch.allclose(layer.attn.lrpe.theta, angles) for layer in model.decoder.layers)
    assert len({layer.attn.lrpe.v.detach().numpy().tobytes() for layer in model.decoder.layers}) == 4


def test_small_initialisation_touches_the_embedding_only():
    weight = build_lm(small_init_embedding=True, num_words=2000).decoder.embed_tokens.weight
    assert abs(weight.std().item() - 1e-5) < 1e-7
    assert (weight[PAD] != 0).all()
    plain, small = build_lm().state_dict(), build_lm(small_init_embedding=True).state_dict()
    for name in plain:
        if name.endswith("out.weight"):
            assert plain[name].std().item() == pytest.approx(small[name].std().item(), rel=0.2)


def dropped_share(dropped: Tensor, whole: Tensor, probability: float) -> float:
    """Return the share of zeros; what is not zero must be enlarged by what was dropped."""
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - probability), rtol=1e-9, atol=1e-12)
    return 1 - kept.double().mean().item()


def test_dropout_stands_after_the_embedding_and_each_sublayer():
    model, tokens = build_lm(dropout=0.25), random_tokens(4, 500)
    # 32,000 draws: one standard error is 0.0024
    whole = model(tokens, return_all_hiddens=True)[1]["inner_states"][0]
    dropped = model.train()(tokens, return_all_hiddens=True)[1]["inner_states"][0]
    assert abs(dropped_share(dropped, whole, 0.25) - 0.25) < 0.01
    for layer in model.decoder.layers:
        x = torch.randn(4, 500, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for silent, speaking in ((layer.ffn, layer.attn), (layer.attn, layer.ffn)):
            weight, bias = silent.out.weight.data, silent.out.bias.data
            silent.out.weight.data, silent.out.bias.data = torch.zeros_like(weight), torch.zeros_like(bias)
            with torch.no_grad():
                dropped, whole = layer.train()(x) - x, layer.eval()(x) - x
            # a difference to x is rounded, so nearly zero is zero
            dropped[dropped.abs() < 1e-13] = 0
            torch.testing.assert_close(whole, speaking(reference.srms(x)), rtol=1e-9, atol=1e-12)
            assert abs(dropped_share(dropped, whole, 0.25) - 0.25) < 0.01
            silent.out.weight.data, silent.out.bias.data = weight, bias


@pytest.mark.parametrize("option", ["attention_dropout", "activation_dropout"])
def test_inner_dropouts_reach_their_sublayers(option):
    model = build_lm(**{option: 0.25}).train()
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    for i, layer in enumerate(model.decoder.layers):
        # t2's layers 0 and 1 are local: linear attention has no dropout
        assert torch.equal(layer.attn(x), layer.attn(x)) == (option != "attention_dropout" or i >= 2)
        assert torch.equal(layer.ffn(x), layer.ffn(x)) == (option != "activation_dropout")


def test_nothing_is_dropped_in_evaluation():
    model = build_lm(dropout=0.5, attention_dropout=0.5, activation_dropout=0.5)
    assert torch.equal(model(random_tokens(2, 30))[0], build_lm()(random_tokens(2, 30))[0])


@VARIANTS
@pytest.mark.parametrize("abs_pos", ["sinusoidal", "learned", "none"])
def test_padded_rows_equal_single_rows(variant, abs_pos):
    model = build_lm(**variant, abs_pos=abs_pos)
    rows = [random_tokens(n, seed=n) for n in (1, 7, 8, 9, 16, 21, 33, 40)]
    together = model(padded(rows))[0]
    for row, out in zip(rows, together, strict=True):
        torch.testing.assert_close(out[: len(row)], model(row[None])[0][0], **EXACT)


@VARIANTS
def test_padding_changes_no_gradient(variant):
    model = build_lm(**variant)
    rows = [random_tokens(n, seed=n) for n in (5, 17, 26)]
    total = sum(model(row[None])[0][0].square().sum() for row in rows)
    expected = torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])
    together = model(padded(rows))[0]
    total = sum(out[: len(row)].square().sum() for row, out in zip(rows, together, strict=True))
    got = torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@VARIANTS
def test_a_row_of_padding_alone_is_finite(variant):
    model = build_lm(**variant).train()
    tokens = torch.stack([torch.full((9,), PAD), random_tokens(9)])
    assert train_step(model, tokens).isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    assert model(torch.full((2, 9), PAD))[0].isfinite().all()


@VARIANTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_future_never_changes_the_past(variant, dtype):
    model, tokens = build_lm(**variant, dtype=dtype), random_tokens(1, 40)
    before = model(tokens)[0]
    for n in (0, 7, 8, 21, 39):
        other = tokens.clone()
        other[0, n] = 4 + (other[0, n] - 3) % 20
        after = model(other)[0]
        assert torch.equal(before[:, :n], after[:, :n])
        assert not torch.equal(before[:, n], after[:, n])


@VARIANTS
def test_the_model_can_be_pickled_copied_and_reloaded(variant):
    model, tokens = build_lm(**variant), random_tokens(2, 20)
    expected = model(tokens)[0]
    assert torch.equal(pickle.loads(pickle.dumps(model))(tokens)[0], expected)
    assert torch.equal(copy.deepcopy(model)(tokens)[0], expected)
    other = build_lm(**variant, seed=1)
    assert not torch.equal(other(tokens)[0], expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens)[0], expected), "v and theta are saved with the weights"


def test_a_sequence_longer_than_the_positions_is_refused():
    model = build_lm(tokens_per_sample=16)
    assert model.max_positions() == model.decoder.max_positions() == 16
    model(random_tokens(1, 16))
    for call in (model, lambda t: model.decoder(t, incremental_state={})):
        with pytest.raises(
            ValueError, match=r"transnormer_lm: a sequence of 17 tokens .* 16 positions .*--max-target-positions"
        ):
            call(random_tokens(1, 17))
    assert build_lm(tokens_per_sample=16, max_target_positions=99).max_positions() == 99


def test_learned_positions_reach_exactly_as_far_as_the_limit():
    model = build_lm(abs_pos="learned", tokens_per_sample=16)
    assert model.decoder.embed_positions.embedding.weight.shape == (18, 16)
    assert model(random_tokens(1, 16))[0].isfinite().all()


@pytest.mark.parametrize("row", [[PAD, 4, 5, 6], [4, PAD, 5, PAD]])
def test_padding_before_a_token_is_refused(row):
    with pytest.raises(ValueError, match=r"transnormer_lm: padding before a token.*pad on the right"):
        build_lm()(torch.tensor([[4, 5, 6, 7], row]))


def test_the_largest_logit_is_moderate_at_the_start():
    # embeddings of standard deviation d^-1/2 against features of rms 1: logits of standard deviation 1
    logits = build_lm(decoder_embed_dim=64, num_words=500)(random_tokens(4, 64, num_words=500))[0]
    assert logits[..., 4:].std().item() == pytest.approx(1, abs=0.25)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), random_tokens(4, 64, num_words=500)[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(504), abs=1.5)
