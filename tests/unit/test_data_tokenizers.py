"""Tokenisers: fairseq's own classes undo them, and fastBPE applies what subword-nmt learnt."""

import argparse
import importlib.util
import io
import sys

import pytest

from fairseq_transnorm.data import options, tokenizers
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.helpers import sentences

# Apostrophes, double dashes, accents, another script, an @@ of its own, a one-letter word.
ODD = ["'Tis done--o' course; don't!", "Café naïve Ærø", "жить не тужить 東京", "mail a@@ b", "I", "x" * 60]
LINES = [*sentences(400, seed=5), *ODD]
SIZES = {"words": None, "characters": None, "sentencepiece": 105, "fastbpe": 220, "wordpiece": 180}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers") / "train.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folders(text):
    """Kind -> folder with its model."""
    folders = {kind: text.parent / kind for kind in SIZES}
    for kind, folder in folders.items():
        folder.mkdir()
        tokenizers.train(Tokenization(kind, SIZES[kind]), text, folder)
    return folders


@pytest.mark.parametrize("kind", ["characters", "sentencepiece", "fastbpe"])
def test_fairseq_decodes_what_it_encodes(kind, folders):
    bpe = tokenizers.load_bpe(kind, folders[kind])
    encode = tokenizers.load(kind, folders[kind])
    for line in LINES:
        symbols = encode(line)
        assert symbols == bpe.encode(line), "what is binarised is what fairseq-interactive makes of it"
        if "@@ " not in line:  # fastBPE's own mark
            assert bpe.decode(symbols) == line
    assert encode("") == ""


def test_characters_are_those_of_fairseq(folders):
    """fairseq's own class, which its commands cannot build, makes the same symbols."""
    from fairseq.data.encoders.characters import Characters

    encode = tokenizers.load("characters", folders["characters"])
    assert encode("a cd") == "a ▁ c d"
    for line in LINES:
        assert encode(line) == Characters.encode(line)


def test_words_split_off_punctuation_unless_done(folders):
    assert tokenizers.load("words", folders["words"])("No, good-night--sir!") == "No , good-night -- sir !"
    assert tokenizers.load("words", folders["words"], pre_split=True)("No,  as is @-@ !") == "No,  as is @-@ !"


def test_wordpiece_decodes_words(folders):
    """Capitals, accents and the spaces around punctuation are gone; encoding again changes nothing more."""
    bpe = tokenizers.load_bpe("wordpiece", folders["wordpiece"])
    encode = tokenizers.load("wordpiece", folders["wordpiece"])
    assert bpe.decode(encode(ODD[0])) == "' tis done - - o ' course ; don ' t !"
    assert bpe.decode(encode(ODD[1])) == "cafe naive ærø"
    for line in LINES:
        symbols = encode(line)
        assert symbols == bpe.encode(line)
        assert encode(bpe.decode(symbols)) == symbols
        words = line.lower().split()
        if line not in ODD:
            assert bpe.decode(symbols).split() == words
    assert encode("") == ""


@pytest.mark.parametrize("kind", ["sentencepiece", "fastbpe", "wordpiece"])
def test_symbols_cover_the_train_split_and_count_as_asked(kind, text, folders):
    known = tokenizers.symbols(kind, folders[kind], text)
    assert known is not None
    encode = tokenizers.load(kind, folders[kind])
    assert {symbol for line in LINES for symbol in encode(line).split()} <= set(known)
    # sentencepiece counts three of its own; two BPE merges may make the same symbol
    assert len(known) == len(set(known))
    assert SIZES[kind] - 6 <= len(known) <= SIZES[kind]
    # New words of known letters are covered as well.
    assert set(encode("rotavator humble dew!").split()) <= set(known)


def test_fastbpe_segments_as_subword_nmt(text, folders):
    from subword_nmt.apply_bpe import BPE

    codes = (folders["fastbpe"] / "bpecodes").read_text().splitlines()
    assert all(line.count(" ") == 2 for line in codes)
    reference = BPE(io.StringIO("#version: 0.2\n" + "".join(line.rpartition(" ")[0] + "\n" for line in codes)))
    encode = tokenizers.load("fastbpe", folders["fastbpe"])
    for line in [*LINES, *sentences(50, seed=6)]:
        assert encode(line) == reference.process_line(line)
    assert len(encode(LINES[0]).split()) < len(LINES[0].replace(" ", "")), "merges are used"


@pytest.mark.parametrize("kind", ["characters", "sentencepiece", "fastbpe", "wordpiece"])
def test_training_twice_gives_the_same_bytes(kind, text, folders, tmp_path):
    tokenizers.train(Tokenization(kind, SIZES[kind]), text, tmp_path)
    (name,) = tokenizers.MODEL_FILES[kind]
    assert (tmp_path / name).read_bytes() == (folders[kind] / name).read_bytes()
    assert str(folders).encode() not in (folders[kind] / name).read_bytes()


def test_long_lines_are_trained_on(tmp_path):
    (tmp_path / "t").write_text("ab " * 5000 + "\n" + "cd " * 5000 + "\n")
    # With its own limit of 4,192 bytes sentencepiece would find no text at all.
    tokenizers.train(Tokenization("sentencepiece", 10), tmp_path / "t", tmp_path)
    assert "▁ab" in tokenizers.load("sentencepiece", tmp_path)("ab cd").split()


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("sentencepiece", 100_000, r"--vocab-size 100000 is too large for this corpus, which has at most \d+ pieces"),
        ("sentencepiece", 20, r"--vocab-size 20 is too small: the corpus needs \d+ for its single characters"),
        ("fastbpe", 100_000, r"--vocab-size 100000 is too large for this corpus: it has \d+ symbols"),
        ("fastbpe", 20, r"--vocab-size 20 is too small: single characters alone make \d+ symbols"),
        ("wordpiece", 100_000, r"--vocab-size 100000 is too large for this corpus: it has \d+ pieces"),
        ("wordpiece", 20, r"--vocab-size 20 is too small: BERT's special symbols and single characters alone make \d+"),
    ],
)
def test_vocabulary_that_does_not_fit(kind, size, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        tokenizers.train(Tokenization(kind, size), text, tmp_path)
    assert not any(tmp_path.iterdir())


def test_one_letter_words_have_nothing_to_merge(tmp_path):
    (tmp_path / "t").write_text("a b a b\n")
    with pytest.raises(ValueError, match="too large"):
        tokenizers.train(Tokenization("fastbpe", 100), tmp_path / "t", tmp_path)


def test_missing_package_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastBPE" else real(name))
    with pytest.raises(ImportError, match=r"fastbpe needs fastBPE, .* pip install 'fairseq_transnorm\[text\]'"):
        tokenizers.check_packages("fastbpe")
    tokenizers.check_packages("characters")


def test_missing_model_does_not_end_the_process(tmp_path):
    with pytest.raises(FileNotFoundError, match="bpecodes"):
        tokenizers.load("fastbpe", tmp_path)  # fastBPE itself calls exit()


@pytest.mark.parametrize(
    "more",
    [["--tokenizer", "words"], ["--vocab-size", "9"], ["--dictionary", "fairseq"], ["--gpt2-files", "."], ["--cased"]],
)
def test_like_excludes_the_options_of_a_tokenizer(more, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, "words")
    monkeypatch.setattr(sys, "argv", ["text.py", "--out", "o", "--like", "data", *more])
    with pytest.raises(SystemExit):
        options.parse(parser, lambda args: "words")
    assert f"--like takes the tokenizer of that folder, so leave {more[0]} out" in capsys.readouterr().err
