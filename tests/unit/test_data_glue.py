r"""GLUE's official layouts: quotes are text, only \n ends a line, and bad rows are counted and refused."""

import sys

import pytest

from fairseq_transnorm.data.classification import Example
from fairseq_transnorm.data.glue import TASKS, Reader, for_bert, from_datasets, from_rows, locate, read_files
from tests.glue_files import COLUMNS, INPUTS, ROWS, table, text_of, write_glue

TRAIN = {task: next(iter(files)) for task, files in COLUMNS.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


def read(task, folder):
    return dict(read_files(TASKS[task], folder))


def test_all_tasks_are_there():
    assert set(TASKS) == set(COLUMNS)


@pytest.mark.parametrize("task", COLUMNS)
def test_official_layout(task, source):
    readers = read(task, source)
    assert list(readers) == ["train", "valid", *(["valid1", "test", "test1"] if task == "MNLI" else ["test"])]
    for (split, reader), file in zip(readers.items(), COLUMNS[task], strict=True):
        columns, *rows = table(task, file)
        assert not reader.bad
        assert len(reader.rows) == ROWS
        # In the order of the columns the sentences of these files are first and second.
        wanted = [tuple(text for column, text in zip(columns, row, strict=True) if column in INPUTS) for row in rows]
        assert [row.inputs for row in reader.rows] == wanted
        assert {row.label is None for row in reader.rows} == {split.startswith("test")}
    labels = {row.label for row in readers["train"].rows}
    assert labels == {0.0, 0.5, 0.76, 1.0} if task == "STS-B" else set(TASKS[task].task.labels)
    # The folder of the task alone does as well.
    assert read(task, source / task)["train"].rows == readers["train"].rows


def put(tmp_path, task, text, file=None):
    """A folder of the task whose ``file`` (by default, train) holds ``text``."""
    for name in COLUMNS[task]:
        (tmp_path / name).write_text(text_of(task, name, table(task, name)), encoding="utf-8")
    (tmp_path / (file or TRAIN[task])).write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path


def test_quotes_and_rare_line_ends_are_text(tmp_path):
    text = 'sentence\tlabel\n"never closed\t1\n""\t0\n a "b"  c \t1\none\u2028two\x0bthree\x85four\t0\n'
    train = read("SST-2", put(tmp_path, "SST-2", text))["train"]
    assert not train.bad
    assert [row.inputs[0] for row in train.rows] == ['"never closed', '""', 'a "b" c', "one two three four"]


@pytest.mark.parametrize("task", ["MRPC", "QQP"])  # a text, or the label, is the last field
def test_windows_line_ends(task, tmp_path):
    text = text_of(task, "train.tsv", table(task, "train.tsv"))
    plain = read(task, put(tmp_path, task, text))["train"]
    windows = read(task, put(tmp_path, task, text.replace("\n", "\r\n")))["train"]
    assert windows.rows == plain.rows
    assert len(windows.rows) == ROWS
    assert not windows.bad


BAD = {
    "blank line": "",
    "missing field": "7\tq1\tq2\tno second question",
    "extra field": "7\tq1\tq2\ta\tb\t1\tmore",
    "empty sentence": "7\tq1\tq2\t \tb\t1",
    "unknown label": "7\tq1\tq2\ta\tb\t2",
}


@pytest.mark.parametrize(("reason", "line"), BAD.items())
def test_bad_rows_are_counted_by_reason(reason, line, tmp_path):
    good = text_of("QQP", "train.tsv", table("QQP", "train.tsv"))
    train = read("QQP", put(tmp_path, "QQP", f"{good}{line}\n{line}\n"))["train"]
    assert train.bad == {reason: 2}
    assert len(train.rows) == ROWS
    assert f"2 {reason} (first: line 14" in train.describe()
    with pytest.raises(ValueError, match=r"QQP train, train\.tsv: 2 bad rows \(14\.3 %\).* more than --max-bad 0\.1 "):
        train.finish(0.1)
    assert train.finish(0.15).facts == {"bad": {reason: 2}}


def test_unused_bytes_and_the_limit_itself(tmp_path):
    good = text_of("SST-2", "train.tsv", table("SST-2", "train.tsv")).encode()
    train = read("SST-2", put(tmp_path, "SST-2", good + b"caf\xe9\t1\n"))["train"]
    assert train.bad == {"not UTF-8": 1}
    train.finish(1 / 13)


@pytest.mark.parametrize("score", ["nan", "inf", "-0.1", "5.001", "five", ""])
def test_scores_out_of_range(score, tmp_path):
    rows = table("STS-B", "train.tsv")
    rows[1][-1] = score
    train = read("STS-B", put(tmp_path, "STS-B", text_of("STS-B", "train.tsv", rows)))["train"]
    assert train.bad == {"score that is not in 0 to 5": 1}


def test_rows_without_agreement_of_mnli(tmp_path):
    rows = table("MNLI", "train.tsv")
    rows[3][-1] = "-"
    train = read("MNLI", put(tmp_path, "MNLI", text_of("MNLI", "train.tsv", rows)))["train"]
    assert "1 unknown label (first: line 4: '-')" in train.describe()


def test_mrpc_of_its_authors(tmp_path):
    rows = table("MRPC", "train.tsv")
    (tmp_path / "msr_paraphrase_train.txt").write_text(text_of("MRPC", "train.tsv", rows))
    (tmp_path / "msr_paraphrase_test.txt").write_text(text_of("MRPC", "train.tsv", rows[:5]))
    splits = read("MRPC", tmp_path)
    assert {split: len(reader.rows) for split, reader in splits.items()} == {"train": ROWS, "valid": 4}
    (tmp_path / "dev_ids.tsv").write_text("".join(f"{row[1]}\t{row[2]}\n" for row in rows[2:4]))
    splits = read("MRPC", tmp_path)
    assert {split: len(reader.rows) for split, reader in splits.items()} == {"train": ROWS - 2, "valid": 2, "test": 4}
    assert splits["valid"].rows[0].inputs == tuple(rows[2][3:])
    assert splits["test"].rows[0].label is not None, "these have labels"
    (tmp_path / "dev_ids.tsv").unlink()
    (tmp_path / "msr_paraphrase_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks msr_paraphrase_test\.txt, and dev_ids\.tsv"):
        read("MRPC", tmp_path)


def test_missing_files(tmp_path, source):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").touch()
    with pytest.raises(
        FileNotFoundError, match=r"RTE: .*RTE lacks dev\.tsv; it has: train\.tsv.*the folder that holds"
    ):
        locate(TASKS["RTE"], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"MRPC: .* lacks train\.tsv, dev\.tsv, or msr_paraphrase.*it has: RTE"):
        locate(TASKS["MRPC"], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is a file; unzip it first"):
        locate(TASKS["RTE"], source / "RTE" / "dev.tsv")
    with pytest.raises(FileNotFoundError, match=r"is not there; it should be the folder"):
        locate(TASKS["RTE"], tmp_path / "none")


def test_another_file_and_a_missing_test_set(tmp_path):
    with pytest.raises(ValueError, match=r"train\.tsv, line 1: no column sentence1, sentence2, label in the header"):
        read("RTE", put(tmp_path, "RTE", "a\tb\n"))
    put(tmp_path, "CoLA", text_of("CoLA", "train.tsv", table("CoLA", "train.tsv")))
    (tmp_path / "test.tsv").unlink()
    assert list(read("CoLA", tmp_path)) == ["train", "valid"], "test sets are not needed"


@pytest.mark.parametrize(
    ("task", "row", "example"),
    [
        ("MNLI", {"premise": "a", "hypothesis": 'b "c"', "label": 0}, (("a", 'b "c"'), "entailment")),
        ("MNLI", {"premise": "a", "hypothesis": "b", "label": 2}, (("a", "b"), "contradiction")),
        ("QNLI", {"question": "a", "sentence": "b", "label": 1}, (("a", "b"), "not_entailment")),
        ("RTE", {"sentence1": "a", "sentence2": "b", "label": 0}, (("a", "b"), "entailment")),
        ("QQP", {"question1": "a", "question2": "b", "label": 1}, (("a", "b"), "1")),
        ("MRPC", {"sentence1": "a", "sentence2": "b", "label": 0}, (("a", "b"), "0")),
        ("SST-2", {"sentence": "a\n b", "label": 1}, (("a b",), "1")),
        ("CoLA", {"sentence": "a", "label": 0}, (("a",), "0")),
        ("STS-B", {"sentence1": "a", "sentence2": "b", "label": 3.8}, (("a", "b"), 0.76)),
    ],
)
def test_rows_of_datasets(task, row, example):
    reader = from_rows(TASKS[task], "train", [row, row | {"label": -1}])
    assert reader.rows == [Example(*example)]
    assert reader.bad.total() == 1, "a label is missing outside a test set"
    assert from_rows(TASKS[task], "test", [row | {"label": -1}]).rows == [Example(example[0], None)]


def test_datasets_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'fairseq_transnorm\[data\]'"):
        next(from_datasets(TASKS["RTE"]))


def test_berts_recipe_cleans_text_and_orders_classes(tmp_path):
    rows = table("MNLI", "train.tsv")
    rows[1][rows[0].index("sentence1")] = "one . two ."
    folder = put(tmp_path, "MNLI", text_of("MNLI", "train.tsv", rows))
    mnli = for_bert(TASKS["MNLI"])
    train = dict(read_files(mnli, folder))["train"]
    assert train.rows[0].inputs[0] == "one. two ."
    assert [row.label for row in train.rows] == [row.label for row in read("MNLI", folder)["train"].rows]
    assert mnli.task.labels == ("contradiction", "entailment", "neutral")
    assert rows[0].index("sentence1") == 8, "the official columns, counted from 0"
    assert rows[0].index("sentence2") == 9
    assert rows[0][-1] == "gold_label"
    assert for_bert(TASKS["QNLI"]).task.labels == TASKS["QNLI"].task.labels


def test_a_column_named_twice_is_refused(tmp_path):
    source = write_glue(tmp_path)
    path = source / "RTE/dev.tsv"
    text = path.read_text()
    path.write_text(text.replace("index\t", "index\tsentence1\t").replace("\n", "\tx\n"))
    with pytest.raises(ValueError, match=r"dev\.tsv, line 1: the header names sentence1 twice"):
        dict(read_files(TASKS["RTE"], source))


def test_text_that_cannot_be_written_is_a_bad_row():
    reader = Reader(TASKS["SST-2"], "SST-2 train")
    for text in ("good", "a\0b", "\ud800"):
        reader.add("line 1", [text], "1")
    assert reader.bad == {"NUL character": 1, "half a surrogate pair": 1}
    assert len(reader.rows) == 1
