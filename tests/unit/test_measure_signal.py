"""The recorder of signals against a slow form: every stream kept, and autograd with respect to all of them."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerModel
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from fairseq_transnorm.measure.efficiency import build_model
from fairseq_transnorm.measure.signal import layer_stacks, moments, signal_rows
from tests.transnormer_reference import PAD, build_lm, build_mlm, random_tokens

TRANSLATION = {"embed_dim": 16, "ffn_embed_dim": 32, "layers": 2, "attention_heads": 2}
SIZE = {"length": 16, "dim": 16, "layers": 3, "heads": 2, "vocabulary": 40}


def stock(name):
    """fairseq's own model, time first; in float64 and with dropout off."""
    torch.manual_seed(0)
    return build_model(name, **SIZE).double().eval()


# model, the norm before which the stream lies (None: it is the layer's output), and the part that has the layers
MODELS = {
    "transnormer_lm": (build_lm, None, "decoder"),
    "transnormer_mlm": (build_mlm, "ffn_norm", "encoder"),
    "roberta": (lambda: stock("roberta"), "final_layer_norm", "encoder"),
    "transformer_lm": (lambda: stock("transformer_lm"), None, "decoder"),
}


def padded_sample(lengths=(11, 7, 2), seed=0):
    tokens = random_tokens(len(lengths), max(lengths), seed=seed)
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = PAD
    return {"net_input": {"src_tokens": tokens}}


def some_loss(model, sample):
    logits = model(**sample["net_input"])[0]
    return F.cross_entropy(logits.flatten(0, 1), sample["net_input"]["src_tokens"].flatten(), ignore_index=PAD)


def slow_streams(layers, norm, run):
    """All streams, kept alive, of one forward pass."""
    kept, hooks = {}, []
    for i, layer in enumerate(layers):
        if norm is None:
            keep = lambda _m, _x, out, i=i: kept.__setitem__(i, out[0] if isinstance(out, tuple) else out)  # noqa: E731
            hooks.append(layer.register_forward_hook(keep))
        else:
            keep = lambda _m, x, i=i: kept.__setitem__(i, x[0])  # noqa: E731
            hooks.append(getattr(layer, norm).register_forward_pre_hook(keep))
    loss = run()
    for hook in hooks:
        hook.remove()
    return loss, [kept[i] for i in range(len(layers))]


def by_loops(x, keep):
    """Variance and correlation of a few rows of positions, one pair at a time."""
    numbers = torch.stack([x[b, t] for b in range(len(x)) for t in range(x.shape[1]) if keep[b, t]])
    variance = ((numbers - numbers.mean()) ** 2).mean()
    pairs = [
        ((x[b, i] - x[b, i].mean()) * (x[b, j] - x[b, j].mean())).sum()
        for b in range(len(x))
        for i in range(x.shape[1])
        for j in range(x.shape[1])
        if i != j and keep[b, i] and keep[b, j]
    ]
    own = ((numbers - numbers.mean(-1, keepdim=True)) ** 2).sum(-1).mean()
    return float(variance), float(torch.stack(pairs).mean() / own)


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_slow_form(name):
    build, norm, part = MODELS[name]
    model, sample = build(), padded_sample()
    layers = layer_stacks(model)[part]
    loss, streams = slow_streams(layers, norm, lambda: some_loss(model, sample))
    matrices = [[p for n, p in layer.named_parameters() if n.endswith("weight") and p.dim() == 2] for layer in layers]
    grads = torch.autograd.grad(loss, [*streams, *(p for layer in matrices for p in layer)])
    of_streams, of_weights = grads[: len(streams)], iter(grads[len(streams) :])
    keep = sample["net_input"]["src_tokens"] != PAD
    time_first = name in ("roberta", "transformer_lm")
    got = signal_rows(model, sample, some_loss, PAD)
    assert [(row["part"], row["layer"], row["layers"], row["width"], row["post_norm"]) for row in got] == [
        (part, i + 1, len(layers), 16, norm is not None) for i in range(len(layers))
    ]
    for row, stream, grad, mine in zip(got, streams, of_streams, matrices, strict=True):
        variance, correlation = by_loops(stream.transpose(0, 1) if time_first else stream, keep)
        gradient, shared = by_loops(grad.transpose(0, 1) if time_first else grad, keep)
        weight = math.sqrt(sum(float(next(of_weights).square().sum()) for _ in mine))
        expected = {"variance": variance, "correlation": correlation, "gradient_variance": gradient}
        expected |= {"gradient_correlation": shared, "weight_gradient": weight}
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-9, abs=1e-14)
        assert row["gradient_ratio"] == pytest.approx(gradient / got[-1]["gradient_variance"])
    assert all(p.grad is None for p in model.parameters()), "gradients are left behind"


def test_the_stream_before_the_norm_and_after_it_differ():
    model, sample = build_mlm(), padded_sample()
    rows = signal_rows(model, sample, some_loss, PAD)
    assert rows[0]["post_norm"]
    assert abs(rows[0]["variance"] - 1) > 0.05, "the test is blind"


def test_moments_by_hand():
    # one sequence: rows (1, -1), (2, -2) and padding; another with a single position
    x = torch.tensor([[[1.0, -1.0], [2.0, -2.0], [9.0, 9.0]], [[0.0, 0.0], [5.0, 5.0], [5.0, 5.0]]])
    keep = torch.tensor([[True, True, False], [True, False, False]])
    variance, correlation = moments(x, keep)
    assert variance == pytest.approx(10 / 6)
    assert correlation == pytest.approx(4 / (10 / 3))  # the pair's product over the mean square of the three
    assert math.isnan(moments(x, keep[:, :1] & torch.tensor([[True, False, False]]))[1]), "no pair"


def test_encoder_and_decoder_of_a_translation_model():
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in TRANSLATION.items()}
    args = SimpleNamespace(**sides | {"decoder_layers": 3, "share_all_embeddings": True, "dropout": 0.0})
    dictionary = build_lm().decoder.dictionary
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(0)
    model = TransformerModel.build_model(args, task)
    inputs = padded_sample()["net_input"] | {"prev_output_tokens": random_tokens(3, 5, seed=1)}
    inputs["src_lengths"] = inputs["src_tokens"].ne(PAD).sum(-1)

    def loss(model, sample):
        return F.cross_entropy(model(**sample["net_input"])[0].flatten(0, 1), random_tokens(15, seed=2))

    rows = signal_rows(model, {"net_input": inputs}, loss, PAD)
    assert [(row["part"], row["layer"]) for row in rows] == [*(("encoder", i) for i in (1, 2))] + [
        ("decoder", i) for i in (1, 2, 3)
    ]
    assert all(row["post_norm"] and row["gradient_variance"] > 0 for row in rows)


def test_as_many_sequences_as_positions():
    """Which dimension is time can then be told by whose layer it is only."""
    sample = padded_sample((3, 2, 1))
    model = stock("roberta")
    _, streams = slow_streams(
        model.encoder.sentence_encoder.layers, "final_layer_norm", lambda: some_loss(model, sample)
    )
    expected = by_loops(streams[0].transpose(0, 1), sample["net_input"]["src_tokens"] != PAD)
    row = signal_rows(model, sample, some_loss, PAD)[0]
    assert (row["variance"], row["correlation"]) == pytest.approx(expected)


def test_our_own_checkpointing_changes_nothing():
    with set_checkpoint_early_stop(False):  # whole layers then run again in the backward pass
        kept, again = (
            signal_rows(build_mlm(checkpoint_activations=on).train(), padded_sample(), some_loss, PAD)
            for on in (False, True)
        )
    for one, other in zip(kept, again, strict=True):
        assert [value for key, value in one.items() if key != "part"] == pytest.approx(
            [value for key, value in other.items() if key != "part"], rel=1e-12
        )


class Odd(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        self.layers = nn.ModuleList(layers)

    def forward(self, src_tokens):
        x = self.embed(src_tokens)
        for layer in self.layers:
            x = layer(x)
        return (x @ self.embed.weight.T,)


class LeavingOut(Odd):
    """Does not call its last layer."""

    def forward(self, src_tokens):
        return (self.layers[0](self.embed(src_tokens)) @ self.embed.weight.T,)


def test_errors_say_which_layer():
    sample = padded_sample()
    with pytest.raises(LookupError, match="no list of layers"):
        signal_rows(nn.Linear(2, 2), sample, some_loss, PAD)
    with pytest.raises(ValueError, match="net_input and src_tokens"):
        signal_rows(stock("roberta"), {"target": 0}, some_loss, PAD)
    wrapped = stock("roberta")
    checkpoint_wrapper(wrapped.encoder.sentence_encoder.layers[1])
    with pytest.raises(ValueError, match=r"layer 2 of the encoder.*checkpointing"):
        signal_rows(wrapped, sample, some_loss, PAD)
    with pytest.raises(ValueError, match="positions come out of it"):
        signal_rows(Odd([nn.AvgPool2d((2, 1))]), sample, lambda m, s: m(**s["net_input"])[0].sum(), PAD)
    model = Odd([nn.Linear(4, 4), nn.Linear(4, 4)])
    with pytest.raises(ValueError, match="no gradient reaches the last layer of the model"):
        signal_rows(model, sample, lambda m, s: 0 * m(**s["net_input"])[0].sum(), PAD)
    model.layers[1].weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match=r"is (nan|inf)"):
        signal_rows(model, sample, lambda m, s: m(**s["net_input"])[0].sum(), PAD)
    with pytest.raises(ValueError, match=r"layer 2 of the model did not run.*layerdrop"):
        signal_rows(LeavingOut([nn.Linear(4, 4), nn.Linear(4, 4)]), sample, some_loss, PAD)
    frozen = Odd([nn.Linear(4, 4)]).requires_grad_(False)
    with pytest.raises(ValueError, match=r"layer 1 of the model.*frozen"):
        signal_rows(frozen, sample, some_loss, PAD)
