"""The induction-head models: every switch against the formulas, what is trained, initial values, freezing, refusals."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from fairseq.dataclass.configs import CommonConfig, DistributedTrainingConfig, FairseqConfig

from fairseq_transnorm.measure.hidden_states import HiddenStates
from tests.birth_reference import D, T, V, basic_logits, build, full_logits

TOKENS = [3, 0, 6, 6, 1, 2]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
BASIC = [
    {},
    {"first_ffn": True},
    {"final_ffn": True},
    {"first_ffn": True, "mlp_first_ffn": True, "final_ffn": True, "mlp_final_ffn": True},
    {"use_rope": True},
    {"use_rope": True, "final_ffn": True, "mlp_final_ffn": True},
    {"no_sqrtd": True},
    {"sqrtd_embeddings": True},
    {"sin_cos": True},
    {"sin_cos": True, "sqrtd_embeddings": True},
    {"freeze_embeddings": True, "freeze_output": True},
]
FULL = [
    {},
    {"ffn_input": "residual"},
    {"post_norm": True},
    {"post_norm": True, "no_first_layer_ffn": True},
    {"no_norm": True},
    {"no_norm": True, "post_norm": True},
    {"no_ffn": True},
    {"no_first_layer_ffn": True, "linear_ffn": True},
    {"linear_ffn": True, "ffn_input": "residual"},
    {"no_wv": True},
    {"no_wo": True},
    {"no_wv": True, "no_wo": True, "no_ffn": True, "no_norm": True},
    {"sin_cos": True},
    {"tie_output": True},
    {"ihead_layers": 1, "ihead_heads": 1},
    {"ihead_layers": 3, "ihead_heads": 4},
    {"ihead_heads": 1, "no_norm": True, "no_ffn": True},
]


def words(options):
    return " ".join(f"{name}={value}" for name, value in options.items()) or "default"


def both_ways(model, tokens):
    """Logits by the fused forms, checked to be those of the formula with its weights."""
    fused, extra = model(torch.tensor(tokens)[None])
    assert extra["attn"] is None
    plain, extra = model(torch.tensor(tokens)[None], return_attention=True)
    torch.testing.assert_close(fused, plain, **EXACT)
    for weights in extra["attn"]:
        assert torch.equal(weights, weights.tril())
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    # in a batch of more tokens than the tables have rows, the first layer maps the tables
    batch, _ = model(torch.tensor([tokens] * (V + T)))
    torch.testing.assert_close(batch, plain.expand_as(batch), **EXACT)
    return fused[0]


@pytest.mark.parametrize("options", BASIC, ids=words)
def test_the_simplified_model_is_its_formula(options):
    model = build("ihead_basic", **options)
    wanted = basic_logits(model.state_dict(), TOKENS, rope="use_rope" in options, scale="no_sqrtd" not in options)
    torch.testing.assert_close(both_ways(model, TOKENS), wanted, **EXACT)
    torch.testing.assert_close(both_ways(model, TOKENS[:4]), wanted[:4], **EXACT)  # shorter than T


@pytest.mark.parametrize("options", FULL, ids=words)
def test_the_usual_transformer_is_its_formula(options):
    model = build("ihead_full", **options)
    kwargs = {"heads": options.get("ihead_heads", 2), "ffn_input": options.get("ffn_input", "block")}
    wanted = full_logits(model.state_dict(), TOKENS, post="post_norm" in options, **kwargs)
    torch.testing.assert_close(both_ways(model, TOKENS), wanted, **EXACT)
    torch.testing.assert_close(both_ways(model, TOKENS[:4]), wanted[:4], **EXACT)


@pytest.mark.parametrize("options", [{}, {"freeze_output": True}, {"freeze_embeddings": True}], ids=words)
def test_tied_logits_of_the_simplified_model_are_divided_by_the_width(options):
    model = build(tie_output=True, **options)
    state = model.state_dict()
    copied = "output.weight" in state
    assert copied == ("freeze_output" in options)
    if copied:
        torch.testing.assert_close(state["output.weight"], state["embed_tokens.weight"] / math.sqrt(D))
    state["output.weight"] = state["output.weight"] / math.sqrt(D) if copied else state["embed_tokens.weight"] / D
    torch.testing.assert_close(both_ways(model, TOKENS), basic_logits(state, TOKENS), **EXACT)
    torch.testing.assert_close(model.output_matrix(), state["output.weight"])


@pytest.mark.parametrize("name", ["ihead_basic", "ihead_full"])
def test_the_future_changes_nothing(name):
    model = build(name)
    one, other = torch.tensor([TOKENS, [*TOKENS[:3], 5, 5, 5]])
    got = [model(tokens[None])[0][0] for tokens in (one, other)]
    assert torch.equal(got[0][:3], got[1][:3])
    assert not torch.equal(got[0][3:], got[1][3:])


NEVER = {"layers.0.wv.weight", "layers.0.wo.weight", "layers.1.wv.weight"}


@pytest.mark.parametrize(
    ("name", "options", "never"),
    [
        ("ihead_basic", {}, NEVER),
        ("ihead_basic", {"first_ffn": True, "final_ffn": True}, NEVER),
        (
            "ihead_basic",
            {"freeze_embeddings": True, "freeze_output": True},
            {*NEVER, "embed_tokens.weight", "output.weight"},
        ),
        ("ihead_basic", {"tie_output": True, "freeze_output": True}, {*NEVER, "output.weight"}),
        ("ihead_full", {}, set()),
        ("ihead_full", {"freeze_embeddings": True}, {"embed_tokens.weight", "embed_positions.weight"}),
        ("ihead_full", {"freeze_output": True, "tie_output": True}, {"output.weight"}),
        ("ihead_full", {"freeze_wv": True}, {"layers.0.wv.weight", "layers.1.wv.weight"}),
        ("ihead_full", {"freeze_wo": True, "sin_cos": True}, {"layers.0.wo.weight", "layers.1.wo.weight"}),
    ],
)
def test_five_updates_change_exactly_what_is_trained(name, options, never):
    model = build(name, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    constant = {key for key, _ in model.named_buffers()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-4)
    torch.manual_seed(1)
    for update in range(5):
        model.set_num_updates(update)
        tokens = torch.randint(V, (3, T + 1))
        optimiser.zero_grad()
        F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimiser.step()
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert same == never | constant


def test_a_frozen_parameter_is_untouched_until_its_update():
    model = build(freeze_until="3:layers.0.wk.weight, 2:layers.1.wo.weight")
    one, other = model.layers[0].wk.weight, model.layers[1].wo.weight
    # fairseq makes the optimiser before the first update
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=0.5)
    assert any(p is one for group in optimiser.param_groups for p in group["params"])
    changed = []
    for update in range(5):
        model.set_num_updates(update)
        before = one.detach().clone(), other.detach().clone()
        optimiser.zero_grad()
        model(torch.randint(V, (2, T)))[0].square().sum().backward()
        optimiser.step()
        changed.append((not torch.equal(one, before[0]), not torch.equal(other, before[1])))
    assert changed == [(False, False), (False, False), (False, True), (True, True), (True, True)]


def test_an_optimiser_that_is_made_after_loading_knows_what_is_frozen_still():
    model = build(freeze_until="3:layers.0.wk.weight")
    weight = model.layers[0].wk.weight
    # fairseq tells a run that goes on its updates first, then loads, then makes the optimiser
    model.set_num_updates(1)
    assert not weight.requires_grad
    model.load_state_dict(model.state_dict())
    assert any(p is weight for p in model.parameters() if p.requires_grad)
    released = []
    for update in range(1, 5):
        model.set_num_updates(update)
        released.append(weight.requires_grad)
    assert released == [False, False, True, True]


@pytest.mark.parametrize(
    ("common", "parallel", "message"),
    [
        ({"fp16": True}, {}, "--freeze-until does not go with --fp16"),
        ({}, {"ddp_backend": "fully_sharded"}, "take legacy_ddp"),
        ({}, {"distributed_world_size": 2, "ddp_backend": "pytorch_ddp"}, "add --find-unused-parameters"),
        ({"fp16": True, "memory_efficient_fp16": True}, {}, None),
        ({"amp": True}, {}, None),
        ({}, {"distributed_world_size": 2, "ddp_backend": "legacy_ddp"}, None),
        ({}, {"distributed_world_size": 2, "ddp_backend": "pytorch_ddp", "find_unused_parameters": True}, None),
    ],
)
def test_freezing_is_refused_where_all_parameters_must_have_gradients(common, parallel, message):
    cfg = FairseqConfig(common=CommonConfig(**common), distributed_training=DistributedTrainingConfig(**parallel))
    build().freezing.check_run(cfg)  # nothing is frozen
    freezing = build(freeze_until="3:layers.0.wk.weight").freezing
    if message is None:
        freezing.check_run(cfg)
    else:
        with pytest.raises(ValueError, match=message):
            freezing.check_run(cfg)


def test_initial_values_follow_their_laws():
    D_ = 256
    model = build(ihead_dim=D_, tokens_per_sample=64, final_ffn=True, mlp_final_ffn=True)
    for name, tensor in model.state_dict().items():
        if name in ("embed_tokens.weight", "positions"):
            assert tensor.std() == pytest.approx(1, abs=0.05), name
        else:
            bound = tensor.shape[1] ** -0.5
            assert bound * 0.98 < tensor.abs().max() <= bound, name
            assert tensor.var() == pytest.approx(bound**2 / 3, rel=0.1), name
    small = build(ihead_dim=D_, tokens_per_sample=64, sqrtd_embeddings=True).state_dict()
    for name in ("embed_tokens.weight", "positions"):
        assert small[name].std() == pytest.approx(D_**-0.5, rel=0.05)
    full = build("ihead_full", ihead_dim=D_, tokens_per_sample=64).state_dict()
    assert full["embed_positions.weight"].std() == pytest.approx(1, abs=0.05)
    assert full["layers.1.ffn.out.weight"].abs().max() <= (4 * D_) ** -0.5
    assert full["norm.weight"].eq(1).all()
    assert full["layers.0.attn_norm.bias"].eq(0).all()


def test_sines_and_cosines_alternate():
    positions = build(sin_cos=True).positions
    for t, i in [(0, 0), (1, 0), (5, 2)]:
        angle = t * 10000 ** (-2 * i / D)
        assert positions[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert positions[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert "embed_positions.weight" not in build("ihead_full", sin_cos=True).state_dict()


def test_positions_of_the_simplified_model_are_in_checkpoints():
    model, other = build(seed=0), build(seed=1)
    other.load_state_dict(model.state_dict(), strict=True)
    tokens = torch.tensor([TOKENS])
    assert torch.equal(model(tokens)[0], other(tokens)[0])
    assert build(use_rope=True).position_vectors() is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ihead_basic", {"ihead_dim": 0}, "ihead_basic: --ihead-dim 0 must be at least 1"),
        ("ihead_basic", {"ihead_dim": 9, "use_rope": True}, "--use-rope needs an even --ihead-dim, not 9"),
        ("ihead_basic", {"ihead_dim": 9, "sin_cos": True}, "--sin-cos needs an even --ihead-dim, not 9"),
        ("ihead_basic", {"use_rope": True, "sin_cos": True}, "leave one out"),
        ("ihead_basic", {"mlp_final_ffn": True}, "--mlp-final-ffn says what --final-ffn is; give both"),
        ("ihead_basic", {"freeze_until": "300"}, "'300' is not NUMBER:NAME"),
        ("ihead_basic", {"freeze_until": "-1:layers.0.wk.weight"}, "is not NUMBER:NAME"),
        (
            "ihead_basic",
            {"freeze_until": "3:layers.0.wq.weight"},
            "'layers.0.wq.weight' is no parameter of the model; there are embed_tokens.weight, layers.0.wk.weight",
        ),
        ("ihead_basic", {"freeze_until": "3:layers.0.wv.weight"}, "'layers.0.wv.weight' is never trained"),
        ("ihead_basic", {"freeze_until": "3:output.weight,4:output.weight"}, "output.weight comes twice"),
        ("ihead_full", {"ihead_heads": 3}, "--ihead-heads 3"),
        ("ihead_full", {"ihead_layers": 0}, "ihead_full: --ihead-layers 0 must be at least 1"),
        ("ihead_full", {"sin_cos": True, "ihead_dim": 9, "ihead_heads": 3}, "--sin-cos needs an even --ihead-dim"),
        ("ihead_full", {"no_wv": True, "freeze_wv": True}, "--no-wv leaves nothing to --freeze-wv"),
        ("ihead_full", {"no_ffn": True, "linear_ffn": True}, "--no-ffn leaves no map"),
    ],
)
def test_options_without_meaning_are_refused(name, options, message):
    with pytest.raises(ValueError) as error:
        build(name, **options)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{name}: ")


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"ihead_basic: a sequence of 7 tokens is longer than the 6"):
        build()(torch.zeros(1, T + 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tie_output": True}, "standard deviation"), ({"tie_output": True, "freeze_output": True}, "is ignored with")],
)
def test_ties_of_the_usual_transformer_are_warned_of(options, message, caplog):
    with caplog.at_level(logging.WARNING):
        build("ihead_full", **options)
    assert message in caplog.text


@pytest.mark.parametrize("name", ["ihead_basic", "ihead_full"])
def test_hidden_states_are_those_of_the_logits(name):
    model, tokens = build(name), torch.tensor([TOKENS])
    states = HiddenStates(model)(tokens)
    assert len(states.hidden) == 3
    embedding = model.embed_tokens(tokens) + model.position_vectors()
    torch.testing.assert_close(states.hidden[0], embedding, **EXACT)
    torch.testing.assert_close(states.encodings @ model.output_matrix().t(), model(tokens)[0], **EXACT)


def test_probabilities_sum_to_one():
    model = build()
    output = model(torch.tensor([TOKENS]))
    probabilities = model.get_normalized_probs(output, log_probs=False)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, T))
    torch.testing.assert_close(model.get_normalized_probs(output, log_probs=True).exp(), probabilities)
