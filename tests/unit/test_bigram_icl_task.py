"""The task of sequences with triggers: its dictionary, its batches in any process, and what it refuses."""

import copy
import json
import logging
from dataclasses import MISSING, fields
from functools import cache
from itertools import islice

import pytest
from fairseq import options, tasks
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

import fairseq_transnorm  # noqa: F401  (registers)
from fairseq_transnorm.criterions.bigram_icl import BigramICLCriterionConfig
from fairseq_transnorm.data.bigram_statistics import write_statistics
from fairseq_transnorm.measure import describe
from fairseq_transnorm.measure.checkpoints import load_run, read_mapped, trained_names
from fairseq_transnorm.measure.text import token_windows
from fairseq_transnorm.tasks.bigram_icl import MODELS, BigramICLConfig, BigramICLTask
from tests.trigger_reference import LIGHTHOUSE, lighthouse

SMALL = {"tokens_per_sample": 16, "epoch_sequences": 40, "valid_sequences": 12}


def task_of(corpus=LIGHTHOUSE, **values):
    """The task with the options that have these names."""
    corpus = None if corpus is None else str(corpus)
    return BigramICLTask.setup_task(BigramICLConfig(_name="bigram_icl", **(SMALL | {"corpus": corpus} | values)))


@cache
def parsed():
    """What fairseq-train makes of a small run's flags; it takes a while."""
    flags = ["--task", "bigram_icl", "--arch", "ihead_basic", "--ihead-dim", "16", "--criterion", "bigram_icl"]
    flags += ["--optimizer", "sgd", "--lr", "0.1", "--cpu", "--tokens-per-sample", "16", "--epoch-sequences", "40"]
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))


def trainer(corpus=LIGHTHOUSE, **values):
    """A trainer of fairseq's as fairseq-train makes it; values are those of options of the task."""
    cfg = copy.deepcopy(parsed())
    cfg.task = OmegaConf.merge(cfg.task, {"corpus": str(corpus)} | values)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def iterate(task, epoch=1, workers=0, shards=1, shard=0, size=8):
    """Return the iterator of an epoch of training that fairseq-train asks for."""
    task.load_dataset("train")
    # with a buffer, which is fairseq's default, processes that load data end at once
    return task.get_batch_iterator(
        *(task.dataset("train"), None, size),
        num_workers=workers,
        epoch=epoch,
        num_shards=shards,
        shard_id=shard,
        data_buffer_size=10,
    )


def batches(task, epoch=1, workers=0, shards=1, shard=0, size=8):
    """Return all batches of an epoch."""
    return list(iterate(task, epoch, workers, shards, shard, size).next_epoch_itr(shuffle=True))


def rows(found):
    """Sequences by their number, with all that belongs to them."""
    return {
        int(number): [inputs.tolist(), target.tolist(), counters.tolist(), triggers.tolist()]
        for batch in found
        for number, inputs, target, counters, triggers in zip(
            *(batch["id"], batch["net_input"]["src_tokens"], batch["target"], batch["counters"], batch["triggers"]),
            strict=True,
        )
    }


def test_the_numbers_of_the_dictionary_are_those_of_the_corpus(tmp_path):
    task = task_of(fixed_triggers=True, num_triggers=3, trigger_rank_offset=1)
    dictionary = task.source_dictionary
    assert dictionary is task.target_dictionary
    assert tuple(dictionary.symbols) == tuple(sorted(set(LIGHTHOUSE.read_text()))) == task.statistics.vocab
    assert len(dictionary) == 76
    assert [dictionary[0], dictionary.index(" "), dictionary.index("y")] == ["\n", 1, 75]
    assert [dictionary.pad(), dictionary.bos(), dictionary.eos(), dictionary.unk()] == [None] * 4
    assert "".join(dictionary[i] for i in task.fixed_triggers) == "ate", "the most frequent but the space, rising"
    assert task_of().fixed_triggers is None
    write_statistics(lighthouse(), tmp_path / "s.json")
    same = task_of(None, bigram_stats=str(tmp_path / "s.json"))
    assert same.state_dict() == task.state_dict()
    assert json.loads(json.dumps(task.state_dict())) == task.state_dict()


@pytest.mark.parametrize("epoch", [1, 2])
def test_batches_are_the_same_for_any_workers_and_sampler(epoch):
    expected = batches(task_of(), epoch)
    assert sorted(rows(expected)) == list(range(40))
    for workers, values in ((1, {}), (4, {}), (0, {"sampler": "reference"})):
        found = batches(task_of(**values), epoch, workers)
        assert [batch["id"].tolist() for batch in found] == [batch["id"].tolist() for batch in expected]
        assert rows(found) == rows(expected)
    assert rows(batches(task_of(), epoch, size=3)) == rows(expected)
    assert rows(batches(task_of(), 3 - epoch)) != rows(expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_goes_on_in_its_middle(workers):
    whole, stopped = batches(task_of(), 2), iterate(task_of(), 2, workers)
    seen = list(islice(stopped.next_epoch_itr(shuffle=True), 2))
    state = stopped.state_dict()
    assert (state["epoch"], state["iterations_in_epoch"]) == (2, 2)
    again = iterate(task_of(), state["epoch"], workers)
    again.load_state_dict(state)
    found = seen + list(again.next_epoch_itr(shuffle=True))
    assert [batch["id"].tolist() for batch in found] == [batch["id"].tolist() for batch in whole]
    assert rows(found) == rows(whole)


def test_two_processes_share_the_sequences():
    first, second = (rows(batches(task_of(), 2, shards=2, shard=shard, size=4)) for shard in (0, 1))
    assert len(first) == len(second) == 20
    assert not first.keys() & second.keys()
    assert not [row for row in first.values() if row in second.values()]
    assert first | second == rows(batches(task_of(), 2))


def test_one_iterator_goes_through_the_epochs():
    iterator = iterate(task_of(), workers=1)
    seen = [rows(iterator.next_epoch_itr(shuffle=True)) for _ in range(3)]
    assert seen == [rows(batches(task_of(), epoch)) for epoch in (1, 2, 3)]
    assert not [row for row in seen[0].values() if row in seen[1].values()]


def test_validation_does_not_change_the_epoch_of_training():
    task = task_of()
    task.load_dataset("train")
    training, valid = (task.get_batch_iterator(task.dataset("train"), max_sentences=8, epoch=epoch) for epoch in (2, 1))
    training = training.next_epoch_itr(shuffle=True)
    first = next(training)
    list(valid.next_epoch_itr())
    assert rows([first, *training]) == rows(batches(task_of(), 2))


def test_held_out_sequences_have_outputs_of_their_own():
    task = task_of(output_split="train", valid_output_split="test", no_repeat_output=True, num_triggers=9)
    for split, within in (("train", range(57)), ("valid", range(57, 76)), ("test", range(57, 76))):
        task.load_dataset(split)
        made = task.dataset(split)
        assert len(made) == (40 if split == "train" else 12)
        batch = made.collater(made.__getitems__(range(len(made))))
        assert set(batch["target"][batch["counters"] > 0].tolist()) <= set(within)
    assert task.settings("valid").distribution == "uniform"
    assert task_of(output_dist="bigram").settings("test").distribution == "bigram"
    with pytest.raises(ValueError, match="no split 'valid1'; there are train, valid, test"):
        task.load_dataset("valid1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_triggers": 77}, r"--num-triggers 77 is more than the vocabulary, 76 symbols; at most 76"),
        ({"num_triggers": -1}, r"--num-triggers -1: 0 \(bigram sequences without triggers\) or more"),
        (
            {"fixed_triggers": True, "num_triggers": 70, "trigger_rank_offset": 7},
            "--num-triggers 70 and --trigger-rank-offset 7 need 77 symbols, but only 76 occur in the text",
        ),
        ({"fixed_triggers": True, "trigger_rank_offset": -1}, "--trigger-rank-offset -1: 0 or more"),
        ({"trigger_rank_offset": 2}, "--trigger-rank-offset 2 is for --fixed-triggers"),
        ({"tokens_per_sample": 0}, "--tokens-per-sample 0: at least 1"),
        (
            {"show_latents": True, "tokens_per_sample": 5},
            "--show-latents with --num-triggers 5 leaves nothing of --tokens-per-sample 5 .* raise the latter above 5",
        ),
        ({"output_dist": "bigram", "output_split": "test"}, "--output-dist bigram .* --output-split test"),
        (
            {"output_split": "train", "valid_output_dist": "bigram"},
            "--valid-output-dist bigram does not go with --valid-output-split train",
        ),
        ({"epoch_sequences": 0}, "--epoch-sequences 0: at least 1"),
        ({"valid_sequences": 0}, "--valid-sequences 0: at least 1"),
        ({"data_seed": -3}, "--data-seed -3: 0 or more"),
        ({"bigram_stats": "x.json"}, "both of --corpus TEXT and --bigram-stats JSON given; give one"),
    ],
)
def test_options_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=f"bigram_icl: {message}"):
        task_of(**values)


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("x" * 9, {}, "--num-triggers 5 is more than the vocabulary, 1 symbols"),
        (
            "x" * 9,
            {"num_triggers": 1, "no_repeat_output": True},
            "--no-repeat-output leaves no output for the trigger 'x' as the text has no other symbol; leave it out",
        ),
        ("x" * 9, {"num_triggers": 1, "output_split": "train"}, "--output-split train is empty: .* has 1 symbols"),
        (
            "abcdabcd",
            {"num_triggers": 1, "output_split": "test", "no_repeat_output": True},
            "--no-repeat-output leaves no output for the trigger 'd' with --output-split test",
        ),
        (
            "abbb",
            {"num_triggers": 1, "output_dist": "bigram", "no_repeat_output": True},
            "--no-repeat-output leaves no output for the trigger 'b' with --output-dist bigram",
        ),
        ("", {}, "--corpus .*/text is empty"),
    ],
)
def test_small_corpora(tmp_path, text, values, message):
    (tmp_path / "text").write_text(text)
    with pytest.raises(ValueError, match=f"bigram_icl: {message}"):
        task_of(tmp_path / "text", **values)


def test_fixed_triggers_of_one_frequency_are_in_the_order_of_their_numbers(tmp_path):
    text = "".join(chr(ord("A") + symbol) * (1 + symbol % 3) for symbol in range(40))
    task = task_of(write(tmp_path / "text", text), fixed_triggers=True, num_triggers=40)
    assert task.fixed_triggers == sorted(range(40), key=lambda symbol: (symbol % 3, symbol))


def test_corpora_that_are_small_enough(tmp_path):
    (tmp_path / "text").write_text("x")
    (batch, *_) = batches(task_of(tmp_path / "text", num_triggers=1))
    assert batch["counters"][0].tolist() == list(range(1, 17))
    assert not batch["target"].any()
    (batch, *_) = batches(task_of(num_triggers=0))
    assert batch["triggers"].shape == (8, 0)
    assert not batch["counters"].any()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bigram_icl: --corpus .*/none is not there; in .* there are: \[\]"):
        task_of(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"bigram_icl: --bigram-stats .*/none is not there"):
        task_of(None, bigram_stats=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="bigram_icl: neither of --corpus TEXT and --bigram-stats JSON given"):
        task_of(None)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("transformer_lm", "needs a padding symbol, which the vocabulary of a corpus does not have; models for this"),
        ("roberta", "is no language model from left to right; models for this task are ihead_basic, ihead_full, "),
        ("dslm_bert_tiny", "is no language model from left to right"),
    ],
)
def test_models_that_do_not_fit(arch, message):
    with pytest.raises(ValueError, match=f"bigram_icl: --arch {arch} {message}"):
        task_of().build_model(OmegaConf.create({"_name": arch}))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("cross_entropy", {}, "--criterion cross_entropy needs a padding symbol.*; give --criterion bigram_icl"),
        ("bigram_icl", {"no_output_counter": True}, "with --no-output-counter no trigger .* --loss-head-only"),
        ("bigram_icl", {"num_triggers": 0}, "with --num-triggers 0 no trigger occurs for the second time"),
        (
            "bigram_icl",
            {"tokens_per_sample": 7, "show_latents": True, "no_repeat_output": True},
            "with --tokens-per-sample 7 and --show-latents and --no-repeat-output no trigger occurs",
        ),
        ("bigram_icl", {"tokens_per_sample": 1}, "with --tokens-per-sample 1 no trigger occurs for the second time"),
    ],
)
def test_criterions_that_do_not_fit(name, values, message):
    with pytest.raises(ValueError, match=f"bigram_icl: {message}"):
        task_of(**values).build_criterion(BigramICLCriterionConfig(_name=name, loss_head_only=True))


@pytest.mark.parametrize(("repeat", "least"), [(True, 2), (False, 3)])
def test_sequences_that_are_long_enough_for_a_second_time_can_have_one(tmp_path, repeat, least):
    corpus = write(tmp_path / "text", "abba" * 9)
    options = {"num_triggers": 2, "no_repeat_output": not repeat}
    for length in (least, least - 1):
        task = task_of(corpus, tokens_per_sample=length, **options)
        highest = max(int(batch["counters"].max()) for batch in batches(task))
        assert (highest == 2) == (task.settings("train").never_again is None) == (length == least)


@pytest.mark.parametrize(
    ("values", "metric", "message"),
    [
        ({"num_triggers": 0}, "acc_tot", "with --num-triggers 0; take one of loss, loss_bigram$"),
        ({"no_output_counter": True}, "acc_end", "with --no-output-counter; take .* loss_bigram, acc_tot, "),
        ({"no_output_counter": True}, "acc_tot", None),
    ],
)
def test_a_metric_that_no_validation_can_have_is_refused_before_training(values, metric, message):
    run = trainer(**values)
    run.cfg.checkpoint.best_checkpoint_metric = metric
    if message is not None:
        with pytest.raises(ValueError, match=f"bigram_icl: --best-checkpoint-metric {metric} .* {message}"):
            run.task.begin_training(run)
        run.cfg.dataset.disable_validation = True
    run.begin_epoch(1)


def test_no_flag_of_the_task_is_that_of_another_group():
    config_groups = {
        f.name: type(f.default_factory()) for f in fields(FairseqConfig) if f.default_factory is not MISSING
    }
    optimizers = {f"optimizer {name}": kind for name, kind in REGISTRIES["optimizer"]["dataclass_registry"].items()}
    schedulers = {f"schedule {name}": kind for name, kind in REGISTRIES["lr_scheduler"]["dataclass_registry"].items()}
    criterion = {"criterion": REGISTRIES["criterion"]["dataclass_registry"]["bigram_icl"]}
    models = {name: MODEL_DATACLASS_REGISTRY[name] for name in MODELS.split(", ")}
    own = {f.name for f in fields(BigramICLConfig)}
    for group, kind in (config_groups | optimizers | schedulers | criterion | models).items():
        # a default such as ${task.data_seed} takes the value of the task on purpose
        theirs = {f.name for f in fields(kind) if not str(f.default).startswith("${")} if kind else set()
        assert not (own & theirs) - {"_name"}, f"{group} has the same flag, which would set both"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint after an update on a copy of the text, beside that copy."""
    folder = tmp_path_factory.mktemp("bigram_icl")
    text = folder / "text"
    text.write_bytes(LIGHTHOUSE.read_bytes())
    run = trainer(corpus=text)
    run.begin_epoch(1)
    run.train_step(batches(run.task)[:1])
    run.consolidate_optimizer()
    run.save_checkpoint(str(folder / "c.pt"), {"train_iterator": {"epoch": 1}})
    return folder / "c.pt"


def write(path, text):
    path.write_text(text)
    return path


def test_a_run_goes_on_with_the_same_symbols_only(checkpoint, tmp_path):
    going_on = trainer()
    going_on.load_checkpoint(str(checkpoint))
    going_on.begin_epoch(1)
    other = write(tmp_path / "other", LIGHTHOUSE.read_text() + "ß")
    for fresh in (False, True):
        message = rf"dictionary mismatch: {checkpoint} .* than that in {other}; give the text or the statistics of its"
        with pytest.raises(ValueError, match=message):
            trainer(corpus=other).load_checkpoint(str(checkpoint), reset_optimizer=fresh)


def test_a_run_does_not_go_on_with_other_frequencies(checkpoint, tmp_path, caplog):
    other = write(tmp_path / "other", LIGHTHOUSE.read_text()[::-1])
    going_on = trainer(corpus=other)
    with caplog.at_level(logging.WARNING):
        going_on.load_checkpoint(str(checkpoint))
    assert f"{checkpoint} was trained on another text than {other}, with the same symbols" in caplog.text
    with pytest.raises(
        ValueError, match=rf"{checkpoint} was trained on another text than {other}, .*; give that of its"
    ):
        going_on.begin_epoch(1)
    fine_tuned = trainer(corpus=other)
    fine_tuned.load_checkpoint(str(checkpoint), reset_optimizer=True, reset_lr_scheduler=True, reset_meters=True)
    fine_tuned.begin_epoch(1)


def test_a_finished_run_is_not_taken_for_one_on_another_text(checkpoint, tmp_path, capsys):
    asked = ["--only", "updates", "--to-go-on"]
    describe.main([str(checkpoint), str(LIGHTHOUSE), *asked])
    assert capsys.readouterr().out == "1\n"
    other = write(tmp_path / "other", LIGHTHOUSE.read_text()[::-1])
    with pytest.raises(ValueError, match=rf"bigram_icl: {checkpoint} was trained on another text than {other}, "):
        describe.main([str(checkpoint), str(other), *asked])


def test_measures_find_the_corpus_or_say_how_to_give_another(checkpoint, tmp_path, caplog):
    run = load_run(checkpoint)
    assert (run.updates, tuple(run.task.source_dictionary.symbols)) == (1, lighthouse().vocab)
    with pytest.raises(
        ValueError, match=r"c\.pt is of the task 'bigram_icl', which has no data folder to take text from"
    ):
        token_windows(run, "valid", length=1, count=1, seed=1)
    write_statistics(lighthouse(), tmp_path / "s.json")
    text = write(tmp_path / "text", LIGHTHOUSE.read_text())
    moved = checkpoint.with_name("moved")
    (checkpoint.parent / "text").rename(moved)
    try:
        with pytest.raises(
            FileNotFoundError, match=r"checkpoint .*/c\.pt: bigram_icl: --corpus .*; give it with --data"
        ):
            load_run(checkpoint)
        for data, option in ((tmp_path / "s.json", "bigram_stats"), (text, "corpus")):
            cfg = load_run(checkpoint, data).cfg.task
            given = {"corpus": None, "bigram_stats": None} | {option: str(data)}
            assert {name: cfg[name] for name in given} == given
            assert "embed_tokens.weight" in trained_names(checkpoint, read_mapped(checkpoint), data)
        assert not caplog.records
        load_run(checkpoint, write(tmp_path / "other", LIGHTHOUSE.read_text()[::-1]))
        assert "the checkpoint was trained on another text than" in caplog.text
        with pytest.raises(
            ValueError, match=r"dictionary mismatch: .* other symbols, .* than that in .*/more; give .* --data"
        ):
            load_run(checkpoint, write(tmp_path / "more", LIGHTHOUSE.read_text() + "ß"))
    finally:
        moved.rename(checkpoint.parent / "text")


def test_no_sequence_is_left_out_for_the_sake_of_the_batch_size():
    task = task_of(valid_sequences=11)
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=3, required_batch_size_multiple=8)
    sizes = [len(batch["id"]) for batch in batches.next_epoch_itr(shuffle=False)]
    assert sizes == [3, 3, 3, 2]
