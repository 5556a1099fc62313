"""The tasks of sentence pairs and of multiple choice on small folders: what they read, build and refuse."""

import pytest
import torch
from fairseq import options, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics

import fairseq_transnorm  # noqa: F401  (registers)
from fairseq_transnorm.criterions.dslm_sentence_ranking import DslmSentenceRankingCriterion
from fairseq_transnorm.data.classification import Task, write_dataset

WORDS = ("a", "b", "c", "d", "e")
PAIRS = [("a b", "c", "entailment"), ("c", "d d", "contradiction"), ("e", "a", "neutral")]
MNLI = Task("MNLI", 2, ("contradiction", "entailment", "neutral"), layout="bert")
CHOICE = Task("choice", 3, ("A", "B"), layout="choices")
CHOICES = [("a b", "c d", "e", "B"), ("e e e e", "a", "b", "A")]


def write_folder(folder, task, rows, split="valid"):
    (folder / "label").mkdir(parents=True, exist_ok=True)
    (folder / "label/dict.txt").write_text("".join(f"{label} 1\n" for label in task.labels))
    for number in range(task.inputs):
        part = folder / f"input{number}"
        part.mkdir(exist_ok=True)
        (part / "dict.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
        write_dataset(part / split, Dictionary.load(str(part / "dict.txt")), [row[number] for row in rows])
    if task.labels:
        labels = Dictionary.load(str(folder / "label/dict.txt"))
        write_dataset(folder / "label" / split, labels, [row[-1] for row in rows])
    else:
        (folder / f"label/{split}.label").write_text("".join(f"{row[-1]}\n" for row in rows))
    return folder


def set_up(folder, task, *flags, arch="dslm_bert_tiny"):
    """The task and the whole config, from flags as fairseq-train has them."""
    flags = [str(folder), *task.train_args(), "--arch", arch, *map(str, flags)]
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))
    return tasks.setup_task(cfg.task), cfg


def words_of(task, tokens):
    return " ".join(task.source_dictionary[token] for token in tokens)


def test_pairs_become_one_sequence_with_two_segments(tmp_path):
    task, _ = set_up(write_folder(tmp_path, MNLI, PAIRS), MNLI, "--max-positions", 5)
    data = task.load_dataset("valid")
    batch = data.collater([data[0], data[1]])
    assert [words_of(task, row) for row in batch["net_input"]["src_tokens"]] == [
        "<s> a b </s> </s>",
        "<s> c </s> d </s>",
    ]
    assert batch["net_input"]["segment_ids"].tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]
    assert batch["target"].tolist() == [[1], [0]], "in the order of label/dict.txt"
    assert batch["id"].tolist() == [0, 1]
    assert task.max_positions() == 5


def test_single_sentences_and_numbers(tmp_path):
    task = Task("scores", 1, (), layout="bert")
    task, _ = set_up(write_folder(tmp_path, task, [("a b", 0.5), ("c", 2.0)]), task)
    data = task.load_dataset("valid")
    batch = data.collater([data[0], data[1]])
    assert [words_of(task, row) for row in batch["net_input"]["src_tokens"]] == ["<s> a b </s>", "<s> c </s> <pad>"]
    assert batch["net_input"]["segment_ids"].max() == 0
    assert batch["target"].tolist() == [[0.5], [2.0]]


def test_a_model_without_segments_takes_single_sentences_but_no_pairs(tmp_path):
    single = Task("single", 1, ("0", "1"), layout="bert")
    for arch, flags in (("transnormer_mlm_tiny", []), ("dslm_bert_tiny", ["--num-segments", 0])):
        task, cfg = set_up(write_folder(tmp_path / "1", single, [("a", "1")]), single, *flags, arch=arch)
        data, model = task.load_dataset("valid"), task.build_model(cfg.model)
        batch = data.collater([data[0]])
        logits, _ = model(**batch["net_input"], classification_head_name="sentence_classification_head")
        assert logits.shape == (1, 2)
        for kind, rows in ((MNLI, PAIRS), (CHOICE, CHOICES))[: 1 + len(flags)]:
            task, cfg = set_up(write_folder(tmp_path / kind.name, kind, rows), kind, *flags, arch=arch)
            message = rf"{cfg.task._name}: .* two segments a sequence, but the model {arch} has embeddings of 0; start"
            with pytest.raises(ValueError, match=message):
                task.build_model(cfg.model)


def test_options_are_scored_with_the_text(tmp_path):
    task, cfg = set_up(write_folder(tmp_path, CHOICE, CHOICES), CHOICE, "--max-option-length", 1)
    data = task.load_dataset("valid")
    batch = data.collater([data[0], data[1]])
    assert [words_of(task, row) for row in batch["net_input"]["src_tokens"]] == [
        "<s> c </s> a b </s> <pad> <pad>",
        "<s> e </s> a b </s> <pad> <pad>",
        "<s> a </s> e e e e </s>",
        "<s> b </s> e e e e </s>",
    ]
    assert batch["target"].tolist() == [[1], [0]]
    model = task.build_model(cfg.model).eval()
    criterion = task.build_criterion(cfg.criterion)
    loss, size, log = criterion(model, batch)
    assert (size, log["nsentences"], log["ntokens"]) == (2, 2, 28)
    logits = [
        model(**data.collater([data[row]])["net_input"], classification_head_name="sentence_classification_head")[0]
        for row in (0, 1)
    ]
    assert [logit.shape for logit in logits] == [(2, 1), (2, 1)], "one logit an option"
    each = [torch.log_softmax(logit[:, 0], 0)[right] for logit, right in zip(logits, (1, 0), strict=True)]
    torch.testing.assert_close(loss, -sum(each))
    assert log["ncorrect"] == sum(int(logit.argmax() == right) for logit, right in zip(logits, (1, 0), strict=True))


def test_accuracy_is_that_of_all_questions():
    with metrics.aggregate() as logged:
        logs = [{"loss": torch.tensor(2.0), "nsentences": 3, "ncorrect": torch.tensor(3)}]
        logs.append({"loss": torch.tensor(1.0), "nsentences": 1, "ncorrect": torch.tensor(0)})
        DslmSentenceRankingCriterion.reduce_metrics([*logs, {}])
    values = logged.get_smoothed_values()
    assert values["accuracy"] == 75.0
    assert values["loss"] == pytest.approx(0.75 / 0.6931, abs=1e-3)
    assert all(type(value) is float for value in values.values()), "torch's safe loader takes no others"


def test_what_cannot_be_read_is_refused(tmp_path):
    folder = write_folder(tmp_path / "pairs", MNLI, PAIRS)
    task, _ = set_up(folder, MNLI)
    with pytest.raises(FileNotFoundError, match=r"no .*/input1/train\.idx; in .* there are input0/valid\.idx, input1"):
        task.load_dataset("train")
    two = Task("MNLI", 2, ("contradiction", "entailment"), layout="bert")
    with pytest.raises(ValueError, match=r"valid of .*: the label of row 2 is none of the first 2 of label/dict\.txt"):
        set_up(folder, two)[0].load_dataset("valid")
    (folder / "label/valid.idx").unlink()
    assert task.load_dataset("valid").targets is None, "as of a test set"
    with pytest.raises(ValueError, match=r"dslm_sentence_prediction: valid of .* has no labels, .* nothing to score"):
        task.get_batch_iterator(task.dataset("valid"))
    with pytest.raises(ValueError, match="dslm_sentence_prediction: --num-classes 0; at least 1"):
        set_up(folder, MNLI, "--num-classes", 0)
    (folder / "input1/dict.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match=r"input1/dict\.txt and .*input0/dict\.txt differ"):
        set_up(folder, MNLI)
    folder = write_folder(tmp_path / "choices", CHOICE, CHOICES)
    with pytest.raises(FileNotFoundError, match=r"dslm_sentence_ranking: no .*input3/valid\.idx"):
        set_up(folder, CHOICE, "--num-classes", 3)[0].load_dataset("valid")
    with pytest.raises(ValueError, match="--max-option-length 128 with --max-positions 64: 1 to 61"):
        set_up(folder, CHOICE, "--max-positions", 64)[0].load_dataset("valid")


def test_only_training_is_shuffled_and_only_where_it_is_asked_for(tmp_path):
    rows = [(" ".join("ab" * (12 - row)), "c", "neutral") for row in range(12)]
    for split in ("train", "valid"):
        write_folder(tmp_path, MNLI, rows, split)
    by_length = list(range(11, -1, -1))
    for flags, ordered in (([], {"valid"}), (["--no-shuffle"], {"train", "valid"})):
        task, _ = set_up(tmp_path, MNLI, *flags)
        orders = {split: task.load_dataset(split).ordered_indices().tolist() for split in ("train", "valid")}
        assert {split for split, order in orders.items() if order == by_length} == ordered
        assert sorted(orders["train"]) == list(range(12))


def test_flags_of_a_task():
    assert CHOICE.train_args()[:4] == ["--task", "dslm_sentence_ranking", "--criterion", "dslm_sentence_ranking"]
    assert MNLI.train_args()[1] == "dslm_sentence_prediction"
    assert "--separator-token" not in MNLI.train_args()
    assert MNLI.joined_length([6, 5]) == CHOICE.joined_length([6, 5]) == 12
    assert CHOICE.joined_length([100, 200, 3]) == 1 + 129 + 100
