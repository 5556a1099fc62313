"""Folders for fairseq's sentence_prediction task: its own task reads what was put in."""

import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from fairseq_transnorm.data import classification
from fairseq_transnorm.data.binarize import Corpus, bpe_args, build, preprocess, read_note
from fairseq_transnorm.data.classification import Example, Examples, Task
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here
from tests.helpers import sentences

TEXT = {"train": sentences(100, seed=1), "valid": sentences(10, seed=2), "test": sentences(10, seed=3)}
# The second of the two classes is the more frequent one.
PAIRS = [Example((a, b), str(int(i % 4 > 0))) for i, (a, b) in enumerate(zip(TEXT["valid"], TEXT["test"], strict=True))]
PAIR = Task("pairs", 2, ("0", "1"), "mcc", ("--report-mcc",))


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    """A data folder of pretraining."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        preprocess_here(monkeypatch)
        out = tmp_path_factory.mktemp("classification") / "like"
        build(Corpus("made up", TEXT.__getitem__), out, Tokenization("sentencepiece", 70))
    return out


def load(out, note, split, **options):
    args = note["train_args"]
    classes = int(args[args.index("--num-classes") + 1])
    separator = int(args[args.index("--separator-token") + 1]) if "--separator-token" in args else None
    cfg = SentencePredictionConfig(
        data=str(out), num_classes=classes, init_token=0, separator_token=separator, **options
    )
    cfg.seed, cfg.no_shuffle, cfg.regression_target = 1, True, "--regression-target" in args
    task = SentencePredictionTask.setup_task(cfg)
    return task, task.load_dataset(split)


def test_pairs_with_labels_in_a_fixed_order(like, tmp_path):
    out = tmp_path / "out"
    tests = Examples([Example(row.inputs, None) for row in PAIRS[:3]])
    splits = {"train": Examples(PAIRS), "valid": Examples(PAIRS[:5], {"bad": {"blank line": 1}}), "test": tests}
    note = classification.build(PAIR, splits, out, like, about={"corpus": "none"})
    assert note == read_note(out)
    assert (out / "input0" / "dict.txt").read_bytes() == (like / "dict.txt").read_bytes()
    assert (out / "label" / "dict.txt").read_text() == "0 3\n1 7\n", "fairseq would put the frequent one first"
    assert bpe_args(out)[-1] == str(out / "sentencepiece.bpe.model")
    assert note["dictionary_sha256"] == read_note(like)["dictionary_sha256"]
    assert note["splits"]["valid"]["bad"] == {"blank line": 1}
    assert note["splits"]["train"]["labels"] == {"0": 3, "1": 7}
    assert note["splits"]["train"]["majority"] == 0.7
    assert not list((out / "label").glob("test*")), "no labels are known"

    task, data = load(out, note, "train")
    assert [int(data[i]["target"]) for i in range(len(data))] == [int(row.label) for row in PAIRS]
    lengths = [len(data[i]["net_input.src_tokens"]) for i in range(len(data))]
    assert max(lengths) == note["splits"]["train"]["max_length"] == note["max_length"]
    assert sum(lengths) - 2 * len(data) == note["splits"]["train"]["tokens"], "one more symbol before each input"
    first = data[0]["net_input.src_tokens"]
    bos, eos = task.source_dictionary.bos(), task.source_dictionary.eos()
    assert first[0] == bos
    assert (first == eos).sum() == 3, "the end of each input, and the separator"
    _, unlabelled = load(out, note, "test")
    assert "target" not in unlabelled[0]


def test_regression(like, tmp_path):
    values = [0.0, 0.76, 1.0]
    rows = Examples([Example((text,), value) for text, value in zip(TEXT["valid"], values, strict=False)])
    task = Task("score", 1, (), "pearson_and_spearman", ("--report-pearson-and-spearman",))
    note = classification.build(task, {"train": rows, "valid": rows}, tmp_path / "out", like)
    assert note["train_args"][-2:] == ["--regression-target", "--report-pearson-and-spearman"]
    assert note["splits"]["train"]["values"] == {"least": 0.0, "mean": pytest.approx(1.76 / 3), "largest": 1.0}
    _, data = load(tmp_path / "out", note, "valid")
    assert [data[i]["target"] for i in range(3)] == [[value] for value in values]


def test_data_sets_are_those_of_fairseq_preprocess(like, tmp_path, monkeypatch):
    preprocess_here(monkeypatch)
    lines = ["▁a ▁letter", "", "zzz ▁a"]
    (tmp_path / "text").write_text("".join(line + "\n" for line in lines))
    (tmp_path / "theirs").mkdir()
    preprocess({"train": tmp_path / "text"}, tmp_path / "theirs", 1, ["--srcdict", str(like / "dict.txt")])
    dictionary = Dictionary.load(str(like / "dict.txt"))
    lengths, unknown = classification.write_dataset(tmp_path / "ours", dictionary, lines)
    assert (lengths[1], unknown) == (1, 1 if dictionary.index("▁letter") != dictionary.unk() else 2)
    for end in ("bin", "idx"):
        assert (tmp_path / f"ours.{end}").read_bytes() == (tmp_path / "theirs" / f"train.{end}").read_bytes()
    assert len(data_utils.load_indexed_dataset(str(tmp_path / "ours"), dictionary, "mmap")) == 3


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": PAIRS, "valid": []}, "pairs: the valid split has no usable row"),
        ({"train": PAIRS, "valid": [Example(("a", "b"), "2")]}, "valid has the label '2'; known are 0, 1"),
        ({"train": PAIRS, "valid": [Example(("a", "b"), None)]}, "the rows of the valid split have no label"),
    ],
)
def test_what_cannot_be_used_leaves_nothing(splits, message, like, tmp_path):
    with pytest.raises(ValueError, match=message):
        classification.build(PAIR, {name: Examples(rows) for name, rows in splits.items()}, tmp_path / "out", like)
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_folder(like, tmp_path, monkeypatch):
    splits = {"train": Examples(PAIRS), "valid": Examples(PAIRS)}
    classification.build(PAIR, splits, tmp_path / "out", like)
    with pytest.raises(FileExistsError, match="is there already"):
        classification.build(PAIR, splits, tmp_path / "out", like)
    monkeypatch.setattr(classification, "_write_labels", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        classification.build(PAIR, splits, tmp_path / "out", like, overwrite=True)
    assert (tmp_path / "out" / "label" / "train.bin").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dictionary_that_does_not_know_the_text_is_told(like, tmp_path, monkeypatch):
    def share(unknown):
        rows = [Example(("the" if row >= unknown else "\u2603\u2603", "king"), "0") for row in range(20)]
        said = []
        splits = {"train": Examples(rows), "valid": Examples(PAIRS)}
        note = classification.build(PAIR, splits, tmp_path / str(unknown), like, say=said.append)
        return note["splits"]["train"]["unknown"], [text for text in said if "unknown" in text]

    assert share(0) == (0, [])
    found, (warning,) = share(19)
    assert found >= 19
    assert "pairs: train: " in warning
    assert f"% of the tokens are unknown to the dictionary of --like {like}" in warning
    classification._check_unknown("x", like, {"unknown": 50, "tokens": 100}, str)
    with pytest.raises(ValueError, match=r"x: 51\.0 % of the tokens are unknown .*the right pretraining"):
        classification._check_unknown("x", like, {"unknown": 51, "tokens": 100}, str)
    monkeypatch.setattr(classification, "REFUSED_UNKNOWN", 0.2)  # of a sentencepiece, each word begins with a known one
    rows, out = [Example(("\u2603", "\u2603"), "0")], tmp_path / "out"
    with pytest.raises(ValueError, match="pairs: train: 33"):
        classification.build(PAIR, {"train": Examples(rows), "valid": Examples(PAIRS)}, out, like)
    assert not out.exists()


def test_a_split_without_rows_names_its_file(like, tmp_path):
    splits = {"train": Examples([], name="RTE train, train.tsv")}
    with pytest.raises(ValueError, match=r"RTE train, train\.tsv: the train split has no usable row"):
        classification.build(PAIR, splits, tmp_path / "out", like)
