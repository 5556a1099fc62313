"""WikiText-2 and WikiText-103 (Merity et al. 2016, arXiv 1609.07843): the word-level editions and the raw ones."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .binarize import Corpus
from .fetch import cache_dir, download
from .lines import SPLITS, decode_lines, folder_lines
from .published import mark_official


@dataclass(frozen=True)
class Edition:
    """An official archive.

    Attributes:
        urls: addresses that hold the same bytes.
        sha256: of the archive.
        counts: split -> (lines, tokens with </s>), the latter None where no number is published.
        symbols: in the dictionary of words.
        raw: text as written, without tokenisation and <unk>; the files end in ``.raw`` instead of ``.tokens``.
    """

    urls: tuple[str, ...]
    sha256: str
    counts: dict[str, tuple[int, int | None]]
    symbols: int | None = None
    raw: bool = False

    def file(self, split: str) -> str:
        """Name of the file of a split."""
        return f"wiki.{split}.{'raw' if self.raw else 'tokens'}"


_HELD_OUT: dict[str, tuple[int, int | None]] = {"valid": (3760, 217_646), "test": (4358, 245_569)}
# The raw editions hold the same lines.
_HELD_OUT_RAW: dict[str, tuple[int, int | None]] = {"valid": (3760, None), "test": (4358, None)}


def _urls(name: str) -> tuple[str, ...]:
    # The author's own copy; the first address of all, which refuses since 2024, in case it comes back.
    return (
        f"https://wikitext.smerity.com/{name}-v1.zip",
        f"https://s3.amazonaws.com/research.metamind.io/wikitext/{name}-v1.zip",
    )


EDITIONS = {
    "wikitext-103": Edition(
        _urls("wikitext-103"),
        "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        {"train": (1_801_350, 103_227_021), **_HELD_OUT},
        267_744,
    ),
    "wikitext-2": Edition(
        _urls("wikitext-2"),
        "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
        {"train": (36_718, 2_088_628), **_HELD_OUT},
    ),
    "wikitext-103-raw": Edition(
        _urls("wikitext-103-raw"),
        "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
        {"train": (1_801_350, None), **_HELD_OUT_RAW},
        raw=True,
    ),
    "wikitext-2-raw": Edition(
        _urls("wikitext-2-raw"),
        "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        {"train": (36_718, None), **_HELD_OUT_RAW},
        raw=True,
    ),
}


def fetch(name: str, url: str | None = None, sha256: str | None = None) -> Path:
    """The archive of an edition, from the cache folder or the network.

    Args:
        name: key of EDITIONS.
        url: instead of the known addresses.
        sha256: instead of the official checksum; ``"none"`` for no check.

    Raises:
        FetchError: it cannot be had.
    """
    edition = EDITIONS[name]
    expected = None if sha256 == "none" else sha256 or edition.sha256
    file = f"{name}-v1.zip"
    if expected != edition.sha256:  # another file must not pass for the official one later
        file = f"{hashlib.sha256(f'{url} {expected}'.encode()).hexdigest()[:12]}-{file}"
    return download(url or edition.urls, cache_dir() / file, sha256=expected)


def corpus(name: str, source: Path, warn: Callable[[str], None], paragraphs: bool = False) -> Corpus:
    """The three splits of an archive, or of a folder with ``wiki.{train,valid,test}.tokens`` (or ``.raw``).

    Empty lines stay: each is an end-of-sentence symbol in the published counts, and parts the blocks of a masked
    language model.

    Args:
        name: key of EDITIONS.
        source: zip file or folder.
        warn: gets a line of text when the counts are not the official ones.
        paragraphs: leave out empty lines and headings, for a language model that reads each line by itself.

    Raises:
        FileNotFoundError: a split is missing.
        ValueError: a broken archive.
    """
    edition = EDITIONS[name]
    files = {split: edition.file(split) for split in SPLITS}
    if source.is_dir():
        reader = folder_lines(source, files)
    elif source.is_file():
        reader = _zip_reader(source, files)
    else:
        raise FileNotFoundError(f"no file or folder {source}")
    left_out: dict[str, dict[str, int]] = {}

    def paragraphs_of(split: str) -> Iterator[str]:
        facts = left_out[split] = {"left_out_lines": 0, "left_out_words": 0}
        for line in reader(split):
            if line and not line.startswith("="):
                yield line
            else:
                facts["left_out_lines"] += 1
                facts["left_out_words"] += len(line.split())

    def check(note: dict[str, Any]) -> None:
        for split, facts in left_out.items():
            note["splits"][split] |= facts
        mark_official(note, name, edition.counts, edition.symbols, warn)

    about = {"paragraphs": True} if paragraphs else {}
    lines = paragraphs_of if paragraphs else reader
    return Corpus(name, lines, pre_split=not edition.raw, keep_text=False, about=about, check=check)


def _zip_reader(path: Path, files: dict[str, str]) -> Callable[[str], Iterator[str]]:
    broken = f"{path} is not a whole zip archive; remove it and fetch it again"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {PurePosixPath(name).name: name for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{broken} ({error})") from None
    if missing := [file for file in files.values() if file not in names]:
        raise FileNotFoundError(f"{path} lacks {', '.join(missing)}; it has: {', '.join(sorted(names))}")

    def read(split: str) -> Iterator[str]:
        member = names[files[split]]
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as handle:
                yield from decode_lines(handle, f"{path}:{member}")
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{broken} ({error})") from None

    return read
