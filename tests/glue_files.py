"""Small GLUE files in the exact layouts of the official ones."""

from collections.abc import Callable
from pathlib import Path

from tests.helpers import sentences

PARSES = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
MNLI = ["index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2"]
DEV_LABELS = [f"label{i}" for i in range(1, 6)]
STSB = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
MRPC_IDS = ["#1 ID", "#2 ID", "#1 String", "#2 String"]
NLI = ("neutral", "contradiction", "entailment")
# Task -> file -> its columns; those of CoLA's labelled files are not written into them.
COLUMNS = {
    "MNLI": {
        "train.tsv": [*MNLI, "label1", "gold_label"],
        "dev_matched.tsv": [*MNLI, *DEV_LABELS, "gold_label"],
        "dev_mismatched.tsv": [*MNLI, *DEV_LABELS, "gold_label"],
        "test_matched.tsv": MNLI,
        "test_mismatched.tsv": MNLI,
    },
    "QNLI": {
        "train.tsv": ["index", "question", "sentence", "label"],
        "dev.tsv": ["index", "question", "sentence", "label"],
        "test.tsv": ["index", "question", "sentence"],
    },
    "QQP": {
        "train.tsv": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        "dev.tsv": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        "test.tsv": ["id", "question1", "question2"],
    },
    "SST-2": {"train.tsv": ["sentence", "label"], "dev.tsv": ["sentence", "label"], "test.tsv": ["index", "sentence"]},
    "MRPC": {
        "train.tsv": ["Quality", *MRPC_IDS],
        "dev.tsv": ["Quality", *MRPC_IDS],
        "test.tsv": ["index", *MRPC_IDS],
    },
    "CoLA": {
        "train.tsv": ["source", "label", "star", "sentence"],
        "dev.tsv": ["source", "label", "star", "sentence"],
        "test.tsv": ["index", "sentence"],
    },
    "RTE": {
        "train.tsv": ["index", "sentence1", "sentence2", "label"],
        "dev.tsv": ["index", "sentence1", "sentence2", "label"],
        "test.tsv": ["index", "sentence1", "sentence2"],
    },
    "STS-B": {"train.tsv": [*STSB, "score"], "dev.tsv": [*STSB, "score"], "test.tsv": STSB},
}
LABELS: dict[str, Callable[[int], str]] = {
    "MNLI": lambda i: NLI[i % 3],
    "QNLI": lambda i: ("entailment", "not_entailment")[i % 2],
    "RTE": lambda i: ("entailment", "not_entailment")[i % 2],
    "STS-B": lambda i: ("5.000", "0.000", "2.500", "3.800")[i % 4],
}
INPUTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String"}
ROWS = 12


def table(task: str, file: str, rows: int = ROWS) -> list[list[str]]:
    """Header and rows of a file."""
    columns = COLUMNS[task][file]
    texts = iter(sentences(2 * rows, seed=len(task) + len(file)))

    def cell(column: str, i: int) -> str:
        if column in INPUTS:
            return next(texts)
        if column in ("gold_label", "label", "is_duplicate", "Quality", "score"):
            return LABELS.get(task, lambda i: str((i % 3) // 2))(i)
        if column.endswith(" ID"):
            return str(700_000 + 10 * i + int(column[1]))
        return "*" if column == "star" and i % 3 < 2 else "" if column == "star" else f"{column}{i}"

    return [columns, *([cell(column, i) for column in columns] for i in range(rows))]


def text_of(task: str, file: str, rows: list[list[str]]) -> str:
    """Content of a file: CoLA's labelled ones have no header, MRPC's begin with a byte order mark."""
    if task == "CoLA" and file != "test.tsv":
        rows = rows[1:]
    return ("\ufeff" if task == "MRPC" else "") + "".join("\t".join(row) + "\n" for row in rows)


def write_glue(folder: Path, rows: int = ROWS) -> Path:
    """Write the files of all tasks, each in the folder that it has in the zip files."""
    for task, files in COLUMNS.items():
        (folder / task).mkdir(parents=True)
        for file in files:
            (folder / task / file).write_text(text_of(task, file, table(task, file, rows)), encoding="utf-8")
    return folder
