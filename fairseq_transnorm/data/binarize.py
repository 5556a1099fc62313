"""From lines of text to a data folder of fairseq: tokenised, binarised, described, and whole or not there."""

from __future__ import annotations

import hashlib
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

from . import encode, tokenizers
from .fetch import file_sha256
from .folder import NOTE, check_output, read_note, whole_folder, write_note  # noqa: F401  (NOTE: for other parts)
from .lines import SPLITS
from .tokenizers import Tokenization

NOTE_VERSION = 1
_SPECIAL = {"<s>", "<pad>", "</s>", "<mask>"}  # what a reader of documents puts there itself
_BYTES_PER_WORKER = 1 << 16  # of the smallest split; fairseq cuts files by bytes, which must hold whole lines


@dataclass(frozen=True)
class Corpus:
    """What :func:`build` turns into a data folder.

    Attributes:
        name: for the note.
        lines: gives the lines of ``train``, ``valid`` or ``test``, each stripped and with single spaces.
        pre_split: the words are separated by spaces already, punctuation included.
        documents: a line is a sentence, and an empty line stands after each document; for fairseq it is a lone
            end-of-sentence symbol. The note says so, and how many documents each split has.
        keep_text: keep the text of the splits in the data folder, as ``text/train.txt`` and so on.
        about: further facts for the note.
        files: further files of the data folder, name -> content.
        check: called with the note before the folder gets its name; it may raise or add to it.
    """

    name: str
    lines: Callable[[str], Iterable[str]]
    pre_split: bool = False
    documents: bool = False
    keep_text: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[dict[str, Any]], None] = lambda note: None


def build(
    corpus: Corpus,
    out: str | os.PathLike[str],
    tokenization: Tokenization,
    *,
    workers: int = 1,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Tokenise and binarise a corpus into the folder ``out``, which is whole or absent.

    The same input gives the same bytes.

    Args:
        corpus: the text.
        out: data folder for fairseq: ``dict.txt``, ``{train,valid,test}.{bin,idx}``, the tokeniser's files and the note
            ``tokenizer.json``.
        tokenization: how the text becomes symbols.
        workers: processes for encoding and of fairseq-preprocess; the result does not depend on it.
        overwrite: replace a folder made by this function.
        say: gets a line of text at each step.

    Returns:
        The note. Its keys: ``kind`` of tokenisation; ``bpe_args``, flags for fairseq's commands, with the names of
        files in the folder, which ``files`` lists; ``dictionary``, which is ``corpus``, ``fairseq``, ``file`` or
        ``like``, and ``dictionary_sha256`` of ``dict.txt``; ``vocab_size``, symbols in it with fairseq's own;
        ``splits``, for each its lines, words, characters, tokens (with the end of each line), unknown (tokens that are
        not in the dictionary), sha256 of its text and documents; ``documents``, true where lines are sentences of them;
        ``corpus`` and ``corpus_sha256`` of all three; ``pre_split``; ``version`` of the note; ``made_by``; and what the
        corpus adds.

    Raises:
        FileExistsError: ``out`` is there.
        BlockingIOError: another process is making ``out``.
        ValueError: an option does not fit the corpus, a split is empty, or documents have special symbols in their
            text.
        ImportError: a package is missing.
        OSError: files of GPT-2 cannot be fetched.
        RuntimeError: fairseq-preprocess failed.
    """
    check(out, tokenization, workers, overwrite)
    with whole_folder(out, overwrite) as folder:
        note = _fill(folder, corpus, tokenization, workers, say)
        corpus.check(note)
        write_note(folder, note)
    return note


def bpe_args(data: str | os.PathLike[str]) -> list[str]:
    """Flags for fairseq-generate, -interactive and the like, with the paths that hold from anywhere."""
    note = read_note(data)
    return [str(Path(data).resolve() / arg) if arg in note["files"] else arg for arg in note["bpe_args"]]


def hub_args(data: str | os.PathLike[str]) -> dict[str, str]:
    """The same as keyword arguments of a model's ``from_pretrained``."""
    flags = bpe_args(data)
    return {flag[2:].replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}


def check(out: str | os.PathLike[str], tokenization: Tokenization, workers: int = 1, overwrite: bool = False) -> None:
    """Check what :func:`build` can know before it starts; the arguments and errors are the same."""
    tokenization.check()
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1")
    check_output(out, overwrite)


def _fill(
    folder: Path, corpus: Corpus, tokenization: Tokenization, workers: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write everything but the note into ``folder``; return the note."""
    from fairseq_transnorm import __version__

    kind, texts, tokens = tokenization.kind, folder / "text", folder / "tokens"
    texts.mkdir()
    tokens.mkdir()
    note: dict[str, Any] = {
        "version": NOTE_VERSION,
        **tokenization_facts(tokenization),
        "vocab_size": 0,
        "corpus": corpus.name,
        "corpus_sha256": "",
        "pre_split": corpus.pre_split,
        "splits": {},
        **({"documents": True} if corpus.documents else {}),
        **corpus.about,
        "made_by": f"fairseq_transnorm {__version__}",
    }
    say(f"reading {corpus.name}")
    for split in SPLITS:
        note["splits"][split] = _write_text(corpus.lines(split), texts / f"{split}.txt", split, corpus.documents)
    together = "".join(note["splits"][split]["sha256"] for split in SPLITS)
    note["corpus_sha256"] = hashlib.sha256(together.encode()).hexdigest()
    if note["files"]:
        say(f"training {kind} on the train split" if tokenization.is_made else f"taking the files of {kind}")
        tokenizers.train(tokenization, texts / "train.txt", folder)
    ready = tokenizers.ready_dictionary(tokenization, folder)
    counts = {}
    size = sum((texts / f"{split}.txt").stat().st_size for split in SPLITS)
    with encode.encoder(kind, folder, corpus.pre_split, workers, size) as encoder:
        for split in SPLITS:
            say(f"encoding {split}: {note['splits'][split]['words']:,} words")
            counts[split] = encoder.file(texts / f"{split}.txt", tokens / split)
            if corpus.documents and (special := _SPECIAL & counts[split].keys()):
                _refuse(special, tokens / split)
    flags = _dictionary_flags(tokenization, folder, counts["train"], ready)
    say("fairseq-preprocess")
    preprocess({split: tokens / split for split in SPLITS}, folder, workers, flags)
    note["vocab_size"] = _count_binarised(folder, note["splits"], counts)
    note["dictionary_sha256"] = file_sha256(folder / "dict.txt")
    shutil.rmtree(tokens)
    if not corpus.keep_text:
        shutil.rmtree(texts)
    for name, content in corpus.files.items():
        (folder / name).write_text(content)
    return note


def tokenization_facts(tokenization: Tokenization) -> dict[str, Any]:
    """What a note says of a tokenisation."""
    return {
        "kind": tokenization.kind,
        "bpe_args": tokenizers.fairseq_args(tokenization.kind),
        "files": list(tokenizers.MODEL_FILES[tokenization.kind]),
        "dictionary": tokenization.dictionary_source,
        "dictionary_sha256": "",
    }


def _write_text(lines: Iterable[str], path: Path, split: str, documents: bool) -> dict[str, Any]:
    """Write the lines of a split and count them."""
    count = words = characters = blank = 0
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        for line in tqdm(lines, desc=split, unit=" lines", disable=None, leave=False):
            handle.write(line + "\n")
            count += 1
            words += len(line.split())
            characters += len(line)
            blank += not line
    if not words:
        raise ValueError(f"the {split} split is empty: it has no line with text")
    facts = {"lines": count, "words": words, "characters": characters, "sha256": file_sha256(path)}
    return facts | {"documents": blank} if documents else facts


def _refuse(special: set[str], path: Path) -> None:
    """Raise ValueError for the first line of an encoded file that has one of these symbols."""
    with open(path, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if found := sorted(special.intersection(line.split())):
                raise ValueError(
                    f"the {path.name} split, line {number} (empty lines counted): {found[0]} in the text would be read "
                    "as the special symbol; remove it, or take a tokenizer that cuts it up (words without --pre-split, "
                    "wordpiece)"
                )


def _dictionary_flags(tokenization: Tokenization, folder: Path, counts: Counter[str], ready: Path | None) -> list[str]:
    """Flags of fairseq-preprocess that decide the dictionary."""
    kind, vocab_size = tokenization.kind, tokenization.vocab_size
    if ready is not None:
        return ["--srcdict", str(ready)]
    if known := tokenizers.symbols(kind, folder, folder / "text" / "train.txt"):
        # Also those that only held-out text or a prompt needs; fairseq alone would keep those of the train split.
        from fairseq.data import Dictionary

        dictionary = Dictionary()
        for symbol in known:
            dictionary.add_symbol(symbol, n=counts[symbol])
        if kind != "wordpiece":  # whose symbols keep the order of the vocabulary
            # Only GPT-2's pieces are many more than a small model can use; the rare ones become <unk>.
            dictionary.finalize(nwords=vocab_size if kind == "gpt2" and vocab_size is not None else -1)
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


def preprocess(splits: Mapping[str, Path], folder: Path, workers: int, flags: list[str]) -> None:
    """Run fairseq-preprocess on files of symbols.

    Args:
        splits: ``train``, ``valid``, ``test`` -> file.
        folder: where the result goes.
        workers: upper bound on its processes.
        flags: more flags.

    Raises:
        RuntimeError: it failed.
    """
    smallest = min(path.stat().st_size for path in splits.values())
    workers = max(1, min(workers, smallest // _BYTES_PER_WORKER)) if workers > 1 else 1
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--destdir", str(folder)]
    for split, path in splits.items():
        command += [f"--{split}pref", str(path)]
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
