"""Conversion of the original's checkpoints: every bit, every refusal, and the numbers of the whole model."""

import argparse
import os
import pickle
import re

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from omegaconf import OmegaConf

import fairseq_transnorm  # noqa: F401  (registers the models)
from fairseq_transnorm.models.transnormer import files
from fairseq_transnorm.models.transnormer.convert import convert, revert
from fairseq_transnorm.models.transnormer.upstream import same_bits
from tests import upstream

SYMBOLS = 23
OLD_T1 = "norm_glu_lm_base_pure_rms_urpe_1d3"
OLD_T2 = OLD_T1 + "_softmax_1+elu"
VARIANTS = [
    {},
    {"layers": 3, "heads": 2, "hidden": 50},
    {"dim": 28, "heads": 2, "layers": 2, "hidden": 61},  # 61 / 28 * 28 is below 61
    {"classic": True, "hidden": 48},
    {"layer_norm": "layernorm", "linear_norm": "rmsnorm"},
    {"layer_norm": "rmsnorm", "linear_norm": "gatedrmsnorm", "local_norm": "scalenorm"},
    {"layer_norm": "scalenorm", "linear_norm": "layernorm", "local_norm": "gatedrmsnorm"},
]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(SYMBOLS - 4)))
    return folder


@pytest.fixture
def bare(tmp_path):
    """Return a function that writes a bare state dict, changed by ``change(state)`` when given."""

    def write(change=None, **options):
        state = upstream.make_state(SYMBOLS, **options)
        if change is not None:
            change(state)
        torch.save(state, tmp_path / "bare.pt")
        return tmp_path / "bare.pt"

    return write


def load(path):
    (model,), cfg, _ = load_model_ensemble_and_task([str(path)])
    return model.eval(), cfg


def our_logits(model, tokens):
    with torch.no_grad():
        return model.double()(tokens[None])[0][0]


def stored(path):
    return torch.load(path, weights_only=True)


def assert_same_tensors(got, want):
    assert sorted(got) == sorted(want)
    assert not [name for name in want if not same_bits(got[name], want[name])]


# --- numbers


@pytest.mark.parametrize("glu_act", ["identity", "silu"])
@pytest.mark.parametrize("variant", ["t1", "t2"])
def test_logits_equal_those_of_the_formulas(variant, glu_act, bare, data, tmp_path):
    path, tokens = bare(seed=1), torch.randint(4, SYMBOLS, (150,), generator=torch.Generator().manual_seed(2))
    convert(path, tmp_path / "ours.pt", arch=f"transnormer_{variant}", glu_act=glu_act, data=data)
    want = upstream.logits(stored(path), tokens, variant, glu_act)
    model, _ = load(tmp_path / "ours.pt")
    # the table of sinusoids is float32; with a float64 one nothing but rounding is left
    torch.testing.assert_close(our_logits(model, tokens), want, rtol=1e-6, atol=1e-6)
    table = model.decoder.embed_positions.table
    exact = [upstream.sinusoid(p, table.shape[1]) for p in range(len(table))]
    torch.testing.assert_close(table, torch.stack(exact).index_fill(0, torch.tensor([1]), 0.0), rtol=0, atol=1e-7)
    model.decoder.embed_positions.table = torch.stack(exact)
    torch.testing.assert_close(our_logits(model, tokens), want, rtol=1e-12, atol=1e-12)
    assert want.std() > 0.5, "the test is blind"
    for other in {("t1", "identity"), ("t1", "silu"), ("t2", "identity"), ("t2", "silu")} - {(variant, glu_act)}:
        assert (upstream.logits(stored(path), tokens[:70], *other) - want[:70]).abs().max() > 0.1


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_other_norms_sizes_and_feed_forwards_compute_the_formulas_too(options, bare, data, tmp_path):
    path, tokens = bare(**options), torch.arange(70) % (SYMBOLS - 4) + 4
    convert(path, tmp_path / "ours.pt", arch="transnormer_t1", data=data)
    want = upstream.logits(stored(path), tokens, "t1")
    torch.testing.assert_close(our_logits(load(tmp_path / "ours.pt")[0], tokens), want, rtol=1e-6, atol=1e-6)


# --- tensors


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("glu_act", ["identity", "silu"])
def test_there_and_back_keeps_every_bit(options, glu_act, bare, tmp_path):
    def awkward(state):  # numbers that arithmetic, even by one, would change
        state["decoder.layers.0.self_attn.k_proj.bias"][:3] = torch.tensor([-0.0, float("nan"), 1e-42])

    path = bare(awkward, **options)
    convert(path, tmp_path / "ours.pt", arch="transnormer_t1", glu_act=glu_act)
    lines = revert(tmp_path / "ours.pt", tmp_path / "theirs.pt", glu_act=glu_act)
    placeholder = {"decoder.embed_positions._float_tensor": torch.zeros(1)}
    assert_same_tensors(stored(tmp_path / "theirs.pt")["model"], stored(path) | placeholder)
    assert any("original's own options" in line for line in lines) == ("layer_norm" in options or "classic" in options)

    convert(tmp_path / "theirs.pt", tmp_path / "again.pt", glu_act=glu_act)
    ours, again = stored(tmp_path / "ours.pt"), stored(tmp_path / "again.pt")
    assert_same_tensors(again["model"], ours["model"])
    assert again["cfg"] == ours["cfg"]


def test_half_precision_stays_half(bare, tmp_path):
    path = bare(lambda state: state.update({name: x.half() for name, x in state.items()}))
    convert(path, tmp_path / "ours.pt", arch="transnormer_t2")
    assert {x.dtype for x in stored(tmp_path / "ours.pt")["model"].values()} == {torch.float16}


def test_names_and_shapes(bare, tmp_path):
    convert(bare(old_v=True), tmp_path / "ours.pt", arch="transnormer_t2")
    ours = {name: list(x.shape) for name, x in stored(tmp_path / "ours.pt")["model"].items()}
    layer = {name[len("decoder.layers.3.") :]: shape for name, shape in ours.items() if ".layers.3." in name}
    assert layer == {
        "attn.qkv.weight": [96, 32],
        "attn.qkv.bias": [96],
        "attn.out.weight": [32, 32],
        "attn.out.bias": [32],
        "attn.lrpe.theta": [4],
        "attn.lrpe.v": [8],
        "ffn.gate_and_value.weight": [170, 32],
        "ffn.gate_and_value.bias": [170],
        "ffn.out.weight": [32, 85],
        "ffn.out.bias": [32],
    }
    assert len(ours) == 4 * len(layer) + 1
    assert ours["decoder.embed_tokens.weight"] == [SYMBOLS, 32]


def test_old_names_and_shapes_become_new_ones(bare, data, tmp_path):
    path = bare(local_norm="gatedrmsnorm", local_norm_name="gated_rms_norm", old_v=True)
    convert(path, tmp_path / "ours.pt", arch=OLD_T1, glu_act="silu", data=data)
    tokens = torch.arange(70) % (SYMBOLS - 4) + 4
    want = upstream.logits(stored(path), tokens, "t1", "silu")
    torch.testing.assert_close(our_logits(load(tmp_path / "ours.pt")[0], tokens), want, rtol=1e-6, atol=1e-6)
    revert(tmp_path / "ours.pt", tmp_path / "theirs.pt", glu_act="silu")
    theirs = stored(tmp_path / "theirs.pt")["model"]
    assert_same_tensors(theirs, upstream.make_state(SYMBOLS, local_norm="gatedrmsnorm") | {
        "decoder.embed_positions._float_tensor": torch.zeros(1)
    })  # fmt: skip


def test_t2_drops_the_norm_that_softmax_leaves_unused(bare, data, tmp_path):
    path = bare(local_norm="gatedrmsnorm", linear_norm="gatedrmsnorm")
    lines = convert(path, tmp_path / "ours.pt", arch=OLD_T2, data=data)
    assert any("dropped" in x and "layers.0.self_attn.norm.gate" in x and "layers.2" not in x for x in lines)
    _, cfg = load(tmp_path / "ours.pt")
    assert (cfg.model.local_norm, cfg.model.linear_norm) == ("none", "gatedrmsnorm")


def test_a_tied_copy_that_was_not_stored_is_not_missed(bare, tmp_path):
    convert(bare(lambda state: state.pop("decoder.output_projection.weight")), tmp_path / "ours.pt", arch=OLD_T2)


# --- configs


def test_stored_options_are_kept(data, tmp_path):
    options = {"arch": OLD_T1, "dropout": 0.25, "attention_dropout": 0.125, "tokens_per_sample": 128, "data": str(data)}
    options |= {"sample_break_mode": "eos", "add_bos_token": True, "user_dir": "/of/the/original", "lr": [0.1]}
    path = upstream.save_checkpoint(tmp_path / "theirs.pt", upstream.make_state(SYMBOLS), **options)
    assert convert(path, tmp_path / "ours.pt")[0].endswith(
        "theirs.pt: transnormer_t1, 4 layers, width 32, 4 heads, glu feed-forward of 85, 23 symbols"
    )
    model, cfg = load(tmp_path / "ours.pt")
    assert cfg.model._name == "transnormer_t1"
    assert (cfg.model.linear_act, cfg.model.local_act, cfg.model.local_norm) == ("elu", "relu", "simplermsnorm")
    assert (cfg.model.decoder_layers, cfg.model.decoder_attention_heads, cfg.model.glu_mult) == (4, 4, 8 / 3)
    assert (cfg.model.dropout, cfg.model.attention_dropout, cfg.model.activation_dropout) == (0.25, 0.125, 0.0)
    assert (cfg.task.sample_break_mode, cfg.task.add_bos_token, cfg.task.tokens_per_sample) == ("eos", True, 128)
    assert model.max_positions() == 128
    assert cfg.common.user_dir is None
    assert stored(tmp_path / "ours.pt")["optimizer_history"][-1]["num_updates"] == 7
    assert "last_optimizer_state" not in stored(tmp_path / "ours.pt")


def as_dict(model, task):
    return {"model": model, "task": task}


def as_objects(model, task):
    config = OmegaConf.create({"model": model, "task": {**task, "tokens_per_sample": "${model.tokens_per_sample}"}})
    OmegaConf.set_struct(config, True)
    return config


def with_namespace(model, task):  # as fairseq stores a model that has no config dataclass
    return {"model": argparse.Namespace(**model), "task": argparse.Namespace(**task)}


@pytest.mark.parametrize("form", [as_dict, as_objects, with_namespace])
def test_every_form_of_a_config_is_read(form, data, tmp_path):
    config = form({"_name": "transnormer_t2", "tokens_per_sample": 96, "dropout": 0.0}, {"data": str(data)})
    torch.save({"args": None, "cfg": config, "model": upstream.make_state(SYMBOLS)}, tmp_path / "theirs.pt")
    convert(tmp_path / "theirs.pt", tmp_path / "ours.pt")
    _, cfg = load(tmp_path / "ours.pt")
    assert (cfg.model._name, cfg.model.tokens_per_sample, cfg.model.dropout) == ("transnormer_t2", 96, 0.0)
    assert (cfg.task.data, cfg.task.tokens_per_sample) == (str(data), 96)


def test_positions_and_lengths_can_be_told(bare, data, tmp_path):
    convert(bare(), tmp_path / "ours.pt", arch=OLD_T2, data=data, tokens_per_sample=40)
    assert load(tmp_path / "ours.pt")[0].max_positions() == 40
    path = upstream.save_checkpoint(
        tmp_path / "theirs.pt",
        upstream.make_state(SYMBOLS),
        arch=OLD_T2,
        data=str(data),
        no_token_positional_embeddings=True,
        max_target_positions=77,
    )
    convert(path, tmp_path / "bare.pt", overwrite=True)
    model, cfg = load(tmp_path / "bare.pt")
    assert (cfg.model.abs_pos, model.max_positions(), model.decoder.embed_positions) == ("none", 77, None)
    assert cfg.task.tokens_per_sample == 77
    convert(path, tmp_path / "longer.pt", tokens_per_sample=100)
    assert load(tmp_path / "longer.pt")[0].max_positions() == 100


# --- refusals


def rename(old, new):
    return lambda state: state.update({new: state.pop(old)})


def reshape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


def flip_last_bit(state):
    copy = state["decoder.output_projection.weight"].clone()
    copy.view(torch.int32)[5, 6] ^= 1
    state["decoder.output_projection.weight"] = copy


L1 = "decoder.layers.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({f"{L1}.self_attn.extra": torch.ones(1)}), rf"unknown tensors: {L1}.self_attn.extra$"),
        (lambda s: s.pop(f"{L1}.glu.l2.bias"), rf"missing tensors: {L1}.glu.l2.bias$"),
        (rename(f"{L1}.self_attn.urpe.v", "q"), rf"unknown tensors: q; missing tensors: {L1}.self_attn.urpe.v"),
        (lambda s: s.pop("decoder.layers.0.self_attn.urpe.v"), "missing tensors: decoder.layers.0.self_attn.urpe.v"),
        (lambda s: s.pop("decoder.embed_tokens.weight"), "missing tensors: decoder.embed_tokens.weight"),
        (lambda s: s.update({f"{L1}.self_attn.layer_norm.scale": torch.ones(32)}), f"unknown.*{L1}.self_attn.layer_n"),
        (lambda s: s.update({"decoder.layers.3.self_attn.norm.gate": torch.ones(32)}), "unknown.*layers.3.*norm.gate"),
        (lambda s: s.update({"decoder.layer_norm.weight": torch.ones(32)}), "unknown tensors: decoder.layer_norm.weig"),
        (reshape(f"{L1}.self_attn.q_proj.weight", 32, 31), rf"{L1}.self_attn.q_proj.weight is \(32, 31\), not \(32, 3"),
        (reshape(f"{L1}.self_attn.urpe.theta", 4), r"urpe.theta is \(4,\), not \(1, 1, 4\)"),
        (reshape(f"{L1}.self_attn.urpe.v", 8, 1), r"urpe.v is \(8, 1\), not \(8,\) or \(1, 8, 1\)"),
        (reshape("decoder.embed_tokens.weight", 32), "differs|not a matrix"),
        (lambda s: s.update({f"{L1}.glu.l2.bias": s[f"{L1}.glu.l2.bias"].half()}), "types.*glu.l1.bias.*glu.l2.bias"),
        (flip_last_bit, "decoder.output_projection.weight differs from decoder.embed_tokens.weight"),
        (lambda s: s.clear(), "no tensor is called decoder.layers.0.* or encoder.sentence_encoder.layers.0"),
        (rename("decoder.version", "encoder.version"), "unknown tensors: encoder.version"),
        (rename("decoder.version", "decoder.layers.0.attn.qkv.bias"), "already"),
        (lambda s: s.update({"epoch": 3}), "not named tensors: epoch"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, message, bare, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(bare(change), tmp_path / "ours.pt", arch="transnormer_t2")
    assert not (tmp_path / "ours.pt").exists()


def test_layers_with_a_gap_are_refused(bare, tmp_path):
    def without_layer_1(state):
        for name in [name for name in state if name.startswith(f"{L1}.")]:
            del state[name]

    with pytest.raises(
        ValueError, match=r"unknown tensors: decoder\.layers\.3\..*; missing tensors: decoder\.layers\.1"
    ):
        convert(bare(without_layer_1), tmp_path / "ours.pt", arch="transnormer_t2")


def test_heads_that_do_not_divide_the_width_are_refused(bare, tmp_path):
    def six_channels(state):
        for i in range(4):
            state[f"decoder.layers.{i}.self_attn.urpe.v"] = torch.ones(6)
            state[f"decoder.layers.{i}.self_attn.urpe.theta"] = torch.ones(1, 1, 3)

    with pytest.raises(ValueError, match=r"heads of 6 channels .* do not divide width 32"):
        convert(bare(six_channels), tmp_path / "ours.pt", arch="transnormer_t2")


def test_the_architecture_must_be_known(bare, tmp_path):
    with pytest.raises(ValueError, match="t1 and t2 have the same tensors; pass --arch"):
        convert(bare(), tmp_path / "ours.pt")
    path = upstream.save_checkpoint(tmp_path / "theirs.pt", upstream.make_state(SYMBOLS), arch=OLD_T1)
    with pytest.raises(ValueError, match=f"says that it is {OLD_T1}, --arch says transnormer_t2"):
        convert(path, tmp_path / "ours.pt", arch="transnormer_t2")
    convert(path, tmp_path / "ours.pt", arch="transnormer_t1")
    path = upstream.save_checkpoint(tmp_path / "theirs.pt", upstream.make_state(SYMBOLS), arch="some_ablation")
    with pytest.raises(ValueError, match="'some_ablation' is not one of transnormer_t1, "):
        convert(path, tmp_path / "ours.pt", overwrite=True)
    assert "some_ablation is unknown here" in " ".join(
        convert(path, tmp_path / "ours.pt", arch="transnormer_t1", overwrite=True)
    )


@pytest.mark.parametrize(
    "options",
    [{"decoder_attention_heads": 8}, {"decoder_layers": 6}, {"decoder_normalize_before": False}, {"dropout": "much"}],
    ids=str,
)
def test_stored_options_that_contradict_the_tensors_are_refused(options, tmp_path):
    path = upstream.save_checkpoint(tmp_path / "theirs.pt", upstream.make_state(SYMBOLS), arch=OLD_T1, **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        convert(path, tmp_path / "ours.pt")


def test_a_dictionary_of_another_size_is_refused(bare, data, tmp_path):
    (data / "dict.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match="its dictionary has 5 symbols, the checkpoint 23"):
        convert(bare(), tmp_path / "ours.pt", arch=OLD_T1, data=data)
    with pytest.raises(FileNotFoundError, match=r"no .*dict\.txt"):
        convert(bare(), tmp_path / "ours.pt", arch=OLD_T1, data=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 32}, r"block_size=32 \(not 64\)"),
        ({"lrpe": "1d1", "norm_eps": 1e-5}, "lrpe=1d1.*norm_eps=1e-05"),
        ({"linear_act": "relu"}, "linear_act relu with local_act softmax is neither"),
        ({"layer_order": "linear_first"}, "linear,linear,local,local .not the first half local"),
        ({"linear_attention_heads": 2}, "linear_attention_heads=2"),
        ({"local_norm": "rmsnorm"}, "local_norm=rmsnorm"),
        ({"abs_pos": "learned"}, "abs_pos=learned"),
        ({"glu_act": "silu"}, "its gate is silu, the original's code would compute identity"),
        ({"decoder_embed_dim": 64}, "wrong shapes: decoder.embed_tokens.weight"),
        ({"ffn": "classic"}, "missing tensors: decoder.layers.0.ffn.inner.bias"),
    ],
    ids=str,
)
def test_models_that_the_original_does_not_have_are_not_turned_back(change, message, bare, tmp_path):
    convert(bare(), tmp_path / "ours.pt", arch="transnormer_t2")
    checkpoint = stored(tmp_path / "ours.pt")
    checkpoint["cfg"]["model"] |= change
    torch.save(checkpoint, tmp_path / "ours.pt")
    with pytest.raises(ValueError, match=message):
        revert(tmp_path / "ours.pt", tmp_path / "theirs.pt")
    assert not (tmp_path / "theirs.pt").exists()


def test_only_our_checkpoints_are_turned_back(bare, tmp_path):
    with pytest.raises(ValueError, match="not a checkpoint of transnormer_lm"):
        revert(bare(), tmp_path / "theirs.pt")


# --- files


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_foreign_objects_are_loaded_on_request_only(tmp_path):
    state = upstream.make_state(SYMBOLS)
    torch.save(
        {"model": state, "args": argparse.Namespace(arch=OLD_T1), "x": Bomb(tmp_path / "boom")}, tmp_path / "x.pt"
    )
    with pytest.raises(ValueError, match=r"mkdir.*can run any code.*--allow-pickle"):
        convert(tmp_path / "x.pt", tmp_path / "ours.pt")
    assert not (tmp_path / "boom").exists()
    convert(tmp_path / "x.pt", tmp_path / "ours.pt", allow_pickle=True)
    assert (tmp_path / "boom").exists()
    assert stored(tmp_path / "ours.pt")["cfg"]["model"]["_name"] == "transnormer_t1"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_says_so(share, zipped, bare, tmp_path):
    path = bare()
    torch.save(stored(path), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"bare\.pt \([\d,]+ bytes\) is truncated"):
        convert(path, tmp_path / "ours.pt", arch=OLD_T1)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": [1]}, {"a": 1}, {"model": {}, "cfg": [1]}, torch.ones(2)], ids=str
)
def test_something_else_says_what(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/x.pt")):
        convert(tmp_path / "x.pt", tmp_path / "ours.pt", arch=OLD_T1)
    (tmp_path / "y.pt").write_bytes(pickle.dumps(content if isinstance(content, list) else [0]))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/y.pt")):
        convert(tmp_path / "y.pt", tmp_path / "ours.pt", arch=OLD_T1)


def test_outputs_are_not_overwritten_by_accident(bare, tmp_path):
    path, target = bare(), tmp_path / "ours.pt"
    target.write_text("precious")
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        convert(path, target, arch=OLD_T1)
    with pytest.raises(FileExistsError, match="is the input"):
        convert(path, path, arch=OLD_T1, overwrite=True)
    with pytest.raises(FileExistsError, match="is a folder"):
        convert(path, tmp_path, arch=OLD_T1, overwrite=True)
    with pytest.raises(FileNotFoundError, match="make it first"):
        convert(path, tmp_path / "no" / "ours.pt", arch=OLD_T1)
    with pytest.raises(FileNotFoundError, match=r"beside it: \['bare.pt', 'ours.pt'\]"):
        convert(tmp_path / "absent.pt", target, arch=OLD_T1)
    assert target.read_text() == "precious"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(bare, tmp_path, monkeypatch):
    path, target = bare(), tmp_path / "ours.pt"
    target.write_text("precious")

    def full_disk(checkpoint, name):
        name.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(files.torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        convert(path, target, arch=OLD_T1, overwrite=True)
    assert target.read_text() == "precious"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["bare.pt", "ours.pt"]
