"""RACE's official layout: one object a line, four options a question, and bad questions are counted and refused."""

import json

import pytest

from fairseq_transnorm.data.classification import clean_for_bert
from fairseq_transnorm.data.race import TASK, Reader, locate, read_files, with_option
from tests.race_files import LEVELS, QUESTIONS, write_race

GOOD = {
    "article": "It  rained .\n It . . stopped .",
    "questions": ["Why did _ stop?", "When ?"],
    "options": [["it", "rain", "all of it", "no _"], ["now", "then", "never", "noon"]],
    "answers": ["A", "D"],
}


def read(*lines):
    reader = Reader("RACE train, high")
    for number, line in enumerate(lines, start=1):
        reader.add_line(f"7.txt, line {number}", line if isinstance(line, bytes) else json.dumps(line).encode())
    return reader


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one\n two\t\tthree ", "one two three"),
        ("one . two", "one. two"),
        ("one .", "one ."),
        (" . one", ". one"),
        ("no . . so .", "no.. so ."),
        ("a . . . . . b", "a. .. .. b"),
    ],
)
def test_cleaning_of_text(text, cleaned):
    assert clean_for_bert(text) == cleaned


def test_a_blank_takes_the_option_else_it_follows_the_question():
    assert with_option("Why _ did _?", "x") == "Why x did x?"
    assert with_option("Why?", "a _") == "Why? a _"


def test_an_article_becomes_its_questions():
    reader = read(GOOD)
    assert not reader.bad
    first, second = reader.rows
    article = "It rained. It.. stopped ."
    assert first.inputs == (
        article,
        "Why did it stop?",
        "Why did rain stop?",
        "Why did all of it stop?",
        "Why did no _ stop?",
    )
    assert second.inputs == (article, "When ? now", "When ? then", "When ? never", "When ? noon")
    assert (first.label, second.label) == ("A", "D")


BAD = {
    "question without 4 options": ({"options": [GOOD["options"][0][:3], GOOD["options"][1]]}, "question 1: 3 options"),
    "answer that is none of A, B, C, D": ({"answers": ["A", "E"]}, "question 2: 'E'"),
    "question or option that is no text": (
        {"options": [GOOD["options"][0], ["now", 2, "never", "noon"]]},
        "question 2",
    ),
    "empty article, question or option": ({"questions": ["Why?", " "]}, "question 2"),
    "half a surrogate pair": ({"questions": ["Why?", "a\ud800"]}, "question 2"),
    "NUL character": ({"options": [list("abcd"), ["\0a", "b", "c", "d"]]}, "question 2"),
}


@pytest.mark.parametrize(("reason", "change", "place"), [(reason, *rest) for reason, rest in BAD.items()])
def test_bad_questions_are_counted_by_reason_and_named(reason, change, place):
    reader = read(GOOD, GOOD | change)
    assert reader.bad == {reason: 1}
    assert len(reader.rows) == 3
    assert f"1 {reason} (first: 7.txt, line 2, {place})" in reader.describe()
    with pytest.raises(ValueError, match=r"RACE train, high: 1 bad rows \(25 %\).* more than --max-bad 0\.2 "):
        reader.finish(0.2)
    assert reader.finish(0.25).facts == {"bad": {reason: 1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"article": ', "1 bad JSON (first: 7.txt, line 2: Expecting value at character 13)"),
        (b"[" * 100_000, "1 bad JSON (first: 7.txt, line 2: maximum recursion depth exceeded"),
        (b'{"article": ' + b"1" * 5000 + b"}", "1 bad JSON (first: 7.txt, line 2: Exceeds the limit"),
        (b'{"article": "caf\xe9"}', "1 not UTF-8 (first: 7.txt, line 2)"),
        ([1], "no article with questions (first: 7.txt, line 2: a list instead of an object)"),
        ({"article": "a"}, "line 2: no questions, options, answers; it has article)"),
        (GOOD | {"article": 3}, "line 2: the article is no text)"),
        (GOOD | {"questions": "Why?"}, "line 2: questions, options or answers are no list)"),
        (GOOD | {"answers": ["A"]}, "line 2: 2 questions, 2 options, 1 answers)"),
    ],
)
def test_bad_lines_are_counted_and_named(line, reason):
    reader = read(GOOD, line)
    assert reason in reader.describe()
    assert (reader.bad.total(), len(reader.rows)) == (1, 2)


def test_an_empty_option_is_no_option():
    reader = read(GOOD | {"options": [GOOD["options"][0], ["now", "then", " \n", "noon"]]})
    assert (reader.bad, len(reader.rows)) == ({"empty article, question or option": 1}, 1)


def test_levels_are_splits_of_their_own_and_all_of_them_is_one(tmp_path):
    splits = dict(read_files(write_race(tmp_path)))
    assert list(splits) == ["train", "valid", "valid1", "valid2", "test", "test1", "test2"]
    for ours, theirs in (("valid", "dev"), ("test", "test")):
        for number, level in enumerate(LEVELS, start=1):
            assert len(splits[f"{ours}{number}"].rows) == QUESTIONS[theirs][level]
        assert splits[ours].rows == splits[f"{ours}1"].rows + splits[f"{ours}2"].rows
    assert len(splits["train"].rows) == 27
    assert {len(row.inputs) for row in splits["train"].rows} == {TASK.inputs}
    # a bad file of one level counts in all of dev, too
    (tmp_path / "RACE/dev/high/x.txt").write_text("\n{\n")
    splits = dict(read_files(tmp_path / "RACE"))
    assert {split: reader.bad.total() for split, reader in splits.items() if reader.bad} == {"valid": 1, "valid2": 1}
    assert "dev/high/x.txt, line 2: " in splits["valid"].describe()


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; it should be the folder of RACE"):
        locate(tmp_path / "gone")
    write_race(tmp_path)
    for path in (tmp_path / "RACE/dev/high").iterdir():
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"RACE lacks dev/high/\*\.txt; it has: dev/high, dev/middle, test/high"
    ):
        locate(tmp_path)
    (tmp_path / "RACE/dev/high/0.txt").touch()
    for level in LEVELS:
        for path in (tmp_path / "RACE/test" / level).iterdir():
            path.unlink()
    assert list(locate(tmp_path)) == ["train", "valid"], "the test set is not needed"
    (tmp_path / "RACE.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match="is a file; unpack it first"):
        locate(tmp_path / "RACE.tar.gz")
