"""Sentences of files and of data folders as batches: what a model is given, in which order, and what is said of it."""

import json
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf

from fairseq_transnorm.data.folder import NOTE
from fairseq_transnorm.measure.batches import sentence_batches
from fairseq_transnorm.measure.efficiency import build_model
from fairseq_transnorm.measure.sentences_file import read_sentences

POSITIONS, BOS, PAD, EOS, UNK = 8, 0, 1, 2, 3


def make_run(folder, name="normgrowth_control", **task):
    """A run of an untrained model with the symbols ``w0`` to ``w15``."""
    dictionary = Dictionary()
    for i in range(16):
        dictionary.add_symbol(f"w{i}")
    options = {option: task.pop(option) for option in ("attn_mask", "attention_axis") if option in task}
    model = build_model(name, POSITIONS, dim=8, layers=1, heads=2, vocabulary=len(dictionary), **options)
    cfg = OmegaConf.create({"task": {"data": str(folder), **task}})
    return SimpleNamespace(path="x.pt", model=model, cfg=cfg, task=SimpleNamespace(source_dictionary=dictionary))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def w(*numbers):
    return [number + 4 for number in numbers]


def test_what_a_causal_model_reads(run):
    batches = sentence_batches(run, ["w1 w2", "w3"])
    assert batches.rows == [[EOS, *w(1, 2)], [EOS, *w(3)]]
    ((tokens, keep),) = batches
    assert tokens.tolist() == [[EOS, *w(3), PAD], [EOS, *w(1, 2)]], "the shortest first"
    assert keep.tolist() == [[True, True, False], [True, True, True]]
    assert batches.tokens == int(keep.sum()) == 5


def test_what_other_models_read(tmp_path):
    assert sentence_batches(make_run(tmp_path, add_bos_token=True), ["w1"]).rows == [[BOS, EOS, *w(1)]]
    masked = make_run(tmp_path, "transnormer_mlm_tiny")
    assert sentence_batches(masked, ["w1 w2"]).rows == [[BOS, *w(1, 2), EOS]]
    masked.model = SimpleNamespace(encoder=1, decoder=2)
    with pytest.raises(ValueError, match=r"x\.pt is neither a language model .* but a SimpleNamespace"):
        sentence_batches(masked, ["w1"])


@pytest.mark.parametrize("budget", [1, 7, 12, 10**6])
def test_batches_have_every_sentence_once_within_their_budget(run, budget):
    texts = [" ".join(f"w{(i + j) % 16}" for j in range(1 + 5 * i % 7)) for i in range(20)]
    batches = sentence_batches(run, texts, batch_tokens=budget)
    seen = []
    for tokens, keep in batches:
        assert tokens.numel() <= budget or len(tokens) == 1
        assert torch.equal(keep, tokens != PAD)
        seen += [row[kept].tolist() for row, kept in zip(tokens, keep, strict=True)]
    assert sorted(seen) == sorted(batches.rows)
    assert [len(row) for row in seen] == sorted(len(row) for row in seen)
    assert len(list(batches)) == len(list(batches)) == {1: 20, 10**6: 1}.get(budget, len(list(batches)))


def test_long_sentences_and_unknown_words_are_said(run, caplog, tmp_path):
    batches = sentence_batches(run, [" ".join(f"w{i}" for i in range(9)), "w1 what is"])
    assert (batches.cut, batches.unknown, batches.words) == (1, 2, 12)
    assert batches.rows == [[EOS, *w(*range(7))], [EOS, *w(1), UNK, UNK]]
    assert "1 of 2 sentences are longer than the 8 positions of x.pt and were cut" in caplog.text
    assert "16.7% of the 12 words are unknown to the dictionary of x.pt" in caplog.text
    masked = sentence_batches(make_run(tmp_path, "transnormer_mlm_tiny"), [" ".join(f"w{i}" for i in range(9))])
    assert masked.rows == [[BOS, *w(*range(6)), EOS]], "the end stays"
    caplog.clear()
    sentence_batches(run, ["w1 " * 6] * 10 + ["unknown"])
    assert not caplog.records, "a word in sixty"


def test_models_that_attend_to_padding_get_none(tmp_path, caplog):
    texts = ["w1 w2", "w3", "w4 w5", "w6 w7 w8"]
    leaky = sentence_batches(make_run(tmp_path, attn_mask="multiplicative"), texts)
    assert [tokens.shape for tokens, _ in leaky] == [(1, 2), (2, 3), (1, 4)]
    assert not caplog.records
    across = sentence_batches(make_run(tmp_path, attention_axis="batch"), texts)
    assert all(keep.all() for _, keep in across)
    assert "x.pt attends over the batch: its numbers depend on which sentences share one" in caplog.text


def test_text_is_cut_as_the_data_folder_says(run, tmp_path):
    assert sentence_batches(run, ["w1, w2"]).rows == [[EOS, UNK, *w(2)]]
    (tmp_path / NOTE).write_text(json.dumps({"kind": "words", "pre_split": False}))
    assert sentence_batches(run, ["w1, w2"]).rows == [[EOS, *w(1), UNK, *w(2)]]
    (tmp_path / NOTE).write_text(json.dumps({"kind": "words", "pre_split": True}))
    assert sentence_batches(run, ["w1, w2"]).rows == [[EOS, UNK, *w(2)]]


def test_limits(run):
    assert len(sentence_batches(run, ["w1"] * 5, limit=3).rows) == 3
    with pytest.raises(ValueError, match=r"no sentences to read for x\.pt"):
        sentence_batches(run, [])
    for options in ({"limit": 0}, {"batch_tokens": 0}):
        with pytest.raises(ValueError, match="both must be at least 1"):
            sentence_batches(run, ["w1"], **options)


def test_a_file_of_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n  The  first .\n# two\nthree\n\n\n")
    assert read_sentences(path) == ["The first .", "# two", "three"]
    assert read_sentences(path, limit=2) == ["The first .", "# two"]


def test_a_file_like_the_brown_corpus(tmp_path):
    path = tmp_path / "brown.txt"
    path.write_text("# a comment\nof two lines\n\nThe first\n  goes on .\n\n\nThe second .\n\n#another\n\nThird\n")
    assert read_sentences(path) == ["The first goes on .", "The second .", "Third"]
    assert read_sentences(path, limit=1) == ["The first goes on ."]


@pytest.mark.parametrize(
    ("kind", "text", "limit", "message"),
    [
        (ValueError, "", None, "holds no sentences"),
        (ValueError, "# a\n\n# b\n", None, "holds no sentences"),
        (ValueError, "a\n", 0, "asked for 0 sentences"),
        (FileNotFoundError, None, None, r"no file .*text\.txt; beside it: nothing"),
    ],
)
def test_files_without_sentences(tmp_path, kind, text, limit, message):
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
    with pytest.raises(kind, match=message):
        read_sentences(tmp_path / "text.txt", limit)
