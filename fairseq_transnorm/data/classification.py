"""Labelled sentences, pairs of them or multiple choice as a data folder for a task of fairseq or of this package.

The numbers of the symbols are those of pretraining: tokeniser and dictionary are copied from its data folder.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import encode, tokenizers
from .bad_rows import BadRows
from .binarize import NOTE_VERSION, check, tokenization_facts
from .fetch import file_sha256
from .folder import read_note, whole_folder, write_note
from .tokenizers import Tokenization

# What the flags of the note give to fairseq: <s> stands before each example, </s> between the two of a pair.
_INIT_TOKEN, _SEPARATOR = 0, 2
MAX_OPTION_LENGTH = 128  # tokens
MANY_UNKNOWN, REFUSED_UNKNOWN = 0.05, 0.5  # shares of the tokens of a split: above them a warning, an error


@dataclass(frozen=True)
class Task:
    """What is predicted.

    Attributes:
        name: for the note.
        inputs: parts of an example: 1 or 2 sentences; of multiple choice the text and then each option.
        labels: all of them in the order of the classes or options; none for a regression. fairseq's F1 and Matthews
            correlation need ``0`` and ``1``, of which ``1`` is the positive one.
        metric: of the criterion, by which a checkpoint is chosen; larger is better.
        metric_flags: make the criterion report it.
        layout: how parts are joined: ``roberta``, ``<s> A </s> </s> B </s>``; ``bert``, ``<s> A </s> B </s>`` with
            segments; ``choices``, the same with each option as A and the text as B.
    """

    name: str
    inputs: int
    labels: tuple[str, ...]
    metric: str = "accuracy"
    metric_flags: tuple[str, ...] = ()
    layout: str = "roberta"

    def train_args(self) -> list[str]:
        """Flags of fairseq-train and fairseq-validate that belong to the task."""
        classes = ["--num-classes", str(len(self.labels) or 1)]
        if self.layout == "choices":
            name = "dslm_sentence_ranking"
            return ["--task", name, "--criterion", name, *classes, "--max-option-length", str(MAX_OPTION_LENGTH)]
        name = "sentence_prediction" if self.layout == "roberta" else "dslm_sentence_prediction"
        args = ["--task", name, "--criterion", "sentence_prediction", *classes]
        if self.layout == "roberta":
            args += ["--init-token", str(_INIT_TOKEN)]
            args += ["--separator-token", str(_SEPARATOR)] * (self.inputs == 2)
        if not self.labels:
            args.append("--regression-target")
        return [*args, *self.metric_flags]

    def joined_length(self, lengths: Sequence[int]) -> int:
        """Tokens of an example, uncut, whose parts have these numbers of tokens with the end of each."""
        if self.layout == "choices":
            return 1 + max(min(length, MAX_OPTION_LENGTH + 1) for length in lengths[1:]) + lengths[0]
        return sum(lengths) + (len(lengths) if self.layout == "roberta" else 1)


@dataclass(frozen=True)
class Example:
    """``inputs``: as many parts as the task has; ``label``: a name, a number in a regression, None where unknown."""

    inputs: tuple[str, ...]
    label: str | float | None


@dataclass(frozen=True)
class Examples:
    """Those of a split; all have a label or none. ``facts`` are for the note, ``name`` says what was read."""

    rows: list[Example]
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


class Reader(BadRows):
    """Collects the examples of a split and counts the rows that cannot be used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.rows: list[Example] = []

    def good(self) -> int:
        return len(self.rows)

    def take(self, other: Reader) -> None:
        """Add the rows of another, good and bad."""
        self.rows += other.rows
        self.bad.update(other.bad)
        self.first = other.first | self.first

    def finish(self, max_bad: float) -> Examples:
        """Those that were taken.

        Raises:
            ValueError: more than the share ``max_bad`` of the rows is bad.
        """
        return Examples(self.rows, {"bad": self.check(max_bad)}, self.name)


def collapse(text: str) -> str:
    """Make one space of every run of white space, none at the ends."""
    return " ".join(text.split())


def clean_for_bert(text: str) -> str:
    """Collapse white space, then turn ``" . "`` into ``". "`` three times: ``"no . . so ."`` gives ``"no.. so ."``."""
    text = collapse(text)
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


def build(
    task: Task,
    splits: Mapping[str, Examples],
    out: str | os.PathLike[str],
    like: Path,
    *,
    about: Mapping[str, Any] | None = None,
    workers: int = 1,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the folder ``out``, which is whole or absent; the same input gives the same bytes.

    It holds ``input0`` (and ``input1`` and so on) with ``dict.txt`` and a data set a split, ``label`` with a dictionary
    and a data set a split (regression: ``SPLIT.label``, one number a line), the tokeniser's files and the note
    ``tokenizer.json``. Splits without labels have none there.

    Args:
        task: what is predicted.
        splits: ``train``, ``valid``, ``valid1`` and so on -> examples.
        out: the folder.
        like: data folder of pretraining.
        about: further facts for the note.
        workers: processes for encoding; the result does not depend on it.
        overwrite: replace a folder made by one of these scripts.
        say: gets a line of text at each step.

    Returns:
        The note. Its keys: ``task``; ``labels`` in the order of the classes, empty for a regression; ``inputs``, how
        many; ``train_args``, flags of fairseq-train for the task; ``metric``, of which larger is better;
        ``max_length``, tokens of the longest example as the task joins it; ``splits``, for each its rows, tokens (of
        all inputs with their ends), unknown tokens, max_length, rows by label and the share of the most frequent label
        (of a regression: least, mean and largest value), and what its facts add; ``like`` with corpus and
        corpus_sha256 of the folder of pretraining; ``kind``, ``bpe_args``, ``files``, ``vocab_size``,
        ``dictionary_sha256``, ``version`` and ``made_by`` as in a folder of text; and ``about``.

    Raises:
        FileExistsError, BlockingIOError, ImportError: as :func:`binarize.build` does.
        FileNotFoundError: ``like`` is no data folder of text.
        ValueError: a split is empty, has an unknown label, or has none outside a test set; or more than half of its
            tokens are unknown.
    """
    from fairseq.data import Dictionary

    from fairseq_transnorm import __version__

    tokenization = Tokenization.of(like)
    check(out, tokenization, workers, overwrite)
    for split, examples in splits.items():
        _check(task, split, examples)
    pretraining = read_note(like)
    dictionary = Dictionary.load(str(like / "dict.txt"))
    note: dict[str, Any] = {
        "version": NOTE_VERSION,
        "task": task.name,
        "labels": list(task.labels),
        "inputs": task.inputs,
        "train_args": task.train_args(),
        "metric": task.metric,
        "max_length": 0,
        "splits": {},
        "like": {key: pretraining[key] for key in ("corpus", "corpus_sha256")},
        **tokenization_facts(tokenization),
        "vocab_size": len(dictionary),
        "dictionary_sha256": file_sha256(like / "dict.txt"),
        **(about or {}),
        "made_by": f"fairseq_transnorm {__version__}",
    }
    size = sum(len(text) for examples in splits.values() for row in examples.rows for text in row.inputs)
    with whole_folder(out, overwrite) as folder:
        tokenizers.copy_files(tokenization, folder)
        for number in range(task.inputs):
            (folder / f"input{number}").mkdir()
            shutil.copyfile(like / "dict.txt", folder / f"input{number}" / "dict.txt")
        with encode.encoder(tokenization.kind, folder, False, workers, size) as encoder:
            for split, examples in splits.items():
                say(f"{task.name}: encoding {split}, {len(examples.rows):,} rows")
                note["splits"][split] = _write_inputs(folder, split, examples.rows, task, dictionary, encoder)
                _check_unknown(f"{task.name}: {split}", like, note["splits"][split], say)
        _write_labels(folder / "label", task, splits, note["splits"])
        for split, examples in splits.items():
            note["splits"][split] |= examples.facts
        note["max_length"] = max(facts["max_length"] for facts in note["splits"].values())
        write_note(folder, note)
    return note


def _check(task: Task, split: str, examples: Examples) -> None:
    if not examples.rows:
        raise ValueError(f"{examples.name or task.name}: the {split} split has no usable row")
    unlabelled = examples.rows[0].label is None
    for row in examples.rows:
        assert len(row.inputs) == task.inputs, row
        assert unlabelled == (row.label is None), row
        if row.label is not None and task.labels and row.label not in task.labels:
            raise ValueError(f"{task.name}: {split} has the label {row.label!r}; known are {', '.join(task.labels)}")
    if unlabelled and not split.startswith("test"):
        raise ValueError(f"{task.name}: the rows of the {split} split have no label")


def _check_unknown(name: str, like: Path, facts: Mapping[str, Any], say: Callable[[str], None]) -> None:
    share = facts["unknown"] / facts["tokens"]
    text = f"{name}: {100 * share:.1f} % of the tokens are unknown to the dictionary of --like {like}"
    if share > REFUSED_UNKNOWN:
        raise ValueError(f"{text}; a model cannot learn from them. Is it the folder of the right pretraining?")
    if share > MANY_UNKNOWN:
        say(f"Warning: {text}")


def _write_inputs(
    folder: Path, split: str, rows: list[Example], task: Task, dictionary: Any, encoder: encode.Encoder
) -> dict[str, Any]:
    """Write the data sets of the inputs of a split; return what the note says of them."""
    lengths: list[list[int]] = []
    unknown = 0
    for number in range(task.inputs):
        symbols = (line for chunk, _ in encoder.lines(row.inputs[number] for row in rows) for line in chunk)
        found, missed = write_dataset(folder / f"input{number}" / split, dictionary, symbols)
        lengths.append(found)
        unknown += missed
    longest = max(map(task.joined_length, zip(*lengths, strict=True)))
    return {"rows": len(rows), "tokens": sum(map(sum, lengths)), "unknown": unknown, "max_length": longest}


def _write_labels(
    folder: Path, task: Task, splits: Mapping[str, Examples], notes: Mapping[str, dict[str, Any]]
) -> None:
    """Write the labels; fairseq-preprocess would order the classes by frequency, which may differ between runs."""
    from fairseq.data import Dictionary

    folder.mkdir()
    labels = {split: [row.label for row in examples.rows] for split, examples in splits.items()}
    if task.labels:
        counts = Counter(labels["train"])
        (folder / "dict.txt").write_text("".join(f"{label} {counts[label]}\n" for label in task.labels))
        dictionary = Dictionary.load(str(folder / "dict.txt"))
    for split, values in labels.items():
        if values[0] is None:
            continue
        if task.labels:
            write_dataset(folder / split, dictionary, map(str, values))
            found = Counter(values)
            notes[split]["labels"] = {label: found[label] for label in task.labels}
            notes[split]["majority"] = max(found.values()) / len(values)
        else:
            numbers = [float(value) for value in values if value is not None]
            (folder / f"{split}.label").write_text("".join(f"{number}\n" for number in numbers))
            mean = math.fsum(numbers) / len(numbers)
            notes[split]["values"] = {"least": min(numbers), "mean": mean, "largest": max(numbers)}


def write_dataset(path: Path, dictionary: Any, lines: Iterable[str]) -> tuple[list[int], int]:
    """Write lines of symbols to ``path.bin`` and ``path.idx`` as fairseq-preprocess would, each with its end.

    Returns:
        Tokens of each line, and unknown tokens of all.
    """
    from fairseq.data import indexed_dataset

    builder = indexed_dataset.make_builder(f"{path}.bin", impl="mmap", vocab_size=len(dictionary))
    lengths, unknown = [], 0
    for line in lines:
        ids = dictionary.encode_line(line, add_if_not_exist=False)
        builder.add_item(ids)
        lengths.append(len(ids))
        unknown += int((ids == dictionary.unk()).sum())
    builder.finalize(f"{path}.idx")
    return lengths, unknown
