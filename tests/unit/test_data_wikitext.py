"""WikiText: archives, folders, and the published counts."""

import hashlib
import io
import zipfile

import pytest

from fairseq_transnorm.data import wikitext
from fairseq_transnorm.data.binarize import build
from fairseq_transnorm.data.fetch import FetchError
from fairseq_transnorm.data.published import differences
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here, serve, tiny_gpt2

WORDS = Tokenization("words")
TEXTS = {
    "train": " \n = Title = \n \n The <unk> @-@ cat , sat . \n",
    "valid": " \n The cat . \n",
    "test": " The <unk> dog . \n \n",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    preprocess_here(monkeypatch)


def archive(texts=TEXTS, top="wikitext-2/", end="tokens"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as handle:
        for split, text in texts.items():
            handle.writestr(zipfile.ZipInfo(f"{top}wiki.{split}.{end}"), text)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRSEQ_TRANSNORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_published_facts():
    for edition in wikitext.EDITIONS.values():
        # fairseq's language model README
        assert edition.counts["test"] == (4358, None if edition.raw else 245_569)
        assert len(edition.sha256) == 64
    assert wikitext.EDITIONS["wikitext-103"].symbols == 267_744


def test_download_build_and_counts(cache, tmp_path, monkeypatch):
    zipped = archive()
    sha256 = hashlib.sha256(zipped).hexdigest()
    edition = wikitext.Edition(
        ("http://127.0.0.1:9/no.zip",), sha256, {"train": (4, 14), "valid": (2, 5), "test": (2, 6)}
    )
    with serve({"w.zip": zipped}) as server:
        monkeypatch.setitem(wikitext.EDITIONS, "wikitext-2", edition)
        path = wikitext.fetch("wikitext-2", f"{server.url}/w.zip")
    assert path == cache / "wikitext-2-v1.zip"
    assert wikitext.fetch("wikitext-2") == path, "from the cache, without a server"
    warnings = []
    note = build(wikitext.corpus("wikitext-2", path, warnings.append), tmp_path / "data", WORDS)
    assert not warnings
    assert note["official"]
    assert note["pre_split"]
    assert note["splits"]["train"]["tokens"] == 14
    assert note["splits"]["train"]["unknown"] == 1, "<unk> in the text is fairseq's unknown symbol"
    symbols = {line.split()[0] for line in (tmp_path / "data" / "dict.txt").read_text().splitlines()}
    assert {"@-@", "=", "cat"} <= symbols
    assert "<unk>" not in symbols
    assert "dog" not in symbols


def test_raw_edition(tmp_path, monkeypatch):
    raw = {split: text.replace("<unk>", "Éire's") for split, text in TEXTS.items()}
    (tmp_path / "w.zip").write_bytes(archive(raw, "wikitext-2-raw/", "raw"))
    edition = wikitext.Edition((), "", {"train": (4, None), "valid": (2, None), "test": (3, None)}, raw=True)
    monkeypatch.setitem(wikitext.EDITIONS, "wikitext-2-raw", edition)
    warnings = []
    corpus = wikitext.corpus("wikitext-2-raw", tmp_path / "w.zip", warnings.append)
    files = tiny_gpt2(tmp_path / "gpt2", monkeypatch)
    note = build(corpus, tmp_path / "data", Tokenization("gpt2", gpt2_files=files))
    assert warnings == ["warning: this is not the official wikitext-2-raw: test has 2 lines instead of 3"]
    assert not note["pre_split"], "its punctuation stands as written"
    assert note["splits"]["train"]["lines"] == 4, "empty lines stay"
    assert note["splits"]["test"]["unknown"] == 0
    with pytest.raises(FileNotFoundError, match=r"w\.zip lacks wiki\.train\.tokens.*; it has: .*wiki\.train\.raw"):
        wikitext.corpus("wikitext-2", tmp_path / "w.zip", print)


def test_folder_gives_the_same_and_differences_are_told(tmp_path):
    for split, text in TEXTS.items():
        (tmp_path / f"wiki.{split}.tokens").write_text(text)
    (tmp_path / "w.zip").write_bytes(archive(top=""))
    warnings = []
    notes = [
        build(wikitext.corpus("wikitext-103", source, warnings.append), tmp_path / f"data{i}", WORDS)
        for i, source in enumerate([tmp_path, tmp_path / "w.zip"])
    ]
    assert notes[0] == notes[1]
    assert not notes[0]["official"]
    assert warnings[0] == (
        "warning: this is not the official wikitext-103: train has 4 lines instead of 1,801,350; "
        "valid has 2 lines instead of 3,760; test has 2 lines instead of 4,358"
    )


def test_counts_of_tokens_and_symbols_are_compared():
    published = ({"test": (2, 6)}, 16)
    facts = {"splits": {"test": {"lines": 2, "words": 5}}, "kind": "words", "vocab_size": 24}
    assert differences(*published, facts) == ["test has 7 tokens with </s> instead of 6"]
    facts["splits"]["test"]["words"] = 4
    assert differences(*published, facts) == ["the dictionary has 24 symbols instead of 16"]
    assert differences(*published, facts | {"kind": "sentencepiece"}) == []


def test_paragraphs(tmp_path, monkeypatch):
    """Headings and empty lines go, and count when the whole is compared with what is published."""
    for split, text in TEXTS.items():
        (tmp_path / f"wiki.{split}.tokens").write_text(text)
    counts = {"train": (4, 14), "valid": (2, 5), "test": (2, 7)}
    monkeypatch.setitem(wikitext.EDITIONS, "wikitext-2", wikitext.Edition((), "", counts, symbols=16))
    warnings = []
    corpus = wikitext.corpus("wikitext-2", tmp_path, warnings.append, paragraphs=True)
    assert list(corpus.lines("train")) == ["The <unk> @-@ cat , sat ."]
    note = build(corpus, tmp_path / "data", WORDS)
    assert warnings == ["warning: this is not the official wikitext-2: test has 6 tokens with </s> instead of 7"]
    assert note["paragraphs"]
    train = note["splits"]["train"]
    assert (train["lines"], train["words"], train["left_out_lines"], train["left_out_words"]) == (1, 7, 3, 3)
    assert "=" not in {line.split()[0] for line in (tmp_path / "data" / "dict.txt").read_text().splitlines()}


def test_missing_parts(tmp_path):
    (tmp_path / "wiki.train.tokens").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks wiki\.valid\.tokens, wiki\.test\.tokens; it has: wiki\.train"):
        wikitext.corpus("wikitext-2", tmp_path, print)
    (tmp_path / "w.zip").write_bytes(archive({"train": "a\n"}))
    with pytest.raises(FileNotFoundError, match=r"w\.zip lacks wiki\.valid\.tokens"):
        wikitext.corpus("wikitext-2", tmp_path / "w.zip", print)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        wikitext.corpus("wikitext-2", tmp_path / "none", print)


def test_broken_archives(tmp_path):
    whole = archive({split: f"{split} text {'x y z ' * 3000}\n" for split in TEXTS})
    path = tmp_path / "w.zip"
    path.write_bytes(whole[:-300])
    with pytest.raises(ValueError, match=r"w\.zip is not a whole zip archive; remove it and fetch it again"):
        wikitext.corpus("wikitext-2", path, print)
    spoilt = bytearray(whole)
    spoilt[60:70] = bytes(10)  # inside the first file's data
    path.write_bytes(spoilt)
    with pytest.raises(ValueError, match="not a whole zip archive"):
        build(wikitext.corpus("wikitext-2", path, print), tmp_path / "data", WORDS)
    assert [p.name for p in tmp_path.iterdir()] == ["w.zip"]


def test_another_file_never_passes_for_the_official_one(cache):
    with serve({"w.zip": archive()}) as server:
        with pytest.raises(FetchError, match="its SHA-256 is"):
            wikitext.fetch("wikitext-2", f"{server.url}/w.zip")
        other = wikitext.fetch("wikitext-2", f"{server.url}/w.zip", sha256="none")
    assert other.name != "wikitext-2-v1.zip"
    assert not (cache / "wikitext-2-v1.zip").exists()
