"""Articles from files of JSON lines and from rows: what is read, what counts as bad, and where the splits are cut."""

import bz2
import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from fairseq_transnorm.data import wikipedia
from fairseq_transnorm.data.lines import document_lines, documents_of, share_out


def line(number):
    """A line as wikiextractor writes it."""
    article = {"id": str(number), "url": "u", "title": f"T{number}", "text": f"Title\n\nText {number}? And\nmore!"}
    return json.dumps(article) + "\n"


def files(folder, lines):
    """A folder as wikiextractor leaves it, some of it compressed."""
    for name, part in (("AA/wiki_00", lines[:3]), ("AA/wiki_01.gz", lines[3:5]), ("AB/wiki_00.bz2", lines[5:])):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
        with opener(path, "wb") as handle:
            handle.writelines(text.encode() for text in part)
    (folder / ".hidden").write_text("no article")
    return folder


def made(source, shares=(8, 1, 1), max_bad=0.01, workers=1):
    return wikipedia.corpus(source, shares, "trained", max_bad=max_bad, workers=workers, say=lambda text: None)


def test_articles_are_split_in_their_order(tmp_path):
    source = wikipedia.from_files([files(tmp_path, [line(n) for n in range(10)])])
    corpus = made(source)
    assert (corpus.name, corpus.documents, corpus.keep_text) == ("wikipedia", True, False)
    assert corpus.about == {"split_shares": [8, 1, 1], "sentences": "trained", "empty": 0, "bad": {}}
    got = {split: list(corpus.lines(split)) for split in ("train", "valid", "test")}
    # The title is in the text already; line breaks do not end a sentence.
    assert got["valid"] == ["Title Text 8?", "And more!", ""]
    assert got["test"] == ["Title Text 9?", "And more!", ""]
    assert got["train"][::3] == [f"Title Text {n}?" for n in range(8)]
    assert list(corpus.lines("test")) == got["test"], "each call reads anew"


def test_bad_and_empty_rows(tmp_path):
    lines = [line(n) for n in range(10)]
    lines[2] += "\n" + '{"text": 3}\n' + "[1]\n" + '{"text": "cut off\n'
    lines[6] += '{"text": " \\n ", "title": "redirect"}\n' + '{"text": "\\ud800"}\n' + '{"title": "none"}\n'
    source = wikipedia.from_files([files(tmp_path, lines)])
    with pytest.raises(ValueError) as error:
        made(source)
    message = str(error.value)
    assert f"{tmp_path}: 5 bad rows (31.2 %): 2 no text (first: {tmp_path}/AA/wiki_00, line 5)" in message
    assert f"1 not JSON (first: {tmp_path}/AA/wiki_00, line 7)" in message
    assert "1 half a surrogate pair" in message
    assert "more than --max-bad 0.01 of the rows" in message
    corpus = made(source, max_bad=0.5)
    assert corpus.about["empty"] == 1
    assert corpus.about["bad"] == {"half a surrogate pair": 1, "no text": 2, "not JSON": 1, "not a JSON object": 1}
    assert len(list(corpus.lines("train"))) == 8 * 3
    (tmp_path / "latin").write_bytes('{"text": "café"}\n'.encode("latin-1"))
    (tmp_path / "nul").write_text('{"text": "a\\u0000b"}\n')
    assert list(wikipedia.texts(wikipedia.from_files([tmp_path / "nul"]))) == ["a b"], "no text file has that"
    with pytest.raises(ValueError, match="1 not UTF-8"):
        made(wikipedia.from_files([tmp_path / "latin"]))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--source: no file or folder .*none; beside it: nothing"):
        wikipedia.from_files([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="holds no file"):
        wikipedia.from_files([tmp_path])
    packed = gzip.compress(line(0).encode() * 500)
    for broken in (packed[: len(packed) // 2], b"no gzip"):
        (tmp_path / "a.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.gz is not a complete \.gz file .*; fetch it again"):
            made(wikipedia.from_files([tmp_path / "a.gz"]))


def test_too_few_articles(tmp_path):
    source = wikipedia.from_files([files(tmp_path, [line(n) for n in range(10)])])
    with pytest.raises(ValueError, match=r"10 articles: the valid split would be empty; .* \(--split\)"):
        made(source, (980, 10, 10))


def test_rows_of_datasets(monkeypatch):
    def load_dataset(name, config, split):
        assert (name, config, split) == ("wikimedia/wikipedia", "20231101.en", "train")
        return [{"id": "1", "url": "u", "title": "T", "text": f"Text {n}."} for n in range(10)] + [{"text": None}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = wikipedia.from_datasets("wikimedia/wikipedia", "20231101.en")
    with pytest.raises(ValueError, match=r"wikimedia/wikipedia 20231101\.en: 1 bad rows .*no text \(first: row 10\)"):
        made(source)
    assert list(made(source, max_bad=0.2).lines("test")) == ["Text 9.", ""]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"--from-datasets needs datasets; pip install 'fairseq_transnorm\[data\]'"):
        wikipedia.from_datasets("a", "b")


def test_documents_of_lines_and_back():
    lines = ["", "a", "b", "", "", "c", ""]
    assert list(documents_of(lines)) == [["a", "b"], ["c"]]
    assert list(documents_of(["a"])) == [["a"]], "the last one needs no empty line"
    assert list(document_lines(documents_of(lines))) == ["a", "b", "", "c", ""]


@pytest.mark.parametrize(
    ("count", "shares", "sizes"),
    [
        (6_407_814, (980, 10, 10), (6_279_658, 64_078, 64_078)),
        (1000, (949, 50, 1), (949, 50, 1)),
        (7, (1, 1, 1), (3, 2, 2)),
    ],
)
def test_shares_are_rounded(count, shares, sizes):
    parts = share_out(count, shares, "things")
    assert tuple(map(len, parts.values())) == sizes
    assert [part.start for part in parts.values()] + [count] == [0, *(part.stop for part in parts.values())]


@pytest.mark.parametrize("shares", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, float("nan")), (1, 1, float("inf"))])
def test_impossible_shares(shares):
    with pytest.raises(ValueError, match="give three shares above 0, such as 980,10,10"):
        share_out(100, shares, "things")
