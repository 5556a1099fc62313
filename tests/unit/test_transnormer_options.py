"""Every value of every option trains and decodes; options that must not change the result do not."""

import pytest
import torch

from fairseq_transnorm.models.transnormer import config
from tests.transnormer_reference import T1, T2, build_lm, gradients, padded, random_tokens, train_step

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
VARIANTS = pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])


@VARIANTS
def test_checkpointed_activations_give_equal_gradients(variant):
    plain, saving = (build_lm(**variant, dropout=0.3, checkpoint_activations=on).train() for on in (False, True))
    tokens = padded([random_tokens(17), random_tokens(30)])
    logits = []
    for model in (plain, saving):
        torch.manual_seed(5)  # the recomputation must also drop what was dropped
        logits.append(train_step(model, tokens))
    assert torch.equal(*logits)
    torch.testing.assert_close(gradients(plain), gradients(saving), **EXACT)


def test_checkpointed_activations_are_not_kept():
    def saved(**options):
        kept = []
        model = build_lm(**options).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            model(random_tokens(2, 64))
        return sum(kept)

    assert saved(checkpoint_activations=True) < 0.7 * saved()


OPTION_VALUES = [
    *({"linear_act": act} for act in config.ACTIVATIONS),
    *({"local_act": act} for act in ["softmax", *config.ACTIVATIONS]),
    *({"glu_act": act} for act in config.ACTIVATIONS),
    *({"glu_final_act": act} for act in config.ACTIVATIONS),
    *({"ffn": "classic", "decoder_ffn_embed_dim": 24, "activation_fn": act} for act in config.ACTIVATIONS),
    *({place: norm} for place in ("linear_norm", "local_norm", "layer_norm_type") for norm in config.NORMS),
    *({"lrpe": kind} for kind in ["none", *config.LRPE_KINDS]),
    *({"lrpe_layers": layers} for layers in ("both", "linear", "local")),
    *({"abs_pos": kind} for kind in ("sinusoidal", "learned", "none")),
    *({"causal_impl": impl} for impl in ("chunk", "quadratic", "recurrent")),
    *({"layer_split": split} for split in ("0", "0.25", "0.75", "1", "linear,local,linear,local")),
    *({"chunk_length": c} for c in (1, 7, 1000)),
    *({"block_size": w} for w in (1, 7, 1000)),
    *({"decoder_layers": n} for n in (1, 3, 5)),
    *({"glu_mult": m} for m in (2.0, 4.0)),
    {"layer_order": "linear_first"},
    {"attention_denominator": True, "lrpe": "none"},
    {"linear_attention_heads": 4},
    {"decoder_embed_dim": 10, "decoder_attention_heads": 2},  # odd heads
    {"decoder_embed_dim": 15, "decoder_attention_heads": 3},  # an odd width
    {"norm_eps": 1e-2},
    {"norm_eps": 1e-6, "norm_eps_inside": True},
    {"post_norm": True},
    {"layernorm_embedding": True},
    {"no_scale_embedding": True},
    {"small_init_embedding": True},
    {"untied_output": True},
    {"checkpoint_activations": True},
    {"attention_dropout": 0.1, "activation_dropout": 0.1},
    {"dropout": 0.0},
]


@pytest.mark.parametrize("options", OPTION_VALUES, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_every_option_value_trains_and_decodes(options):
    model = build_lm(**{"dropout": 0.1, **options}).train()
    tokens = padded([random_tokens(20), random_tokens(13, seed=1)])
    assert train_step(model, tokens).isfinite().all()
    for name, grad in gradients(model).items():
        assert grad is not None, f"{name} gets no gradient"
        assert grad.isfinite().all(), name
    model.eval()
    state = {}
    tokens = random_tokens(2, 20)
    pieces = [model.decoder(tokens[:, :n], incremental_state=state)[0] for n in (11, 12, 20)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens)[0], **EXACT)


@VARIANTS
@pytest.mark.parametrize(
    "options", [{}, {"attention_denominator": True, "lrpe": "none", "linear_act": "1+elu"}], ids=str
)
def test_the_causal_forms_agree(variant, options):
    tokens = padded([random_tokens(35), random_tokens(13, seed=1)])
    results = []
    for impl in ("quadratic", "chunk", "recurrent"):
        model = build_lm(**{**variant, **options}, causal_impl=impl).train()
        results.append((train_step(model, tokens), gradients(model)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-10)


def test_the_result_does_not_depend_on_the_chunk():
    tokens = random_tokens(2, 35)
    first, *others = (build_lm(chunk_length=c)(tokens)[0] for c in (1, 7, 16, 64, 35))
    for other in others:
        torch.testing.assert_close(other, first, **EXACT)


@pytest.mark.parametrize("place", ["attn", "ffn"])
def test_a_dropout_that_is_changed_later_still_has_right_gradients(place):
    layer = build_lm().train().decoder.layers[0]
    getattr(layer, place).dropout = 0.5
    x = torch.randn(1, 20, 16, dtype=torch.float64, requires_grad=True)
    grads = []
    for whole in (True, False):
        torch.manual_seed(0)  # the same numbers are drawn: what is computed again must drop the same
        if whole:
            y = layer(x)
        else:
            y = x + layer.attn(layer.attn_norm(x))
            y = y + layer.ffn(layer.ffn_norm(y))
        grads.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(grads[0], grads[1], **EXACT)
