"""From lines of text to a data folder of fairseq: tokenised, binarised, described, and whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import tokenizers
from .fetch import exclusive, file_sha256
from .lines import SPLITS

NOTE = "tokenizer.json"
NOTE_VERSION = 1
_BYTES_PER_WORKER = 1 << 16  # of the smallest split; fairseq cuts files by bytes, which must hold whole lines


@dataclass(frozen=True)
class Corpus:
    """What :func:`build` turns into a data folder.

    Attributes:
        name: for the note.
        lines: gives the lines of ``train``, ``valid`` or ``test``, each stripped and with single spaces.
        pre_split: the words are separated by spaces already, punctuation included.
        keep_text: keep the text of the splits in the data folder, as ``text/train.txt`` and so on.
        about: further facts for the note.
        files: further files of the data folder, name -> content.
        check: called with the note before the folder gets its name; it may raise or add to it.
    """

    name: str
    lines: Callable[[str], Iterable[str]]
    pre_split: bool = False
    keep_text: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[dict[str, Any]], None] = lambda note: None


def build(
    corpus: Corpus,
    out: str | os.PathLike[str],
    kind: str,
    *,
    vocab_size: int | None = None,
    coverage: float = 1.0,
    workers: int = 1,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Tokenise and binarise a corpus into the folder ``out``.

    Everything is made in a sibling folder ``.out.partial``, which is renamed at the end: ``out`` is whole or absent.
    What an interrupted run left there is removed by the next one. The same input gives the same bytes.

    Args:
        corpus: the text.
        out: data folder for fairseq: ``dict.txt``, ``{train,valid,test}.{bin,idx}``, the tokeniser's model and the note
            ``tokenizer.json``.
        kind: of tokenisation, one of ``tokenizers.KINDS``.
        vocab_size: words: symbols in the dictionary, with fairseq's four; else see :func:`tokenizers.train`.
        coverage: see :func:`tokenizers.train`.
        workers: processes of fairseq-preprocess; the result does not depend on it.
        overwrite: replace a folder made by this function.
        say: gets a line of text at each step.

    Returns:
        The note, see :func:`read_note`.

    Raises:
        FileExistsError: ``out`` is there.
        BlockingIOError: another process is making ``out``.
        ValueError: an option does not fit the corpus, or a split is empty.
        ImportError: a package is missing.
        RuntimeError: fairseq-preprocess failed.
    """
    out = Path(os.path.abspath(out))
    check(out, kind, vocab_size, workers, overwrite)
    old, partial = _sibling(out, "old"), _sibling(out, "partial")
    partial.mkdir(parents=True, exist_ok=True)
    with exclusive(partial, f"making {out}"):
        try:
            check(out, kind, vocab_size, workers, overwrite)  # another process may just have made it
            _empty(partial)
            note = _fill(partial, corpus, kind, vocab_size, coverage, workers, say)
            corpus.check(note)
            (partial / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n")
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            partial.rename(out)
        except BaseException:  # also an interrupt
            shutil.rmtree(partial, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)
    return note


def read_note(data: str | os.PathLike[str]) -> dict[str, Any]:
    """The note ``tokenizer.json`` of a data folder.

    Its keys: ``kind`` of tokenisation; ``bpe_args``, flags for fairseq's commands, with the names of files in the
    folder, which ``files`` lists; ``vocab_size``, symbols in ``dict.txt`` with fairseq's own; ``splits``, for each its
    lines, words, characters, tokens (with the end of each line), unknown (tokens that are not in the dictionary) and
    sha256 of its text; ``corpus`` and ``corpus_sha256`` of all three; ``pre_split``; ``version`` of the note;
    ``made_by``; and what the corpus adds.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(data) / NOTE
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: {data} was not made by the scripts in preprocessing/")
    return json.loads(path.read_text())


def bpe_args(data: str | os.PathLike[str]) -> list[str]:
    """Flags for fairseq-generate, -interactive and the like, with the paths that hold from anywhere."""
    note = read_note(data)
    return [str(Path(data).resolve() / arg) if arg in note["files"] else arg for arg in note["bpe_args"]]


def hub_args(data: str | os.PathLike[str]) -> dict[str, str]:
    """The same as keyword arguments of a model's ``from_pretrained``."""
    flags = bpe_args(data)
    return {flag[2:].replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}


def check(
    out: str | os.PathLike[str], kind: str, vocab_size: int | None, workers: int = 1, overwrite: bool = False
) -> None:
    """Check what :func:`build` can know before it starts; the arguments and errors are the same."""
    if kind not in tokenizers.KINDS:
        raise ValueError(f"unknown tokenizer {kind!r}; known are {', '.join(tokenizers.KINDS)}")
    if kind == "characters" and vocab_size is not None:
        raise ValueError("--vocab-size does not go with the tokenizer characters, whose vocabulary the text decides")
    if vocab_size is not None and vocab_size < 5:
        raise ValueError(f"--vocab-size {vocab_size}: at least 5, since four symbols are fairseq's own")
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1")
    tokenizers.check_packages(kind)
    out = Path(os.path.abspath(out))
    old = _sibling(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)  # a run was killed between the two renames of build
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out} is there already; give another --out, or --overwrite to replace it")
    if not (out / NOTE).is_file():
        raise FileExistsError(f"{out} has no {NOTE}, so it is not ours to replace; remove it yourself")


def _sibling(out: Path, suffix: str) -> Path:
    return out.with_name(f".{out.name}.{suffix}")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fill(
    folder: Path,
    corpus: Corpus,
    kind: str,
    vocab_size: int | None,
    coverage: float,
    workers: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write everything but the note into ``folder``; return the note."""
    from fairseq_transnorm import __version__

    texts, tokens = folder / "text", folder / "tokens"
    texts.mkdir()
    tokens.mkdir()
    note: dict[str, Any] = {
        "version": NOTE_VERSION,
        "kind": kind,
        "bpe_args": tokenizers.fairseq_args(kind),
        "files": [name for name in (tokenizers.MODEL_FILES.get(kind),) if name],
        "vocab_size": 0,
        "corpus": corpus.name,
        "corpus_sha256": "",
        "pre_split": corpus.pre_split,
        "splits": {},
        **corpus.about,
        "made_by": f"fairseq_transnorm {__version__}",
    }
    say(f"reading {corpus.name}")
    for split in SPLITS:
        note["splits"][split] = _write_text(corpus.lines(split), texts / f"{split}.txt", split)
    together = "".join(note["splits"][split]["sha256"] for split in SPLITS)
    note["corpus_sha256"] = hashlib.sha256(together.encode()).hexdigest()
    if note["files"]:
        say(f"training {kind} on the train split")
        tokenizers.train(kind, texts / "train.txt", folder, vocab_size, coverage)
    encode = tokenizers.load(kind, folder, corpus.pre_split)
    counts = {}
    for split in SPLITS:
        say(f"encoding {split}: {note['splits'][split]['words']:,} words")
        counts[split] = _encode(encode, texts / f"{split}.txt", tokens / split)
    flags = _dictionary_flags(kind, folder, counts["train"], vocab_size)
    say("fairseq-preprocess")
    _preprocess(folder, tokens, workers, flags)
    note["vocab_size"] = _count_binarised(folder, note["splits"], counts)
    shutil.rmtree(tokens)
    if not corpus.keep_text:
        shutil.rmtree(texts)
    for name, content in corpus.files.items():
        (folder / name).write_text(content)
    return note


def _write_text(lines: Iterable[str], path: Path, split: str) -> dict[str, Any]:
    """Write the lines of a split and count them."""
    count = words = characters = 0
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        for line in tqdm(lines, desc=split, unit=" lines", disable=None, leave=False):
            handle.write(line + "\n")
            count += 1
            words += len(line.split())
            characters += len(line)
    if not words:
        raise ValueError(f"the {split} split is empty: it has no line with text")
    return {"lines": count, "words": words, "characters": characters, "sha256": file_sha256(path)}


def _encode(encode: Callable[[str], str], source: Path, dest: Path) -> Counter[str]:
    """Write the symbols of every line and count them."""
    counts = Counter[str]()
    with (
        open(source, encoding="utf-8", newline="\n") as lines,
        open(dest, "w", encoding="utf-8", newline="\n") as handle,
    ):
        for line in tqdm(lines, desc=dest.name, unit=" lines", disable=None, leave=False):
            symbols = encode(line.rstrip("\n"))
            counts.update(symbols.split())
            handle.write(symbols + "\n")
    return counts


def _dictionary_flags(kind: str, folder: Path, counts: Counter[str], vocab_size: int | None) -> list[str]:
    """Flags of fairseq-preprocess that decide the dictionary."""
    if known := tokenizers.symbols(kind, folder, folder / "text" / "train.txt"):
        # Also those that only held-out text or a prompt needs; fairseq alone would keep those of the train split.
        from fairseq.data import Dictionary

        dictionary = Dictionary()
        for symbol in known:
            dictionary.add_symbol(symbol, n=counts[symbol])
        dictionary.finalize()
        dictionary.save(str(folder / "tokens" / "dict.txt"))
        return ["--srcdict", str(folder / "tokens" / "dict.txt")]
    if kind == "words" and vocab_size is not None:
        if vocab_size > len(counts) + 4:
            raise ValueError(
                f"--vocab-size {vocab_size} is too large for this corpus: its train split has {len(counts)} different "
                f"words, which make {len(counts) + 4} with fairseq's own symbols"
            )
        return ["--nwordssrc", str(vocab_size)]
    return []


def _preprocess(folder: Path, tokens: Path, workers: int, flags: list[str]) -> None:
    smallest = min((tokens / split).stat().st_size for split in SPLITS)
    workers = max(1, min(workers, smallest // _BYTES_PER_WORKER)) if workers > 1 else 1
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--destdir", str(folder)]
    for split in SPLITS:
        command += [f"--{split}pref", str(tokens / split)]
    command += ["--workers", str(workers), *flags]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(
            f"fairseq-preprocess ended with status {run.returncode}: {(run.stderr or run.stdout).strip()[-1500:]}"
        )
    (folder / "preprocess.log").unlink(missing_ok=True)  # times and paths of this run


def _count_binarised(folder: Path, splits: dict[str, Any], counts: Mapping[str, Counter[str]]) -> int:
    """Add the tokens and unknown tokens of each split to ``splits``; return the size of the dictionary."""
    from fairseq.data import Dictionary, data_utils

    dictionary = Dictionary.load(str(folder / "dict.txt"))
    for split, facts in splits.items():
        # Hold the dataset: its sizes lie in a mapped file, which goes with it.
        dataset = data_utils.load_indexed_dataset(str(folder / split), dictionary, "mmap")
        assert len(dataset) == facts["lines"], f"{split}: {facts['lines']} lines became {len(dataset)} sequences"
        facts["tokens"] = int(dataset.sizes.sum())
        facts["unknown"] = sum(n for symbol, n in counts[split].items() if dictionary.index(symbol) == dictionary.unk())
    return len(dictionary)
