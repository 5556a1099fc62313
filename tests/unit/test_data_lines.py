"""Lines of text: white space, encodings, words, and the split of one file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.data.lines import chunks_of, deal, decode_lines, ranking, read_lines, split_words


def test_white_space_becomes_single_spaces_and_blank_lines_go(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff one\t two \r\n\n \u00a0\nthree\u2028four\x0cfive\x85\rsix".encode())
    assert list(read_lines(path)) == ["one two", "three four five six"]
    assert list(read_lines(path, keep_blank=True)) == ["one two", "", "", "three four five six"]


def test_bad_bytes_name_their_line():
    with pytest.raises(ValueError, match=r"f\.txt, line 2: not UTF-8 \(byte 0xe9 at byte 4 of the line\).*iconv"):
        list(decode_lines([b"ok\n", b"caf\xe9\n"], "f.txt"))
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        list(decode_lines(["text".encode("utf-16")], "f.txt"))
    with pytest.raises(ValueError, match="line 1: a NUL character"):
        list(decode_lines(["text".encode("utf-16-le")], "f.txt"))


def test_missing_file_lists_what_is_there(tmp_path):
    (tmp_path / "there.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.txt; beside it: there\.txt"):
        list(read_lines(tmp_path / "none.txt"))


def test_chunks_are_sentences_and_comments_go():
    lines = [
        "# first line",
        "of a comment",
        "",
        "",
        "one sentence",
        "of two lines",
        "",
        "another # here",
        "#",
        "",
        "last",
    ]
    assert list(chunks_of(lines)) == ["one sentence of two lines", "another # here #", "last"]


def test_words():
    assert split_words("'No, good-night--sir!' o' th' don't... x2") == (
        ["'", "No", ",", "good-night", "--", "sir", "!", "'", "o", "'", "th", "'", "don't", "...", "x2"]
    )


@given(st.text())
def test_words_lose_nothing_but_space(text):
    assert "".join(split_words(text)) == "".join(text.split())


def test_ranking_is_fixed_for_ever():
    # A change would move the plays between train and test.
    assert ranking("abcdefgh", seed=1) == list("gdhefabc")
    assert ranking("hgfedcba", seed=1) == ranking("abcdefgh", seed=1) != ranking("abcdefgh", seed=2)


@given(st.integers(30, 500), st.integers(1, 10), st.integers(0, 5))
def test_deal_covers_every_block_once(count, block, seed):
    dealt = deal(count, (80, 10, 10), block, seed) if count >= 10 * block else None
    if dealt is None:
        return
    blocks = -(-count // block)
    assert not dealt["valid"] & dealt["test"]
    assert len(dealt["valid"]) == len(dealt["test"]) == round(blocks / 10)
    assert dealt["valid"] | dealt["test"] <= set(range(blocks))


@pytest.mark.parametrize(
    ("count", "percent", "block", "message"),
    [
        (100, (80, 10, 5), 1, "--split 80,10,5: give three shares above 0, that sum to 100"),
        (100, (110, -5, -5), 1, "--split 110,-5,-5: give three shares above 0"),
        (100, (80, 20), 1, "--split 80,20: give three shares above 0"),
        (100, (80, float("nan"), 20), 1, "--split 80,nan,20: give three shares above 0"),
        (100, (90, 10, 0), 1, "--split 90,10,0: give three shares above 0"),
        (100, (80, 10, 10), 0, "at least 1"),
        (10, (90, 5, 5), 10, "10 lines in 1 blocks of 10: the valid split would be empty"),
        (100, (98.9, 1, 0.1), 1, "the test split would be empty"),
        (100, (0.1, 50, 49.9), 1, "the train split would be empty"),
    ],
)
def test_impossible_splits(count, percent, block, message):
    with pytest.raises(ValueError, match=message):
        deal(count, percent, block, seed=1)
