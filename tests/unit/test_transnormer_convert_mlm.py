"""Conversion of the original's masked model; what it shares with the language model is tested there."""

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task

import fairseq_transnorm  # noqa: F401  (registers the models)
from fairseq_transnorm.models.transnormer.convert import convert, revert
from fairseq_transnorm.models.transnormer.upstream import same_bits
from tests import upstream

SYMBOLS = 24  # with <mask>
OLD_T1 = "roberta_glu_all_rms_layer_ln_rms_urpe_1d3"
OLD_T2 = OLD_T1 + "_softmax_1+elu"
VARIANTS = [
    {},
    {"layers": 3, "heads": 2, "hidden": 50, "positions": 90},
    {"classic": True, "hidden": 48, "heads_of": (2,)},
    {"layer_norm": "layernorm", "linear_norm": "rmsnorm", "local_norm": "gatedrmsnorm", "heads_of": (2, 1)},
]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(SYMBOLS - 5)))
    return folder


def save(path, state, **options):
    return upstream.save_checkpoint(path, state, **{"task": "masked_lm", "arch": OLD_T2, **options})


def load(path, **overrides):
    (model,), cfg, task = load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    return model.eval(), cfg, task


def stored(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("variant", "glu_act"), [("t1", "silu"), ("t2", "identity")])
def test_logits_equal_those_of_the_formulas(variant, glu_act, data, tmp_path):
    state = upstream.make_masked_state(SYMBOLS, positions=100, layers=4, heads_of=(3,))
    path = save(tmp_path / "theirs.pt", state, arch=OLD_T1 if variant == "t1" else OLD_T2)
    lines = convert(path, tmp_path / "ours.pt", glu_act=glu_act, data=data)
    assert any("100 positions, classification heads head0" in line for line in lines)
    model, cfg, task = load(tmp_path / "ours.pt", load_checkpoint_heads=True)
    assert (cfg.task._name, cfg.task.tokens_per_sample, len(task.source_dictionary)) == ("masked_lm", 100, SYMBOLS)
    tokens = torch.randint(4, SYMBOLS, (100,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model.double()(tokens[None])[0][0]
        classes, _ = model(tokens[None], classification_head_name="head0")
    want = upstream.masked_logits(state, tokens, variant, glu_act)
    torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-10)
    assert want.std() > 0.5, "the test is blind"
    first = upstream.masked_features(state, tokens, variant, glu_act)[0]
    head = upstream.Layer({k: v.double() for k, v in state.items()}, "classification_heads.head0.", variant, glu_act)
    torch.testing.assert_close(classes[0], head.linear(head.linear(first, "dense").tanh(), "out_proj"))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_there_and_back_keeps_every_bit(options, tmp_path):
    state = upstream.make_masked_state(SYMBOLS, **options)
    state["encoder.lm_head.bias"][:3] = torch.tensor([-0.0, float("nan"), 1e-42])
    path = save(tmp_path / "theirs.pt", state, arch=OLD_T1, dropout=0.25, pooler_dropout=0.5)
    convert(path, tmp_path / "ours.pt", glu_act="silu")
    revert(tmp_path / "ours.pt", tmp_path / "back.pt", glu_act="silu")
    back = stored(tmp_path / "back.pt")
    assert sorted(back["model"]) == sorted(state)
    assert not [name for name in state if not same_bits(back["model"][name], state[name])]
    told = {"arch": "roberta_transnormer_t1", "dropout": 0.25, "pooler_dropout": 0.5, "layernorm_embedding": True}
    assert told.items() <= back["cfg"]["model"].items()
    convert(tmp_path / "back.pt", tmp_path / "again.pt", glu_act="silu")
    assert stored(tmp_path / "again.pt")["cfg"] == stored(tmp_path / "ours.pt")["cfg"]


def test_a_bare_state_dict_needs_an_architecture_of_its_kind(tmp_path):
    torch.save(upstream.make_masked_state(SYMBOLS), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="pass --arch, one of roberta_transnormer_t1"):
        convert(tmp_path / "bare.pt", tmp_path / "ours.pt")
    with pytest.raises(ValueError, match="'transnormer_t2' is not one of roberta_transnormer_t1"):
        convert(tmp_path / "bare.pt", tmp_path / "ours.pt", arch="transnormer_t2")
    convert(tmp_path / "bare.pt", tmp_path / "ours.pt", arch="roberta_transnormer_t2")
    assert stored(tmp_path / "ours.pt")["cfg"]["model"]["max_positions"] == 64


def drop(name):
    return lambda state: state.pop(name)


def add(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("encoder.lm_head.bias"), "missing tensors: encoder.lm_head.bias"),
        (drop("encoder.sentence_encoder.layernorm_embedding.bias"), "missing tensors: .*layernorm_embedding.bias"),
        (add("encoder.lm_head.weight", SYMBOLS, 32), "lm_head.weight differs from .*embed_tokens.weight"),
        (
            add("encoder.sentence_encoder.layer_norm.weight", 32),
            "unknown tensors: .*sentence_encoder.layer_norm.weight",
        ),
        (add("encoder.lm_head.dense.weight", 32, 31), r"lm_head.dense.weight is \(32, 31\), not \(32, 32\)"),
        (
            lambda s: s.update(upstream.make_masked_state(SYMBOLS, dim=16, heads_of=(2,)) | s),
            r"classification_heads.head0.dense.weight is not \(15, 32\)",
        ),
        (add("encoder.sentence_encoder.embed_positions.weight", 2, 32), "has 2 rows: no position is left"),
        (add("classification_heads.a.dense.weight", 32, 32), "missing tensors: classification_heads.a.dense.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    state = upstream.make_masked_state(SYMBOLS)
    change(state)
    with pytest.raises(ValueError, match=message):
        convert(save(tmp_path / "theirs.pt", state), tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_normalize_before": True}, r"encoder_normalize_before=True \(not False\)"),
        ({"untie_weights_roberta": True}, "untie_weights_roberta"),
        ({"encoder_attention_heads": 2}, r"encoder_attention_heads=2 \(not 4\)"),
    ],
)
def test_stored_options_that_contradict_are_refused(options, message, tmp_path):
    path = save(tmp_path / "theirs.pt", upstream.make_masked_state(SYMBOLS), **options)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "ours.pt")


def test_lengths_and_data_must_fit(data, tmp_path):
    path = save(tmp_path / "theirs.pt", upstream.make_masked_state(SYMBOLS), tokens_per_sample=512)
    with pytest.raises(ValueError, match="--tokens-per-sample 65, but its table of positions is for 64 tokens"):
        convert(path, tmp_path / "ours.pt", tokens_per_sample=65)
    (data / "dict.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match="its dictionary has 6 symbols, the checkpoint 24"):
        convert(path, tmp_path / "ours.pt", data=data)


def test_the_heads_activation_is_kept(tmp_path):
    path = save(tmp_path / "theirs.pt", upstream.make_masked_state(SYMBOLS), activation_fn="relu")
    convert(path, tmp_path / "ours.pt")
    assert stored(tmp_path / "ours.pt")["cfg"]["model"]["activation_fn"] == "relu"
    revert(tmp_path / "ours.pt", tmp_path / "back.pt")
    assert stored(tmp_path / "back.pt")["cfg"]["model"]["activation_fn"] == "relu"
    path = save(tmp_path / "odd.pt", upstream.make_masked_state(SYMBOLS), activation_fn="gelu_accurate")
    with pytest.raises(ValueError, match="gelu_accurate"):
        convert(path, tmp_path / "odd_ours.pt")


def test_options_that_the_original_lacks_are_refused_on_the_way_back(tmp_path):
    path = save(tmp_path / "theirs.pt", upstream.make_masked_state(SYMBOLS))
    convert(path, tmp_path / "ours.pt")
    for name, value, message in [
        ("pre_norm", True, r"pre_norm=True \(not False\)"),
        ("pooling", "mean", r"pooling=mean \(not first\)"),
        ("abs_pos", "sinusoidal", "abs_pos=sinusoidal"),
        ("glu_act", "silu", "its gate is silu"),
    ]:
        ours = stored(tmp_path / "ours.pt")
        ours["cfg"]["model"][name] = value
        torch.save(ours, tmp_path / "changed.pt")
        with pytest.raises(ValueError, match=message):
            revert(tmp_path / "changed.pt", tmp_path / "back.pt")
