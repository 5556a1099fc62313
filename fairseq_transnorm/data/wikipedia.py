"""Articles, as JSON lines {"text": ..., "title": ...} or rows of Hugging Face's ``datasets``, cut into sentences.

Nothing but a few articles at a time is held in memory: the source is read once to count and once for each split.
"""

from __future__ import annotations

import bz2
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from . import sentences
from .bad_rows import BadRows, what_is_wrong_with
from .binarize import Corpus
from .lines import document_lines, share_out

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_PACKED = 4  # text is about so many times as large as its compressed file
_ARTICLE = 3000  # bytes of an article, about


@dataclass(frozen=True)
class Source:
    """Where articles come from.

    Attributes:
        name: for messages.
        rows: gives, from the start at each call, (place, line of JSON or row).
        size: bytes of text, roughly.
    """

    name: str
    rows: Callable[[], Iterator[tuple[str, bytes | Mapping[str, Any]]]]
    size: int


class Survey(BadRows):
    """Counts of a source: ``articles`` with text, ``empty`` ones, and bad rows by reason."""

    articles = empty = 0

    def good(self) -> int:
        return self.articles + self.empty


def from_files(paths: Sequence[Path]) -> Source:
    """Files of JSON lines, also compressed (.gz, .bz2), or folders of such files in the order of their paths.

    Raises:
        FileNotFoundError: no such file, or a folder without files; the text says what is there.
    """
    files = [file for path in paths for file in _files(path)]
    size = sum(path.stat().st_size * (_PACKED if path.suffix in _OPENERS else 1) for path in files)

    def rows() -> Iterator[tuple[str, bytes]]:
        for path in files:
            for number, raw in enumerate(_lines(path), start=1):
                if not raw.isspace():
                    yield f"{path}, line {number}", raw

    return Source(str(paths[0]) if len(paths) == 1 else f"{len(files)} files", rows, size)


def from_datasets(name: str, config: str) -> Source:
    """The train split of a data set of Hugging Face with a column ``text``; it is fetched when it is not in the cache.

    Raises:
        ImportError: ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError("--from-datasets needs datasets; pip install 'fairseq_transnorm[data]'") from None
    table = datasets.load_dataset(name, config, split="train")

    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        return ((f"row {number}", row) for number, row in enumerate(table))

    return Source(f"{name} {config}", rows, len(table) * _ARTICLE)


def corpus(
    source: Source,
    shares: Sequence[float],
    model: str,
    *,
    max_bad: float,
    workers: int,
    say: Callable[[str], None],
) -> Corpus:
    """Articles cut into sentences, split in their order: the first ones are train, the last ones test.

    Args:
        source: of the articles.
        shares: of train, valid and test.
        model: of sentences, one of :data:`sentences.MODELS`.
        max_bad: largest share of the rows that may be bad.
        workers: processes that split sentences; the result does not depend on it.
        say: gets a line of text at each step.

    Raises:
        ValueError: too many bad rows, or a split without articles.
    """
    say(f"counting the articles of {source.name}")
    survey = Survey(source.name)
    survey.articles = sum(1 for _ in tqdm(texts(source, survey), unit=" articles", disable=None, leave=False))
    if survey.bad:
        say(survey.describe())
    bad = survey.check(max_bad)
    splits = share_out(survey.articles, shares, "articles")
    if model == "trained":
        say("training Punkt on the train split")
    ready = sentences.model(model, islice(texts(source), len(splits["train"])))

    def lines(split: str) -> Iterator[str]:
        part = splits[split]
        own = islice(texts(source), part.start, part.stop)
        bar = tqdm(own, desc="articles", total=len(part), unit=" articles", disable=None, leave=False)
        size = source.size * len(part) // survey.articles
        return document_lines(filter(None, sentences.split_texts(ready, bar, workers, size)))

    about = {"split_shares": list(shares), "sentences": model, "empty": survey.empty, "bad": bad}
    return Corpus("wikipedia", lines, documents=True, keep_text=False, about=about)


def texts(source: Source, survey: Survey | None = None) -> Iterator[str]:
    """Texts of the articles that have any, in order; ``survey`` counts the other rows."""
    survey = survey or Survey(source.name)
    for place, row in source.rows():
        try:
            text = _text(row)
        except _BadRow as error:
            survey.reject(str(error), place)
            continue
        if text:
            yield text
        else:
            survey.empty += 1


class _BadRow(Exception):
    """Not an article; the text is the reason."""


def _text(row: bytes | Mapping[str, Any]) -> str:
    if isinstance(row, bytes):
        try:
            row = json.loads(row)
        except UnicodeDecodeError:
            raise _BadRow("not UTF-8") from None
        except (ValueError, RecursionError):
            raise _BadRow("not JSON") from None
    if not isinstance(row, Mapping):
        raise _BadRow("not a JSON object")
    if not isinstance(text := row.get("text"), str):
        raise _BadRow("no text")
    text = text.replace("\0", " ").strip()
    if wrong := what_is_wrong_with(text):
        raise _BadRow(wrong)
    return text


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        beside = sorted(p.name for p in path.parent.glob("*"))[:20] if path.parent.is_dir() else []
        raise FileNotFoundError(f"--source: no file or folder {path}; beside it: {', '.join(beside) or 'nothing'}")
    found = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"--source: {path} holds no file; files of JSON lines are needed, one article a line")
    return sorted(found)


def _lines(path: Path) -> Iterator[bytes]:
    opener = _OPENERS.get(path.suffix, open)
    handle: IO[bytes]
    with opener(path, "rb") as handle:
        if opener is open:
            yield from handle
            return
        try:
            yield from handle
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete {path.suffix} file ({error}); fetch it again") from None
