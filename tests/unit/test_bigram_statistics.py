"""Counts of a text's characters and pairs, and the file of them."""

import hashlib
import json
import logging

import numpy as np
import pytest

from fairseq_transnorm.data.bigram_statistics import (
    count_bigrams,
    count_file,
    read_statistics,
    write_statistics,
)

GOOD = {"vocab": [".", "a", "b"], "unigram": [1, 2, 2], "bigram": [[1, 2, 2], [2, 0, 1], [2, 1, 1]], "total": 5}
GOOD |= {"source_sha256": hashlib.sha256(b"abab.").hexdigest()}


def test_counts_by_hand(tmp_path):
    write_statistics(count_bigrams("abab."), tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == GOOD
    statistics = read_statistics(tmp_path / "s.json")
    assert statistics.vocab == (".", "a", "b")
    assert statistics.unigram.tolist() == [0.2, 0.4, 0.4]
    assert statistics.bigram[1:].tolist() == [[0, 0, 1], [0.5, 0.5, 0]]
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"], "nothing unfinished is left"


def test_symbols_are_sorted_by_code_point():
    statistics = count_bigrams("zeé\n😀 Z")
    assert statistics.vocab == ("\n", " ", "Z", "e", "z", "é", "😀")
    assert statistics.bigram_counts[4].tolist() == [0, 0, 0, 1, 0, 0, 0], "e follows z"
    assert statistics.bigram_counts.sum() == statistics.total - 1 == 6


def test_what_nothing_follows_is_followed_by_anything_with_one_warning(caplog):
    statistics = count_bigrams("aabc")
    with caplog.at_level(logging.WARNING):
        assert statistics.bigram[2].tolist() == statistics.unigram.tolist() == [0.5, 0.25, 0.25]
        assert np.allclose(statistics.bigram.sum(1), 1)
    (record,) = caplog.records
    assert record.getMessage() == "nothing follows 'c' in the text: what comes after is drawn as any symbol of it"


@pytest.mark.parametrize("text", ["x", "xxxx"])
def test_one_character(text):
    statistics = count_bigrams(text)
    assert (statistics.vocab, statistics.unigram.tolist(), statistics.bigram.tolist()) == (("x",), [1], [[1]])


def test_files_are_read_as_they_are(tmp_path):
    text = "a\r\nb\rc\n\n \ufeffb"
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    statistics = count_file(path)
    assert statistics.vocab == ("\n", "\r", " ", "a", "b", "c", "\ufeff")
    assert statistics.total == len(text)
    assert statistics.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    write_statistics(statistics, tmp_path / "s.json")
    again = read_statistics(tmp_path / "s.json")
    assert (again.vocab, again.source_sha256, again.sha256) == (
        statistics.vocab,
        statistics.source_sha256,
        statistics.sha256,
    )
    assert count_bigrams(text[::-1]).sha256 != statistics.sha256, "the pairs are others"


def test_bad_texts(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=r"/empty is empty: there is nothing to count; give a text"):
        count_file(tmp_path / "empty")
    (tmp_path / "latin").write_bytes("naïve".encode("latin1"))
    with pytest.raises(ValueError, match=r"/latin: not UTF-8 \(byte 0xef at byte 3\); convert .* iconv"):
        count_file(tmp_path / "latin")
    with pytest.raises(FileNotFoundError, match=r"/none is not there; in .* there are: \['empty', 'latin'\]"):
        count_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r" is a folder, not a file"):
        count_file(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": []}, "vocab must be a list of strings"),
        ({"vocab": [".", "a", ""]}, "vocab must be a list of strings, .* none of them empty"),
        ({"vocab": [".", "a", 3]}, "vocab must be a list of strings"),
        ({"vocab": [".", "a", "a"]}, "vocab has 'a' twice"),
        ({"unigram": [1, 2]}, "unigram must be one count for each symbol"),
        ({"unigram": [1, 2, 2.5]}, "unigram must be .* whole numbers"),
        ({"unigram": [1, -2, 6]}, "unigram has the negative number -2"),
        ({"bigram": [[1, 2, 2], [2, 0]]}, r"bigram must be rows \[i, j, count\]"),
        ({"bigram": {"a": 1}}, r"bigram must be rows"),
        ({"bigram": [[1, 3, 2]]}, r"the row \[1, 3, 2\] of bigram names a symbol that is not there: vocab has 3"),
        ({"bigram": [[-1, 2, 2]]}, "bigram has the negative number -1"),
        ({"bigram": [[1, 2, -2]]}, "bigram has the negative number -2"),
        ({"bigram": [[1, 2, 2], [1, 2, 3]]}, "bigram has two rows for one pair"),
        ({"total": 6}, "total 6 is not the sum of unigram, 5"),
        ({"total": "5"}, "total '5' is not"),
    ],
)
def test_bad_files(tmp_path, change, message):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=rf"s\.json: {message}.*; make the file again with preprocessing/"):
        read_statistics(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(GOOD)[:60], "is not JSON"),
        ("\0\0", "is not JSON"),
        ("[1]", "has no .'vocab'"),
        ('{"vocab": ["a"], "unigram": [1], "total": 1}', r"has no \['bigram', 'source_sha256'\]"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "s.json")


def test_symbols_that_do_not_occur_may_stand_in_a_file_made_by_hand(tmp_path):
    made = {"vocab": ["to", "be"], "unigram": [3, 0], "bigram": [], "total": 3, "source_sha256": ""}
    (tmp_path / "s.json").write_text(json.dumps(made))
    assert read_statistics(tmp_path / "s.json").bigram.tolist() == [[1, 0], [1, 0]]
