"""Data folders: whole or absent, the same bytes every time, described by their note."""

import json
import re
import shutil
import subprocess

import numpy
import pytest
from fairseq.data import Dictionary, data_utils

from fairseq_transnorm.data import binarize
from fairseq_transnorm.data.binarize import Corpus, bpe_args, build, hub_args, read_note
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here
from tests.helpers import sentences

LINES = {"train": sentences(200, seed=1), "valid": sentences(20, seed=2), "test": [*sentences(20, seed=3), "zebra !"]}
WORDS = Tokenization("words")
CORPUS = Corpus("made up", LINES.__getitem__, about={"seed": 1}, files={"more.json": "[]\n"})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    preprocess_here(monkeypatch)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Made by the real subprocess."""
    out = tmp_path_factory.mktemp("built") / "data"
    build(CORPUS, out, Tokenization("sentencepiece", 70))
    return out


def test_folder_and_note(data):
    splits = {f"{split}.{end}" for split in LINES for end in ("bin", "idx")}
    texts = {f"text/{split}.txt" for split in LINES}
    assert set(contents(data)) == splits | texts | {
        "dict.txt",
        "sentencepiece.bpe.model",
        "tokenizer.json",
        "more.json",
    }
    assert [path.name for path in data.parent.iterdir()] == ["data"], "nothing is left beside it"
    note = read_note(data)
    assert note["kind"] == "sentencepiece"
    assert note["bpe_args"] == ["--bpe", "sentencepiece", "--sentencepiece-model", "sentencepiece.bpe.model"]
    assert (note["corpus"], note["seed"], note["version"]) == ("made up", 1, 1)
    assert re.fullmatch("[0-9a-f]{64}", note["corpus_sha256"])
    for split, lines in LINES.items():
        assert (data / "text" / f"{split}.txt").read_text() == "".join(line + "\n" for line in lines)
        facts = note["splits"][split]
        assert facts["lines"] == len(lines)
        assert facts["words"] == sum(len(line.split()) for line in lines)
        assert facts["characters"] == sum(map(len, lines))
    assert bpe_args(data)[-1] == hub_args(data)["sentencepiece_model"] == str(data / "sentencepiece.bpe.model")
    assert hub_args(data)["bpe"] == "sentencepiece"


def test_fairseq_reads_back_the_text(data):
    from fairseq_transnorm.data.tokenizers import load_bpe

    note, dictionary = read_note(data), Dictionary.load(str(data / "dict.txt"))
    assert len(dictionary) == note["vocab_size"] == 72  # 67 pieces + 4 symbols of fairseq, made up to a multiple of 8
    bpe = load_bpe("sentencepiece", data)
    for split, lines in LINES.items():
        dataset = data_utils.load_indexed_dataset(str(data / split), dictionary, "mmap")
        known = [bpe.decode(dictionary.string(dataset[i])) for i in range(len(dataset))]
        assert known[:20] == lines[:20]
        stream = numpy.concatenate([dataset[i].numpy() for i in range(len(dataset))])
        facts = note["splits"][split]
        assert facts["tokens"] == len(stream)
        assert facts["unknown"] == (stream == dictionary.unk()).sum() == {"test": 1}.get(split, 0)  # the z
        assert (stream == dictionary.eos()).sum() == facts["lines"]


@pytest.mark.parametrize("kind", ["words", "characters", "fastbpe"])
def test_other_kinds(kind, tmp_path):
    note = build(CORPUS, tmp_path / "data", Tokenization(kind, 120 if kind == "fastbpe" else None))
    assert note["vocab_size"] % 8 == 0
    assert note["splits"]["train"]["unknown"] == 0
    assert note["splits"]["test"]["unknown"] == {"words": 1, "characters": 1, "fastbpe": 1}[kind]


def test_word_vocabulary_can_be_cut(tmp_path):
    note = build(CORPUS, tmp_path / "data", Tokenization("words", 24))
    assert note["vocab_size"] == 24
    assert note["splits"]["train"]["unknown"] > 0
    with pytest.raises(ValueError, match=r"--vocab-size 5000 is too large .* has \d+ different words"):
        build(CORPUS, tmp_path / "more", Tokenization("words", 5000))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_same_bytes_from_a_second_run_and_any_number_of_workers(data, tmp_path, monkeypatch):
    monkeypatch.undo()  # a real process, which forks workers of its own
    monkeypatch.setattr(binarize, "_BYTES_PER_WORKER", 100)  # so that three are used
    build(CORPUS, tmp_path / "again", Tokenization("sentencepiece", 70), workers=3)
    assert contents(tmp_path / "again") == contents(data)


def test_many_workers_for_little_text(tmp_path):
    tiny = Corpus("tiny", {"train": ["a b c", "c d"], "valid": ["a"], "test": ["b"]}.__getitem__)
    note = build(tiny, tmp_path / "data", WORDS, workers=16)
    assert {split: facts["tokens"] for split, facts in note["splits"].items()} == {"train": 7, "valid": 2, "test": 2}


def test_existing_output(data, tmp_path):
    out = shutil.copytree(data, tmp_path / "data")
    (out / "mine").touch()
    with pytest.raises(FileExistsError, match=r"is there already; give another --out, or --overwrite"):
        build(CORPUS, out, WORDS)
    assert (out / "mine").exists()
    build(CORPUS, out, WORDS, overwrite=True)
    assert read_note(out)["kind"] == "words"
    assert not (out / "mine").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    build(CORPUS, foreign, WORDS)  # an empty folder is no output
    (foreign / "tokenizer.json").unlink()
    with pytest.raises(FileExistsError, match=r"has no tokenizer\.json, so it is not ours to replace"):
        build(CORPUS, foreign, WORDS, overwrite=True)
    assert (foreign / "dict.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "foreign"]


def test_failure_in_the_last_step_leaves_the_old_folder(data, tmp_path, monkeypatch):
    out = shutil.copytree(data, tmp_path / "data")
    before = contents(out)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 3, "", "no space left"))
    with pytest.raises(RuntimeError, match="fairseq-preprocess ended with status 3: no space left"):
        build(CORPUS, out, WORDS, overwrite=True)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_leftovers_of_a_killed_run(data, tmp_path):
    # Killed while it built, and earlier between the two renames that replace a folder.
    shutil.copytree(data, tmp_path / ".data.partial")
    (tmp_path / ".data.partial" / "tokens").mkdir()
    shutil.copytree(data, tmp_path / ".data.old")
    with pytest.raises(FileExistsError):  # the old folder is back
        build(CORPUS, tmp_path / "data", WORDS)
    assert contents(tmp_path / "data") == contents(data)
    build(CORPUS, tmp_path / "data", WORDS, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_empty_split(split, tmp_path):
    with pytest.raises(ValueError, match=f"the {split} split is empty"):
        build(Corpus("gap", lambda name: ["", ""] if name == split else LINES[name]), tmp_path / "data", WORDS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "word"}, "unknown tokenizer 'word'; known are words, characters"),
        ({"kind": "characters", "vocab_size": 50}, "does not go with the tokenizer characters"),
        ({"kind": "words", "vocab_size": 4}, "--vocab-size 4: at least 5"),
        ({"kind": "words", "coverage": 0}, "--character-coverage 0: above 0"),
        ({"kind": "words", "dictionary": "fairseq"}, "go with the tokenizer gpt2, not with words"),
        ({"kind": "gpt2", "dictionary": "fairseq", "vocab_size": 50}, "--vocab-size does not go with --dictionary"),
    ],
)
def test_options_are_checked_first(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(CORPUS, tmp_path / "data", Tokenization(**options))
    with pytest.raises(ValueError, match="--workers 0: at least 1"):
        build(CORPUS, tmp_path / "data", WORDS, workers=0)
    assert not any(tmp_path.iterdir())


def test_blank_lines_and_checks_of_the_corpus(tmp_path):
    seen = []
    lines = {"train": ["a b", "", "c"], "valid": ["a"], "test": ["b", ""]}
    corpus = Corpus("gaps", lines.__getitem__, pre_split=True, keep_text=False, check=seen.append)
    note = build(corpus, tmp_path / "data", WORDS)
    assert note["splits"]["train"] | {"sha256": ""} == (
        {"lines": 3, "words": 3, "characters": 4, "tokens": 6, "unknown": 0, "sha256": ""}
    )
    assert seen == [note]
    assert not (tmp_path / "data" / "text").exists()
    assert json.loads((tmp_path / "data" / "tokenizer.json").read_text()) == note


def test_documents(tmp_path):
    lines = {"train": ["a b", "c", "", "d", ""], "valid": ["a", ""], "test": ["b", ""]}
    note = build(Corpus("two", lines.__getitem__, documents=True), tmp_path / "data", WORDS)
    assert note["documents"] is True
    assert [note["splits"][split]["documents"] for split in lines] == [2, 1, 1]
    dictionary = Dictionary.load(str(tmp_path / "data" / "dict.txt"))
    dataset = data_utils.load_indexed_dataset(str(tmp_path / "data" / "train"), dictionary, "mmap")
    assert dataset.sizes.tolist() == [3, 2, 1, 2, 1], "a lone </s> after each document"


@pytest.mark.parametrize("symbol", ["<s>", "<pad>", "</s>", "<mask>"])
def test_documents_with_special_symbols_in_their_text_are_refused(symbol, tmp_path):
    lines = {"train": ["a b", "", f"c {symbol} d", ""], "valid": ["a", ""], "test": ["b", ""]}
    corpus = Corpus("special", lines.__getitem__, documents=True, pre_split=True)
    with pytest.raises(
        ValueError, match=rf"the train split, line 3 .*: {symbol} in the text would be read as the special"
    ):
        build(corpus, tmp_path / "data", WORDS)
    assert not any(tmp_path.iterdir())


def test_documents_may_have_unknown_words_and_cut_symbols(tmp_path):
    lines = {"train": ["a <unk> b", "", "c"], "valid": ["a", ""], "test": ["b", ""]}
    build(Corpus("unknown", lines.__getitem__, documents=True, pre_split=True), tmp_path / "data", WORDS)
    lines["train"] = ["a </s> b <mask>", ""]
    note = build(Corpus("cut", lines.__getitem__, documents=True), tmp_path / "cut", WORDS)
    assert note["splits"]["train"]["tokens"] == 9 + 2, "a < / s > b < mask >"


def test_note_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: .* was not made by the scripts in preprocessing/"):
        read_note(tmp_path)
