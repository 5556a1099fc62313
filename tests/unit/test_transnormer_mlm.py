"""The masked model: formula, size, initialisation, heads, checkpoints, hub interface and errors.

The whole model against independent formulas: tests/unit/test_transnormer_convert_mlm.py.
"""

import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq import options
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.roberta.model import RobertaClassificationHead
from torch import nn

from fairseq_transnorm.models.masked_lm import HeadOptions
from fairseq_transnorm.models.masked_lm_hub import MaskedLMHub
from fairseq_transnorm.models.transnormer.config import MLM_PRESETS, TransNormerMLMConfig
from fairseq_transnorm.models.transnormer.mlm import TransNormerMLM
from fairseq_transnorm.modules.masked_lm import mean_of_tokens
from tests import transnormer_reference as reference
from tests.transnormer_reference import PAD, T1, T2, MLMTask, build_mlm, mlm_config, padded, random_tokens

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
VARIANTS = pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])
PAPER = {"encoder_embed_dim": 768, "encoder_layers": 12, "encoder_attention_heads": 12, "block_size": 64}


def layers_by_the_formula(model, x, variant):
    """The post-norm layers of one row ``T D``, by loops."""
    act, norm = ("relu", True) if variant else ("softmax", False)
    feature_map = "elu" if variant else "1+elu"
    for i, layer in enumerate(model.encoder.layers):
        if i < len(model.encoder.layers) // 2:
            change = reference.local_attention(layer.attn, x, act, 8, causal=False, norm=norm)
        else:
            change = reference.linear_attention(layer.attn, x, feature_map, causal=False)
        x = reference.srms(x + change)
        x = reference.srms(x + reference.glu(layer.ffn, x))
    return x


@VARIANTS
def test_equals_the_formula(variant):
    model, tokens = build_mlm(**variant), random_tokens(1, 19)
    encoder = model.encoder
    e = encoder.embed_tokens.weight[tokens[0]] + encoder.embed_positions.embedding.weight[2:21]
    x = F.layer_norm(e, (16,), encoder.embed_norm.weight, encoder.embed_norm.bias, 1e-5)
    x = layers_by_the_formula(model, x, variant)
    torch.testing.assert_close(model(tokens, features_only=True)[0][0], x, **EXACT)
    h = F.gelu(x @ encoder.head.dense.weight.T + encoder.head.dense.bias)
    h = F.layer_norm(h, (16,), encoder.head.norm.weight, encoder.head.norm.bias, 1e-5)
    expected = h @ encoder.embed_tokens.weight.T + encoder.head.bias
    torch.testing.assert_close(model(tokens)[0][0], expected, **EXACT)
    assert expected.std() > 0.5, "the test is blind"


def test_logits_of_masked_tokens_only():
    model, tokens = build_mlm(), random_tokens(3, 7)
    wanted = torch.rand(3, 7) < 0.4
    logits, extra = model(tokens, src_lengths=None, src_id=None, masked_tokens=wanted)
    torch.testing.assert_close(logits, model(tokens)[0][wanted], **EXACT)
    assert extra["inner_states"] is None
    hiddens = model(tokens, return_all_hiddens=True)[1]["inner_states"]
    assert [tuple(h.shape) for h in hiddens] == [(7, 3, 16)] * 5  # T B D, before and after each of 4 layers


def test_embedding_options():
    tokens = padded([random_tokens(5), random_tokens(3, seed=1)])

    def embedded(**options):
        model = build_mlm(**options)
        x = model(tokens, return_all_hiddens=True)[1]["inner_states"][0].transpose(0, 1)
        assert not x[1, 3:].any(), "padding is zero"
        return x[0], model.encoder

    bare = {"no_layernorm_embedding": True, "abs_pos": "none"}
    x, encoder = embedded(**bare)
    torch.testing.assert_close(x, encoder.embed_tokens.weight[tokens[0]], **EXACT)
    x, encoder = embedded(**bare, scale_embedding=True)
    torch.testing.assert_close(x, 4 * encoder.embed_tokens.weight[tokens[0]], **EXACT)
    x, encoder = embedded(no_layernorm_embedding=True)
    learned = encoder.embed_positions.embedding.weight[2:7]
    torch.testing.assert_close(x, encoder.embed_tokens.weight[tokens[0]] + learned, **EXACT)


def test_pre_norm_has_a_final_norm():
    model, tokens = build_mlm(pre_norm=True), random_tokens(2, 9)
    features, _ = model(tokens, features_only=True)
    torch.testing.assert_close(features.square().mean(-1), torch.ones(2, 9, dtype=torch.float64))
    assert model.encoder.layers[0].norm_placement == "pre"


def test_untied_output_has_a_matrix_of_its_own():
    model, tokens = build_mlm(untied_output=True), random_tokens(2, 5)
    before = model(tokens)[0]
    model.encoder.head.projection.weight.data *= 2
    assert not torch.allclose(model(tokens)[0], before)
    assert "encoder.head.projection.weight" in model.state_dict()


@VARIANTS
def test_the_papers_model_has_exactly_its_parameters(variant):
    with torch.device("meta"):
        model = TransNormerMLM.build_model(mlm_config(**PAPER, **variant), MLMTask(50_260))
    assert len(model.encoder.dictionary) == 50_265
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad == trained) for trained in (True, False)]
    assert counts == [124_673_241 - 768, 768]


def test_initialisation():
    torch.manual_seed(0)
    wide = {"encoder_embed_dim": 128, "encoder_attention_heads": 4}
    model = TransNormerMLM.build_model(mlm_config(**wide), MLMTask(500))
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert not part.bias.any(), name
        elif isinstance(part, nn.Embedding):
            assert part.weight[2:].std().item() == pytest.approx(0.02, rel=0.05), name
            assert not part.weight[PAD].any(), name
    lrpe = model.encoder.layers[0].attn.lrpe
    torch.testing.assert_close(lrpe.theta[3].item(), 10000 ** (-6 / 32))
    torch.testing.assert_close(lrpe.v.norm().item(), 1.0)
    assert not model.encoder.head.bias.any()
    small = TransNormerMLM.build_model(mlm_config(**wide, small_init_embedding=True), MLMTask(500)).encoder
    assert small.embed_tokens.weight.std().item() == pytest.approx(1e-5, rel=0.05)
    assert small.layers[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_in_training_only(name):
    model, tokens = build_mlm(**{name: 0.5}), random_tokens(2, 20)
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.allclose(model(tokens)[0], model(tokens)[0])


@VARIANTS
def test_checkpointed_activations_give_the_same_gradients(variant):
    found = []
    for flag in (False, True):
        model = build_mlm(**variant, checkpoint_activations=flag, dropout=0.2, attention_dropout=0.2).train()
        torch.manual_seed(3)
        model(random_tokens(2, 21))[0].square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], msg=name, **EXACT)


# --- fairseq's criterions


def test_fairseqs_masked_lm_criterion():
    model, task = build_mlm(), MLMTask()
    tokens = padded([random_tokens(9), random_tokens(6, seed=1)])
    target = torch.full_like(tokens, PAD)
    target[0, 3], target[1, 2] = tokens[0, 3], tokens[1, 2]
    sample = {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 15, "nsentences": 2}
    criterion = MaskedLmLoss(SimpleNamespace(tpu=False), SimpleNamespace(target_dictionary=task.source_dictionary))
    loss, size, _ = criterion(model, sample)
    logits = model(tokens)[0]
    expected = F.cross_entropy(logits[0, 3], tokens[0, 3]) + F.cross_entropy(logits[1, 2], tokens[1, 2])
    assert size == 2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_fairseqs_sentence_prediction_criterion():
    model = build_mlm()
    model.register_classification_head("sentence_classification_head", 3)
    task = SimpleNamespace(target_dictionary=MLMTask().source_dictionary, label_dictionary=MLMTask(3).source_dictionary)
    criterion = SentencePredictionCriterion(SentencePredictionConfig(), task)
    tokens, target = random_tokens(4, 9), torch.tensor([[0], [2], [1], [0]])
    sample = {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 36, "nsentences": 4}
    loss, size, logs = criterion(model, sample)
    logits, _ = model(tokens, classification_head_name="sentence_classification_head")
    torch.testing.assert_close(loss, F.cross_entropy(logits, target[:, 0], reduction="sum").float())
    assert (size, int(logs["ncorrect"])) == (4, int((logits.argmax(1) == target[:, 0]).sum()))


# --- classification heads and checkpoints


def test_a_head_is_fairseqs():
    model, tokens = build_mlm(pooler_activation_fn="relu"), random_tokens(2, 9)
    model.register_classification_head("a", 3, inner_dim=5)
    head = model.classification_heads["a"]
    first = model(tokens, features_only=True)[0][:, 0]
    expected = head.out_proj(F.relu(head.dense(first)))
    torch.testing.assert_close(model(tokens, classification_head_name="a")[0], expected, **EXACT)
    assert expected.shape == (2, 3)
    assert sorted(x for x in model.state_dict() if "heads" in x) == [
        f"classification_heads.a.{part}.{x}" for part in ("dense", "out_proj") for x in ("bias", "weight")
    ]


def test_a_head_on_the_mean_of_all_tokens():
    model, rows = build_mlm(pooling="mean"), [random_tokens(n, seed=n) for n in (9, 4)]
    model.register_classification_head("a", 3)
    head, both = model.classification_heads["a"], model(padded(rows), classification_head_name="a")[0]
    for row, logits in zip(rows, both, strict=True):
        mean = sum(model(row[None], features_only=True)[0][0]) / len(row)
        torch.testing.assert_close(logits, head.out_proj(torch.tanh(head.dense(mean))), **EXACT)


def test_the_mean_of_many_halves_is_finite_and_that_of_none_0():
    features = torch.full((2, 512, 4), 200.0, dtype=torch.float16)  # their sum is beyond 65504
    padding = torch.tensor([[False], [True]]).repeat(1, 512)
    padding[0, -1] = True
    assert torch.equal(mean_of_tokens(features, padding), torch.tensor([[200.0], [0.0]]).half().repeat(1, 4))


def test_heads_are_refused_by_name():
    model = build_mlm()
    with pytest.raises(ValueError, match="no classification head 'b', there are: none; add one"):
        model(random_tokens(1, 4), classification_head_name="b")
    with pytest.raises(ValueError, match="classification head 'b' with None classes; at least 1"):
        model.register_classification_head("b")


def test_heads_of_checkpoints(caplog):
    trained = build_mlm(seed=1)
    trained.register_classification_head("old", 3, inner_dim=5)
    trained.register_classification_head("same", 2)

    plain = build_mlm()
    plain.register_classification_head("new", 4)
    plain.register_classification_head("same", 2)
    kept = plain.classification_heads["new"].out_proj.weight.clone()
    with caplog.at_level(logging.WARNING):
        plain.load_state_dict(trained.state_dict())
    assert "leaving out classification head 'old': the model has none of that name" in caplog.text
    assert set(plain.classification_heads) == {"new", "same"}
    assert torch.equal(plain.classification_heads["new"].out_proj.weight, kept)
    same = [model.classification_heads["same"].dense.weight for model in (plain, trained)]
    assert torch.equal(*same)

    other = build_mlm()
    other.register_classification_head("old", 2)
    other.load_state_dict(trained.state_dict())
    assert "'old': the model's has another shape" in caplog.text
    assert other.classification_heads["old"].out_proj.weight.shape == (2, 16)

    full = build_mlm(load_checkpoint_heads=True)
    full.load_state_dict(trained.state_dict())
    tokens = random_tokens(2, 9)
    for name in ("old", "same"):
        out = [model(tokens, classification_head_name=name)[0] for model in (full, trained)]
        assert torch.equal(*out)


def test_half_a_head_is_refused():
    trained = build_mlm()
    trained.register_classification_head("a", 3)
    state = trained.state_dict()
    del state["classification_heads.a.out_proj.weight"]
    with pytest.raises(
        RuntimeError, match=r"half of classification head 'a', no classification_heads\.a\.out_proj\.weight"
    ):
        build_mlm().load_state_dict(state)


def test_a_new_head_is_in_the_mode_of_its_model():
    model = build_mlm(pooler_dropout=0.5)
    model.register_classification_head("a", 2)
    tokens = random_tokens(2, 5)
    assert torch.equal(*(model(tokens, classification_head_name="a")[0] for _ in range(2)))


def test_checkpoints_of_another_dictionary_or_length_are_refused():
    with pytest.raises(
        RuntimeError, match=r"trained with 35 symbols, dict.txt of the data folder \(with <mask>\) has 25"
    ):
        build_mlm().load_state_dict(build_mlm(num_words=30).state_dict())
    with pytest.raises(RuntimeError, match="has positions for 64 tokens, the model for 512; pass --max-positions 64"):
        build_mlm().load_state_dict(build_mlm(max_positions=64).state_dict())


def test_the_model_can_be_pickled():
    model = build_mlm()
    model.register_classification_head("a", 2)
    tokens = random_tokens(1, 9)
    assert torch.equal(pickle.loads(pickle.dumps(model))(tokens)[0], model(tokens)[0])


# --- options


def test_presets():
    assert MLM_PRESETS["roberta_transnormer_t1"] == T1
    for arch, values in MLM_PRESETS.items():
        parser = options.get_training_parser()
        argv = ["data", "--task", "masked_lm", "--arch", arch, "--block-size", "5"]
        cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, argv)).model
        expected = vars(TransNormerMLMConfig()) | values | {"block_size": 5}
        found = {name: cfg[name] for name in expected if name != "_name"}
        assert found == {name: value for name, value in expected.items() if name != "_name"}
        assert arch in ARCH_CONFIG_REGISTRY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_attention_heads": 3}, "--encoder-attention-heads 3 does not divide --encoder-embed-dim 16"),
        ({"encoder_layers": 0}, "--encoder-layers 0 must be at least 1"),
        ({"max_positions": 0}, "--max-positions 0 must be at least 1"),
        ({"layer_split": "local"}, "--layer-split names 1 layers, --encoder-layers is 4"),
        ({"pooler_dropout": 1.0}, "--pooler-dropout 1.0 is not a probability"),
        ({"max_positions": 64}, "--max-positions 64 is too few for samples of up to 100 tokens"),
        ({"_name": "transnormer_mlm_tiny", "encoder_embed_dim": 768, "encoder_layers": 12}, None),
    ],
)
def test_options_are_refused_by_name(options, message):
    if message is None:  # as fairseq-hydra-train would give it: a preset's name and the defaults of the model
        config = mlm_config(**{**vars(TransNormerMLMConfig()), **options, "encoder_attention_heads": 12})
        message = "the preset transnormer_mlm_tiny is not known to fairseq-hydra-train; write _name: transnormer_mlm"
    else:
        config = mlm_config(**options)
    with pytest.raises(ValueError, match=f"transnormer_mlm: {message}"):
        TransNormerMLM.build_model(config, MLMTask(max_positions=100))


def test_samples_are_refused_with_the_reason():
    model = build_mlm(max_positions=8)
    with pytest.raises(ValueError, match="a sample of 9 tokens is longer than the 8 positions"):
        model(random_tokens(1, 9))
    with pytest.raises(ValueError, match="transnormer_mlm: padding before a token"):
        model(torch.tensor([[PAD, 5, 6]]))
    with pytest.raises(ValueError, match="empty batch"):
        model(torch.zeros(0, 3, dtype=torch.long))


# --- the hub interface


class Words:
    """A tokenisation in which each word is a symbol."""

    def encode(self, text):
        return text.strip()

    def decode(self, symbols):
        return symbols


@pytest.fixture
def hub(monkeypatch):
    model, task = build_mlm(dtype=torch.float32), MLMTask()
    del task.mask_idx  # as in the task of a fine-tuned model
    found = MaskedLMHub(SimpleNamespace(bpe=None), task, model)
    found.bpe = Words()
    return found


def test_hub_encodes_and_decodes(hub):
    assert hub.encode("word0 word3").tolist() == [0, 4, 7, 2]
    assert hub.encode("word0", "word1").tolist() == [0, 4, 2, 2, 5, 2]
    assert hub.encode("word0", "word1", no_separator=True).tolist() == [0, 4, 2, 5, 2]
    assert hub.decode(hub.encode("word0 word3")) == hub.decode([0, 4, 7, 2]) == "word0 word3"
    assert hub.decode(hub.encode("word0", "word1")) == ["word0", "word1"]


def test_hub_fills_the_mask(hub):
    filled = hub.fill_mask("word0 <mask> word2", topk=20)
    tokens = torch.tensor([[0, 4, hub.task.mask_idx, 6, 2]])
    expected = dict(enumerate(hub.model(tokens)[0][0, 2].softmax(0).tolist()))
    names = hub.task.source_dictionary
    assert {piece: p for _, p, piece in filled} == pytest.approx({names[i]: expected[i] for i in range(4, 24)})
    assert [p for _, p, _ in filled] == sorted((p for _, p, _ in filled), reverse=True)
    assert [text for text, _, _ in filled] == [f"word0 {piece} word2" for _, _, piece in filled]


def test_hub_never_fills_in_what_is_no_text(hub):
    hub.task.source_dictionary.symbols[10] = "madeupword0000"
    with torch.no_grad():
        hub.model.encoder.head.bias[10] = 50.0  # and the likeliest of all
    assert len(hub.fill_mask("word0<mask>", topk=19)) == 19
    with pytest.raises(ValueError, match="not between 1 and 19"):
        hub.fill_mask("word0<mask>", topk=20)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_hub_features_and_predictions(hub, pooling):
    tokens = hub.encode("word0 word3 word4")
    assert hub.extract_features(tokens).shape == (1, 5, 16)
    assert [h.shape for h in hub.extract_features(tokens, return_all_hiddens=True)] == 5 * [(1, 5, 16)]
    hub.model.head_options = HeadOptions(pooling=pooling)
    hub.register_classification_head("a", num_classes=3)
    batch = padded([tokens, hub.encode("word1")])
    both = hub.predict("a", batch)
    torch.testing.assert_close(both.exp().sum(-1), torch.ones(2))
    torch.testing.assert_close(both[1:], hub.predict("a", hub.encode("word1")))
    torch.testing.assert_close(hub.predict("a", batch, return_logits=True).log_softmax(-1), both)


def test_heads_of_others_see_the_features(hub):
    hub.model.classification_heads["theirs"] = head = RobertaClassificationHead(16, 16, 3, "tanh", 0.0)
    tokens = hub.encode("word0 word3")
    expected = head(hub.extract_features(tokens)).log_softmax(-1)
    torch.testing.assert_close(hub.predict("theirs", tokens), expected)


def test_hub_says_what_is_wrong(hub):
    for text in ("word0", "<mask> <mask>"):
        with pytest.raises(ValueError, match="exactly one <mask>"):
            hub.fill_mask(text)
    with pytest.raises(ValueError, match="topk 21 is not between 1 and 20"):
        hub.fill_mask("<mask>", topk=21)
    with pytest.raises(ValueError, match="no classification head 'a'"):
        hub.predict("a", torch.zeros(1, 600))  # nor does it fit, but that is not said before the head is there
    hub.register_classification_head("b", num_classes=3)
    for tokens, words in ((torch.zeros(0), "empty batch"), (torch.zeros(1, 2, 3), "not a tensor of shape")):
        with pytest.raises(ValueError, match=words):
            hub.predict("b", tokens)
    with pytest.raises(ValueError, match="tokens of one text"):
        hub.decode(torch.zeros(2, 3))
    hub.bpe = None
    with pytest.raises(ValueError, match="without a tokenisation"):
        hub.encode("word0")
