"""RACE (Lai et al. 2017, arXiv 1704.04683): reading comprehension from school examinations, four options a question.

The official layout is ``train``, ``dev`` and ``test``, each with ``middle`` and ``high``, of ``*.txt`` files. A line of
a file is one JSON object: ``article``, ``questions``, ``options`` (four texts a question) and ``answers`` (a letter a
question). Questions that cannot be used are counted by reason, never repaired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import classification
from .bad_rows import what_is_wrong_with
from .classification import Example, Task, clean_for_bert

ANSWERS = ("A", "B", "C", "D")
LEVELS = ("middle", "high")
SPLITS = {"train": "train", "valid": "dev", "test": "test"}  # ours: theirs
TASK = Task("RACE", 1 + len(ANSWERS), ANSWERS, layout="choices")
_KEYS = ("article", "questions", "options", "answers")


class Reader(classification.Reader):
    """Turns lines of RACE into examples: the article, then the question with each of its options."""

    def add_line(self, place: str, line: bytes) -> None:
        """Take the questions of one article; a line that is no such object counts as one bad row."""
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            self.reject("not UTF-8", place)
            return
        except json.JSONDecodeError as error:
            self.reject("bad JSON", f"{place}: {error.msg} at character {error.pos + 1}")
            return
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            self.reject("bad JSON", f"{place}: {str(error)[:100]}")
            return
        if wrong := _what_is_wrong(entry):
            self.reject("line that is no article with questions", f"{place}: {wrong}")
            return
        article = clean_for_bert(entry["article"])
        rows = zip(entry["questions"], entry["options"], entry["answers"], strict=True)
        for number, (question, options, answer) in enumerate(rows, start=1):
            self._add(f"{place}, question {number}", article, question, options, answer)

    def _add(self, place: str, article: str, question: Any, options: Any, answer: Any) -> None:
        if not isinstance(question, str) or not isinstance(options, list) or not all(map(_is_text, options)):
            self.reject("question or option that is no text", place)
        elif len(options) != len(ANSWERS):
            self.reject(f"question without {len(ANSWERS)} options", f"{place}: {len(options)} options")
        elif answer not in ANSWERS:
            self.reject(f"answer that is none of {', '.join(ANSWERS)}", f"{place}: {answer!r}")
        elif wrong := what_is_wrong_with("".join([article, question, *options])):
            self.reject(wrong, place)
        elif not all(map(clean_for_bert, (article, question, *options))):
            self.reject("empty article, question or option", place)
        else:
            parts = (article, *(clean_for_bert(with_option(question, option)) for option in options))
            self.rows.append(Example(parts, answer))


def with_option(question: str, option: str) -> str:
    """Put the option into the blanks ``_`` of the question, or after a question without any."""
    return question.replace("_", option) if "_" in question else f"{question} {option}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _what_is_wrong(entry: Any) -> str:
    """Say why a line is no article with its questions; an empty text when it is one."""
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__} instead of an object"
    if missing := [key for key in _KEYS if key not in entry]:
        return f"no {', '.join(missing)}; it has {', '.join(entry) or 'nothing'}"
    if not isinstance(entry["article"], str):
        return "the article is no text"
    if not all(isinstance(entry[key], list) for key in _KEYS[1:]):
        return "questions, options or answers are no list"
    counts = {key: len(entry[key]) for key in _KEYS[1:]}
    return "" if len(set(counts.values())) == 1 else f"{', '.join(f'{n} {key}' for key, n in counts.items())}"


def locate(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Return split -> level -> files of a folder that holds ``RACE/`` or is it; the test set may be missing.

    Raises:
        FileNotFoundError: no folder, or no files of a level of train or dev; the text lists what is there.
    """
    if not source.is_dir():
        what = "is a file; unpack it first" if source.is_file() else "is not there"
        raise FileNotFoundError(
            f"--source {source} {what}; it should be the folder of RACE, with train/, dev/ and test/"
        )
    folder = source / "RACE" if (source / "RACE").is_dir() else source
    found = {}
    for split, name in SPLITS.items():
        levels = {level: sorted((folder / name / level).glob("*.txt")) for level in LEVELS}
        missing = [f"{name}/{level}/*.txt" for level, files in levels.items() if not files]
        if missing and (split != "test" or len(missing) < len(LEVELS)):
            there = ", ".join(sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))[:20]) or "nothing"
            raise FileNotFoundError(f"RACE: {folder} lacks {', '.join(missing)}; it has: {there}")
        if not missing:
            found[split] = levels
    return found


def read_files(source: Path) -> Iterator[tuple[str, Reader]]:
    """Read ``train``; and of ``valid`` and, where it is there, ``test``: all, as ``valid1`` middle, as ``valid2`` high.

    Raises:
        FileNotFoundError: as :func:`locate` does.
    """
    for split, levels in locate(source).items():
        readers = {level: _read_level(split, level, files) for level, files in levels.items()}
        whole = Reader(f"RACE {split}, {source}")
        for reader in readers.values():
            whole.take(reader)
        yield split, whole
        if split != "train":
            yield from ((f"{split}{number}", readers[level]) for number, level in enumerate(LEVELS, start=1))


def _read_level(split: str, level: str, files: list[Path]) -> Reader:
    reader = Reader(f"RACE {split}, {level}")
    for path in tqdm(files, desc=reader.name, unit=" files", disable=None, leave=False):
        with open(path, "rb") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    reader.add_line(f"{path}, line {number}", line)
    return reader
