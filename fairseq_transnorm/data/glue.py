"""GLUE (Wang et al. 2018, arXiv 1804.07461): the official files of its sentence tasks, or rows of Hugging Face's copy.

The files are tab-separated without any quoting: a quotation mark is text. Rows that cannot be used are counted by
reason, never repaired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import classification
from .bad_rows import what_is_wrong_with
from .classification import Example, Task, clean_for_bert, collapse
from .lines import read_lines

HUB = "nyu-mll/glue"  # on Hugging Face


@dataclass(frozen=True)
class Glue:
    """Layout of a task.

    Attributes:
        task: what is predicted.
        folder: in the zip files.
        inputs: columns of the sentences.
        label: column of the label.
        headless: columns of the labelled files when these have no header.
        hub: name, columns of the sentences, and labels in the order of their numbers, on Hugging Face.
        scale: a regression's label is divided by its largest value.
        clean: what is done to the text of a sentence.
    """

    task: Task
    folder: str
    inputs: tuple[str, ...]
    label: str
    hub: tuple[str, tuple[str, ...], tuple[str, ...]]
    headless: tuple[str, ...] = ()
    scale: float = 1.0
    clean: Callable[[str], str] = collapse
    files: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
    )
    hub_splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "valid": "validation", "test": "test"}
    )


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
_F1 = ("--report-acc-and-f1",)

TASKS = {
    glue.task.name: glue
    for glue in (
        Glue(
            Task("MNLI", 2, ("contradiction", "neutral", "entailment")),
            *("MNLI", _PAIR, "gold_label"),
            hub=("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
            files={
                "train": "train.tsv",
                "valid": "dev_matched.tsv",
                "valid1": "dev_mismatched.tsv",
                "test": "test_matched.tsv",
                "test1": "test_mismatched.tsv",
            },
            hub_splits={
                "train": "train",
                "valid": "validation_matched",
                "valid1": "validation_mismatched",
                "test": "test_matched",
                "test1": "test_mismatched",
            },
        ),
        Glue(
            Task("QNLI", 2, ("not_entailment", "entailment")),
            *("QNLI", ("question", "sentence"), "label"),
            hub=("qnli", ("question", "sentence"), _ENTAILMENT),
        ),
        Glue(
            Task("QQP", 2, _BINARY, "accuracy", _F1),
            *("QQP", ("question1", "question2"), "is_duplicate"),
            hub=("qqp", ("question1", "question2"), _BINARY),
        ),
        Glue(Task("SST-2", 1, _BINARY), "SST-2", ("sentence",), "label", hub=("sst2", ("sentence",), _BINARY)),
        Glue(
            Task("MRPC", 2, _BINARY, "acc_and_f1", _F1),
            *("MRPC", ("#1 String", "#2 String"), "Quality"),
            hub=("mrpc", _PAIR, _BINARY),
        ),
        Glue(
            Task("CoLA", 1, _BINARY, "mcc", ("--report-mcc",)),
            *("CoLA", ("sentence",), "label"),
            hub=("cola", ("sentence",), _BINARY),
            headless=("source", "label", "star", "sentence"),
        ),
        Glue(
            Task("RTE", 2, ("not_entailment", "entailment")),
            *("RTE", _PAIR, "label"),
            hub=("rte", _PAIR, _ENTAILMENT),
        ),
        Glue(
            Task("STS-B", 2, (), "pearson_and_spearman", ("--report-pearson-and-spearman",)),
            *("STS-B", _PAIR, "score"),
            hub=("stsb", _PAIR, ()),
            scale=5.0,
        ),
    )
}
# MRPC as its authors give it; dev_ids.tsv, which GLUE adds, says which pairs of the first file are GLUE's dev set.
_MSR = {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
_MSR_IDS = ("#1 ID", "#2 ID")


def for_bert(glue: Glue) -> Glue:
    """Return the task as BERT's recipe has it: its joining and cleaning of text, MNLI's classes by the alphabet."""
    labels = tuple(sorted(glue.task.labels)) if glue.task.name == "MNLI" else glue.task.labels
    return replace(glue, task=replace(glue.task, layout="bert", labels=labels), clean=clean_for_bert)


class Reader(classification.Reader):
    """Turns fields into examples and counts the rows that are none."""

    def __init__(self, glue: Glue, name: str) -> None:
        super().__init__(name)
        self.glue = glue

    def add(self, place: str, inputs: Iterable[str], label: str | None) -> None:
        """Take a row; ``label`` is None in a test set without."""
        cleaned = tuple(map(self.glue.clean, inputs))
        if not all(cleaned):
            self.reject("empty sentence", place)
        elif wrong := what_is_wrong_with("".join(cleaned)):
            self.reject(wrong, place)
        elif label is None:
            self.rows.append(Example(cleaned, None))
        elif self.glue.task.labels:
            if label in self.glue.task.labels:
                self.rows.append(Example(cleaned, label))
            else:
                self.reject("unknown label", f"{place}: {label!r}")
        elif (score := _number(label)) is None or not 0 <= score <= self.glue.scale:
            self.reject(f"score that is not in 0 to {self.glue.scale:g}", f"{place}: {label!r}")
        else:
            self.rows.append(Example(cleaned, score / self.glue.scale))


def locate(glue: Glue, source: Path) -> dict[str, Path]:
    """Split -> file, of a folder that holds the task's folder or is it; test sets may be missing.

    Raises:
        FileNotFoundError: no folder, or no train or dev file; the text lists what is there.
    """
    if not source.is_dir():
        what = "is a file; unzip it first" if source.is_file() else "is not there"
        raise FileNotFoundError(f"--source {source} {what}; it should be the folder of GLUE's unzipped files")
    folder = source / glue.folder if (source / glue.folder).is_dir() else source
    files = dict(glue.files)
    msr = glue.folder == "MRPC" and not (folder / "train.tsv").is_file() and (folder / _MSR["train"]).is_file()
    if msr:
        files = _MSR
    missing = [name for split, name in files.items() if not split.startswith("test") and not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        more = f", or {_MSR['train']} and {_MSR['test']}" if glue.folder == "MRPC" else ""
        raise FileNotFoundError(
            f"{glue.task.name}: {folder} lacks {', '.join(missing)}{more}; it has: {there}. "
            f"--source is the folder that holds {glue.folder}/, or {glue.folder}/ itself"
        )
    return {split: folder / name for split, name in files.items() if (folder / name).is_file()}


def read_files(glue: Glue, source: Path) -> Iterator[tuple[str, Reader]]:
    """Read the splits of a task, one after the other.

    Raises:
        FileNotFoundError: as :func:`locate` does.
        ValueError: a file lacks a column.
    """
    files = locate(glue, source)
    if files["train"].name == _MSR["train"]:
        yield from _read_msr(glue, files)
        return
    for split, path in files.items():
        reader = Reader(glue, f"{glue.task.name} {split}, {path.name}")
        headless = () if split.startswith("test") else glue.headless
        for place, row in _rows(path, reader, headless, () if split.startswith("test") else (glue.label,)):
            reader.add(place, [row[column] for column in glue.inputs], row.get(glue.label))
        yield split, reader


def from_rows(glue: Glue, split: str, rows: Iterable[Mapping[str, Any]]) -> Reader:
    """Read rows as Hugging Face's ``datasets`` gives them: labels are numbers, -1 in test sets."""
    name, columns, labels = glue.hub
    reader = Reader(glue, f"{glue.task.name} {split}, {name} of {HUB}")
    for number, row in enumerate(rows):
        value = row["label"]
        if split.startswith("test") and value == -1:
            label = None
        elif labels:
            label = labels[value] if value in range(len(labels)) else str(value)
        else:
            label = str(value)
        reader.add(f"row {number}", [str(row[column] or "") for column in columns], label)
    return reader


def from_datasets(glue: Glue) -> Iterator[tuple[str, Reader]]:
    """Read the splits of a task through Hugging Face's ``datasets``.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError("--from-datasets needs datasets; pip install 'fairseq_transnorm[data]'") from None
    for split, name in glue.hub_splits.items():
        yield split, from_rows(glue, split, datasets.load_dataset(HUB, glue.hub[0], split=name))


def _read_msr(glue: Glue, files: Mapping[str, Path]) -> Iterator[tuple[str, Reader]]:
    """Read MRPC as its authors give it; without dev_ids.tsv its own test set, which has labels, is ``valid``."""
    ids = files["train"].with_name("dev_ids.tsv")
    dev = {tuple(line.split()) for line in read_lines(ids)} if ids.is_file() else set()
    readers = {split: Reader(glue, f"MRPC {split}, {files['train'].name}") for split in ("train", "valid")}
    needed = (glue.label, *_MSR_IDS)
    for place, row in _rows(files["train"], readers["train"], (), needed):
        split = "valid" if tuple(row[column] for column in _MSR_IDS) in dev else "train"
        readers[split].add(place, [row[column] for column in glue.inputs], row[glue.label])
    yield "train", readers["train"]
    if dev:
        yield "valid", readers["valid"]
    elif "test" not in files:
        raise FileNotFoundError(f"MRPC: {files['train'].parent} lacks {_MSR['test']}, and dev_ids.tsv")
    if "test" in files:
        reader = Reader(glue, f"MRPC {'test' if dev else 'valid'}, {files['test'].name}")
        for place, row in _rows(files["test"], reader, (), needed):
            reader.add(place, [row[column] for column in glue.inputs], row[glue.label])
        yield "test" if dev else "valid", reader


def _rows(
    path: Path, reader: Reader, headless: tuple[str, ...], needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str]]]:
    r"""Rows of a tab-separated file as (line number, column -> field); what is no row goes to ``reader``.

    Only ``\n`` ends a line; a carriage return before it is dropped.
    """
    columns = headless
    with open(path, "rb") as handle:
        for number, raw in enumerate(handle, start=1):
            place = f"line {number}"
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                reader.reject("not UTF-8", place)
                continue
            fields = line.split("\t")
            if not columns:
                columns = tuple(name.strip() for name in fields)
                _check_header(path, reader.glue, columns, needed)
            elif not line.strip():
                reader.reject("blank line", place)
            elif len(fields) != len(columns):
                reader.reject(f"{'missing' if len(fields) < len(columns) else 'extra'} field", _excerpt(place, line))
            else:
                yield place, dict(zip(columns, fields, strict=True))


def _check_header(path: Path, glue: Glue, columns: tuple[str, ...], needed: tuple[str, ...]) -> None:
    if missing := [name for name in (*glue.inputs, *needed) if name not in columns]:
        raise ValueError(
            f"{path}, line 1: no column {', '.join(missing)} in the header; it has: {', '.join(columns)[:300]}. "
            f"Is this the official file of {glue.task.name}?"
        )
    if twice := sorted({name for name in (*glue.inputs, *needed) if columns.count(name) > 1}):
        raise ValueError(
            f"{path}, line 1: the header names {', '.join(twice)} twice, so that it is not clear which is it"
        )


def _excerpt(place: str, line: str) -> str:
    return f"{place}: {line[:60]!r}{'...' if len(line) > 60 else ''}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
