"""The task on formal languages: which samples there are, their batches in any process, going on, and refusals."""

import copy
import json
from functools import cache
from itertools import islice

import numpy as np
import pytest
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from fairseq_transnorm.data import languages
from fairseq_transnorm.data.language_dataset import LanguageDataset
from fairseq_transnorm.data.language_samples import Samples
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.tasks.rasp_lang import RaspLangConfig, RaspLangTask
from tests import rasp_reference as slow

SMALL = {"max_length": 9, "train_size": 205, "valid_size": 12, "test_size": 7}


def task_of(language="sort_26_bos", **values):
    """The task with the options that have these names."""
    return RaspLangTask.setup_task(RaspLangConfig(_name="rasp_lang", language=language, **(SMALL | values)))


def iterate(task, epoch=1, workers=0, shards=1, shard=0, seed=1, split="train", size=50):
    """Return the iterator that fairseq-train asks for."""
    task.load_dataset(split)
    return task.get_batch_iterator(
        *(task.dataset(split), None, size, task.max_positions()),
        required_batch_size_multiple=8,
        seed=seed,
        num_workers=workers,
        epoch=epoch,
        num_shards=shards,
        shard_id=shard,
        data_buffer_size=10,
    )


def batches(task, *args, **kwargs):
    """Return the batches of an epoch, each as lists."""
    iterator = iterate(task, *args, **kwargs)
    return [plain(batch) for batch in iterator.next_epoch_itr(shuffle=iterator.dataset.shuffle)]


def plain(batch):
    inputs = batch["net_input"]
    return [batch["id"].tolist(), inputs["src_tokens"].tolist(), batch["target"].tolist(), batch["ntokens"]]


def texts(split, **values):
    task = task_of(**values)
    task.load_dataset(split)
    return task.dataset(split).texts


def test_the_splits_follow_each_other():
    for split, first, count in (("train", 0, 205), ("valid", 205, 12), ("test", 217, 7)):
        assert texts(split) == [slow.sample("sort_26", first + i, high=9) for i in range(count)]
    assert texts("valid", train_size=100)[0] == slow.sample("sort_26", 100, high=9)
    assert texts("test", min_length=5, max_length=6)[0] == slow.sample("sort_26", 217, 5, 6)
    assert Samples().indices("valid") == range(50_000, 51_000)
    assert Samples().indices("test") == range(51_000, 52_000)


def test_cropping_keeps_the_first_samples_and_their_numbers():
    whole = {split: texts(split) for split in ("train", "valid", "test")}
    for crop in ({"tiny": 3}, {"crop_train": 3}, {"tiny": 3, "crop_train": 9}, {"tiny": 9, "crop_all": 3}):
        assert texts("train", **crop) == whole["train"][:3]
        assert texts("valid", **crop) == whole["valid"][: crop.get("crop_all", 12)]
        assert texts("test", **crop) == whole["test"][: crop.get("crop_all", 7)]
    assert texts("test", crop_all=1000) == whole["test"]
    assert texts("train", overfit=True) == texts("valid", overfit=True) == texts("test", overfit=True)
    assert texts("test", overfit=True) == whole["train"][:1]


def test_short_sequences_that_splits_share_at_full_size():
    """How many the original code has."""
    sampler = languages.get("reverse_26").sampler
    train, valid, test = (Samples().draw(sampler, split) for split in ("train", "valid", "test"))
    known = set(train)
    assert (sum(text in known for text in valid), sum(text in known for text in test)) == (12, 14)


def test_the_dictionaries_hold_symbols_and_classes_only():
    task = task_of("hist_10_bos")
    assert task.source_dictionary.symbols == [*"abcdefghij", "§"]
    assert task.target_dictionary.symbols == [*map(str, range(11)), "§"]
    for dictionary, size in ((task.source_dictionary, 11), (task.target_dictionary, 12)):
        assert len(dictionary) == dictionary.pad() == size
        assert [dictionary.bos(), dictionary.eos(), dictionary.unk()] == [None] * 3
    assert [task_of(name).max_positions() for name in ("hist_10", "hist_10_bos", "dyck1_ptf_bos")] == [9, 10, 11]


def test_a_batch():
    data = LanguageDataset(languages.get("sort_10_bos_with_attns"), ["cab", "a"])
    batch = data.collater([1, 0])
    assert plain(batch) == [[1, 0], [[10, 0, 11, 11], [10, 2, 0, 1]], [[10, 0, 11, 11], [10, 0, 1, 2]], 6]
    assert batch["nsentences"] == 2
    assert batch["net_input"]["src_lengths"].tolist() == [2, 4]
    assert batch["attention_targets"].shape == (2, 2, 4, 4)
    assert batch["attention_targets"][0, 0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert task_of("sort_10_bos").real_tokens(batch).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert data.collater([]) == {}
    assert [data.size(0), data.num_tokens(1), *data.num_tokens_vec(np.array([1, 0]))] == [4, 2, 2, 4]
    assert "attention_targets" not in LanguageDataset(languages.get("sort_10_bos"), ["a"]).collater([0])


def test_outputs_that_are_no_class(monkeypatch):
    language = copy.copy(languages.get("hist_10"))
    object.__setattr__(language, "function", lambda text: ["11"] * len(text))
    with pytest.raises(ValueError, match="hist returned '11' for 'ab', which is none of its output classes"):
        LanguageDataset(language, ["ab"])


def test_batches_hold_as_many_samples_as_asked_for_and_are_new_in_each_epoch():
    epochs = [batches(task_of(), epoch) for epoch in (1, 2)]
    for found in epochs:
        assert sorted(len(ids) for ids, *_ in found) == [5, 50, 50, 50, 50], "not 48"
        assert sorted(i for ids, *_ in found for i in ids) == list(range(205))
    together = [{frozenset(ids) for ids, *_ in found} for found in epochs]
    assert not together[0] & together[1], "the same batches in another order"
    assert batches(task_of(), 1, seed=2) != epochs[0] == batches(task_of(), 1)
    valid = batches(task_of(), split="valid", size=5)
    assert [ids for ids, *_ in valid] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_one_iterator_goes_through_the_epochs_as_new_ones_do():
    """fairseq asks for an iterator before each epoch."""
    task = task_of()
    task.load_dataset("train")
    seen = []
    for epoch in (1, 2, 3):
        iterator = task.get_batch_iterator(task.dataset("train"), None, 50, epoch=epoch)
        seen.append([plain(batch) for batch in iterator.next_epoch_itr(shuffle=True)])
        task.load_dataset("valid")
        list(task.get_batch_iterator(task.dataset("valid"), None, 5, epoch=epoch).next_epoch_itr(shuffle=False))
    assert seen == [batches(task_of(), epoch) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_in_its_middle(workers):
    whole, stopped = batches(task_of(), 2), iterate(task_of(), 2, workers)
    seen = [plain(batch) for batch in islice(stopped.next_epoch_itr(shuffle=True), 2)]
    state = stopped.state_dict()
    assert (state["epoch"], state["iterations_in_epoch"]) == (2, 2)
    again = iterate(task_of(), state["epoch"], workers)
    again.load_state_dict(state)
    assert seen + [plain(batch) for batch in again.next_epoch_itr(shuffle=True)] == whole


def test_two_processes_share_the_samples():
    shares = [batches(task_of(), shards=2, shard=shard, size=21) for shard in (0, 1)]
    assert sorted(i for share in shares for ids, *_ in share for i in ids) == list(range(205))


def test_a_sample_that_is_too_long_is_not_left_out():
    task = task_of()
    task.load_dataset("train")
    with pytest.raises(Exception, match="is invalid"):
        task.get_batch_iterator(task.dataset("train"), None, 50, 9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"language": None}, "no --language given; `python preprocessing/languages.py list` shows all"),
        ({"language": "revrese_26"}, "unknown language 'revrese_26'; did you mean 'reverse_26'"),
        ({"min_length": 0}, "--min-length 0: at least 1"),
        ({"min_length": 10}, "--max-length 9 is less than --min-length 10"),
        ({"train_size": 0}, "--train-size 0: at least 1"),
        ({"valid_size": -1}, "--valid-size -1: at least 1"),
        ({"test_size": 0}, "--test-size 0: at least 1"),
        ({"tiny": -1}, "--tiny -1: 1 or more, or 0 for all"),
        ({"crop_train": -2}, "--crop-train -2: 1 or more, or 0 for all"),
        ({"crop_all": -1}, "--crop-all -1: 1 or more, or 0 for all"),
    ],
)
def test_options_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=f"rasp_lang: {message}") as raised:
        task_of(**values)
    assert "\n" not in str(raised.value)


def test_a_split_that_is_not_there():
    with pytest.raises(ValueError, match="no split 'valid1'; there are train, valid, test"):
        task_of().load_dataset("valid1")


@cache
def parsed():
    """What fairseq-train makes of a small run's flags; it takes a while."""
    flags = ["--task", "rasp_lang", "--arch", "rasp_transformer", "--rasp-dim", "8", "--criterion", "rasp_loss"]
    flags += ["--language", "hist_26", "--optimizer", "adam", "--lr", "0.1", "--cpu", "--batch-size", "50"]
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))


def trainer(folder, **values):
    """A trainer of fairseq's as fairseq-train makes it; values are those of options of the task."""
    cfg = copy.deepcopy(parsed())
    cfg.task = OmegaConf.merge(cfg.task, SMALL | values)
    cfg.checkpoint.save_dir = str(folder)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint after one update."""
    folder = tmp_path_factory.mktemp("rasp_lang")
    running = trainer(folder)
    running.begin_epoch(1)
    iterator = running.get_train_iterator(1)
    running.train_step([next(iterator.next_epoch_itr(shuffle=True))])
    running.consolidate_optimizer()  # the state that is saved asks for it
    running.save_checkpoint(str(folder / "c.pt"), {"train_iterator": iterator.state_dict(), "val_loss": None})
    return folder / "c.pt"


def test_a_run_goes_on_with_its_own_samples_only(checkpoint, tmp_path):
    same = trainer(tmp_path)
    same.load_checkpoint(str(checkpoint))
    same.begin_epoch(1)
    assert same.get_num_updates() == 1
    with pytest.raises(
        ValueError, match=r"rasp_lang: .*c\.pt was trained on hist_26, which has other outputs than --language sort_26;"
    ):
        trainer(tmp_path, language="sort_26").load_checkpoint(str(checkpoint))
    with pytest.raises(ValueError, match="was trained on hist_26, which has other symbols than --language hist_52;"):
        trainer(tmp_path, language="hist_52").load_checkpoint(str(checkpoint))
    for values, message in (
        ({"language": "hist2_26"}, "--language hist_26, not hist2_26; give the same"),
        ({"max_length": 12}, "--max-length 9, not 12; give the same, or begin a new run"),
        ({"train_size": 100, "tiny": 4}, "--train-size 205, not 100, --tiny 0, not 4"),
    ):
        other = trainer(tmp_path, **values)
        other.load_checkpoint(str(checkpoint))
        with pytest.raises(ValueError, match=r"rasp_lang: .*c\.pt was trained with " + message):
            other.begin_epoch(1)


def test_weights_of_a_run_begin_one_on_other_samples(checkpoint, tmp_path):
    other = trainer(tmp_path, max_length=12)
    other.load_checkpoint(str(checkpoint), reset_optimizer=True, reset_lr_scheduler=True)
    other.begin_epoch(1)
    assert other.get_num_updates() == 0


def test_a_checkpoint_is_loaded_without_data(checkpoint):
    run = load_run(checkpoint)
    assert (run.task.language.name, run.updates) == ("hist_26", 1)
    assert run.task.samples == Samples(**SMALL)
    state = run.task.state_dict()
    assert json.loads(json.dumps(state)) == state


def test_other_criterions_are_refused():
    with pytest.raises(ValueError, match="--criterion cross_entropy is not for this task; give --criterion rasp_loss"):
        task_of().build_criterion(OmegaConf.create({"_name": "cross_entropy"}))
