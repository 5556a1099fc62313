"""The task normgrowth_lm and the criterion sentence_mean_loss: layouts of sentences, and what counts as a target."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq import options, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.data.padded_sentences import PaddedSentences

PAD, EOS = 1, 2
MODEL = ["--decoder-embed-dim", "16", "--decoder-attention-heads", "2", "--criterion", "sentence_mean_loss"]


def setup(data, *flags, arch="transnormer_lm_tiny"):
    """Config and task as fairseq-train makes them from a command line."""
    argv = [str(data), "--user-dir", USER_DIR, "--task", "normgrowth_lm", "--arch", arch, *MODEL, *map(str, flags)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), argv))
    return cfg, tasks.setup_task(cfg.task)


def batch(task, split, rows):
    dataset = task.dataset(split)
    return dataset.collater([dataset[row] for row in rows])


def test_a_sentence_is_a_sample_with_its_end_as_a_target(tiny_lm_data):
    _, task = setup(tiny_lm_data)
    task.load_dataset("valid")
    sample = batch(task, "valid", [0, 1])
    words = task.source_dictionary.string(sample["target"][0])
    assert words + "\n" in (tiny_lm_data.parent / "valid.txt").read_text()
    length = int(sample["net_input"]["src_lengths"][0])
    source, target = sample["net_input"]["src_tokens"][0, :length], sample["target"][0, :length]
    assert source[0] == target[-1] == EOS
    assert torch.equal(source[1:], target[:-1])
    assert torch.equal(task.real_tokens(sample), sample["net_input"]["src_tokens"] != PAD)


def test_sentences_that_are_too_long_are_refused_or_cut(tiny_lm_data):
    _, task = setup(tiny_lm_data, "--tokens-per-sample", 10)
    with pytest.raises(
        ValueError, match=r"of the 40 sentences of 'valid' have more than --tokens-per-sample 10 tokens"
    ):
        task.load_dataset("valid")
    _, task = setup(tiny_lm_data, "--tokens-per-sample", 10, "--shorten-method", "truncate")
    task.load_dataset("valid")
    assert task.dataset("valid").sizes.max() == 10
    _, task = setup(tiny_lm_data, "--tokens-per-sample", 10, "--sample-break-mode", "none")
    task.load_dataset("valid")


def rows_of(sentences, length, filler):
    """The original's rows, written as its code has them: padded and cut token lists, all but last, all but first."""
    rows = [(words + [filler] * length)[:length] for words in sentences]
    mask = [([1] * len(words) + [0] * length)[:length] for words in sentences]
    return [row[:-1] for row in rows], [row[1:] for row in rows], [row[:-1] for row in mask]


@pytest.mark.parametrize("filler", [PAD, 4])
def test_rows_are_the_original_s(filler):
    words = [[4, 5, 6], [7], [5] * 6, [6] * 9, [8, 9, 4, 4, 4]]
    sentences = [torch.tensor([*sentence, EOS]) for sentence in words]
    data = PaddedSentences(sentences, 6, filler, pad=PAD, eos=EOS)
    sample = data.collater([data[i] for i in range(5)])
    inputs, targets, mask = rows_of(words, 6, filler)
    assert sample["net_input"]["src_tokens"].tolist() == inputs
    lengths, weighted = sample["net_input"]["src_lengths"], torch.tensor(mask, dtype=torch.bool)
    assert torch.equal(torch.arange(5) < lengths[:, None], weighted)
    assert torch.equal(sample["target"][weighted], torch.tensor(targets)[weighted])
    assert (sample["target"][~weighted] == PAD).all()
    assert sample["target_lengths"].tolist() == [2, 0, 5, 5, 4]
    assert sample["ntokens"] == 16
    assert sample["target"][0].tolist() == [5, 6, filler, PAD, PAD]


def test_each_epoch_of_training_has_an_order_of_its_own():
    sentences = [torch.tensor([4, 5, EOS])] * 20
    data = PaddedSentences(sentences, 3, PAD, PAD, EOS, seed=7)
    orders = []
    for epoch in (1, 2, 1):
        data.set_epoch(epoch)
        orders.append(data.ordered_indices().tolist())
    assert sorted(orders[0]) == list(range(20))
    assert orders[0] == orders[2] != orders[1]
    assert not data.can_reuse_epoch_itr_across_epochs
    assert PaddedSentences(sentences, 3, PAD, PAD, EOS).ordered_indices().tolist() == list(range(20))


def test_an_empty_first_line_does_not_make_the_end_of_sentence_the_filler(tiny_lm_data, monkeypatch):
    _, task = setup(tiny_lm_data, "--sentence-layout", "original", "--pad-id", "first_word", "--tokens-per-sample", 40)
    rows = [torch.tensor([EOS]), torch.tensor([9, 8, EOS])]
    monkeypatch.setattr(task, "_sentences", lambda *_: rows)
    assert task.filler == 9


def test_the_filler_is_the_first_word_of_the_training_text(tiny_lm_data):
    _, task = setup(tiny_lm_data, "--sentence-layout", "original", "--pad-id", "first_word", "--tokens-per-sample", 40)
    task.load_dataset("valid")
    sample = batch(task, "valid", [0])
    first = (tiny_lm_data.parent / "train.txt").read_text().split()[0]
    assert task.source_dictionary[int(sample["net_input"]["src_tokens"][0, -1])] == first
    assert int(task.real_tokens(sample).sum()) == len(
        (tiny_lm_data.parent / "valid.txt").read_text().split("\n")[0].split()
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pad-id", "first_word"], "--pad-id first_word is of --sentence-layout original"),
        (["--sentence-layout", "original", "--sample-break-mode", "none"], "leave out --sample-break-mode none"),
        (["--sentence-layout", "original", "--shorten-method", "truncate"], "leave out --shorten-method truncate"),
        (["--sentence-layout", "original", "--add-bos-token"], "leave out --add-bos-token"),
    ],
)
def test_layouts_that_do_not_go_together_are_refused(tiny_lm_data, flags, message):
    with pytest.raises(ValueError, match=message):
        setup(tiny_lm_data, *flags)


def test_a_criterion_that_would_count_the_filler_is_refused(tiny_lm_data):
    flags = ["--sentence-layout", "original", "--pad-id", "first_word"]
    for criterion in ("sentence_mean_loss", "cross_entropy"):
        cfg, task = setup(tiny_lm_data, *flags, "--criterion", criterion)
        trainer = SimpleNamespace(cfg=cfg)
        if criterion == "sentence_mean_loss":
            task.begin_training(trainer)
        else:
            with pytest.raises(ValueError, match=r"--criterion cross_entropy takes the word .* first_word puts behind"):
                task.begin_training(trainer)


def test_a_split_that_is_not_there_is_named(tiny_lm_data):
    _, task = setup(tiny_lm_data, "--sentence-layout", "original")
    with pytest.raises(FileNotFoundError, match=r"no sentences of the split 'dev' .* its splits: test, train, valid"):
        task.load_dataset("dev")


def expected_loss(model, sample, counted):
    """The losses of the criterion, target by target in float64: mean over sentences, mean over targets, accuracy."""
    logits = model(**sample["net_input"])[0].double()
    means, nats, right = [], [], []
    for row, target, mask in zip(logits, sample["target"], counted, strict=True):
        own = [float(-F.log_softmax(row[t], 0)[target[t]]) for t in range(len(target)) if mask[t]]
        right += [bool(row[t].argmax() == target[t]) for t in range(len(target)) if mask[t]]
        means += [sum(own) / len(own)] if own else []
        nats += own
    return sum(means) / len(means), sum(nats) / len(nats), sum(right) / len(right)


@pytest.mark.parametrize("weights", ["targets", "input_mask"])
def test_every_sentence_weighs_the_same(tiny_lm_data, weights):
    flags = ["--sentence-layout", "original", "--pad-id", "first_word", "--tokens-per-sample", 16]
    cfg, task = setup(tiny_lm_data, *flags, "--target-weights", weights)
    torch.manual_seed(0)
    model, criterion = task.build_model(cfg.model).eval(), task.build_criterion(cfg.criterion)
    task.load_dataset("valid")
    task.datasets["valid"].sentences = [torch.tensor([7, EOS]), *(task.dataset("valid").sentences[i] for i in range(5))]
    sample = batch(task, "valid", range(6))
    lengths = sample["net_input"]["src_lengths"] if weights == "input_mask" else sample["target_lengths"]
    counted = torch.arange(15) < lengths[:, None]
    per_sentence, per_target, accuracy = expected_loss(model, sample, counted)
    loss, size, log = criterion(model, sample)
    assert size == (6 if weights == "input_mask" else 5), "a sentence of one word has no target of its own"
    assert float(loss) / size == pytest.approx(per_sentence, rel=1e-5)
    with metrics.aggregate(new_root=True) as shown:  # two processes with the same batch
        criterion.reduce_metrics([log, log])
    values = shown.get_smoothed_values()
    assert values["loss"] == pytest.approx(per_sentence / np.log(2), abs=1e-3)
    assert values["nll_loss"] == pytest.approx(per_target / np.log(2), abs=1e-3)
    assert values["ppl"] == pytest.approx(np.exp(per_target), rel=1e-3)
    assert values["accuracy"] == pytest.approx(100 * accuracy, abs=0.01)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_batch_without_a_target_costs_nothing(tiny_lm_data):
    cfg, task = setup(tiny_lm_data, "--sentence-layout", "original", "--tokens-per-sample", 4)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    dictionary = task.source_dictionary
    data = PaddedSentences([torch.tensor([7, EOS])], 4, dictionary.pad(), dictionary.pad(), EOS)
    loss, size, _ = criterion(model, data.collater([data[0]]))
    assert (float(loss), size) == (0.0, 0)


def test_weights_of_inputs_need_rows_that_are_filled(tiny_lm_data):
    cfg, task = setup(tiny_lm_data, "--target-weights", "input_mask")
    task.load_dataset("valid")
    criterion = task.build_criterion(cfg.criterion)
    with pytest.raises(ValueError, match="train with --task normgrowth_lm --sentence-layout original"):
        criterion(task.build_model(cfg.model), batch(task, "valid", [0]))


def test_measuring_saturation_changes_neither_model_nor_random_numbers(tiny_lm_data):
    cfg, task = setup(tiny_lm_data, "--sat-max-sentences", 3, "--dropout", 0.3)
    task.load_dataset("valid")
    model, criterion = task.build_model(cfg.model).train(), task.build_criterion(cfg.criterion)
    before = copy.deepcopy(model.state_dict())
    batches = [*task.get_batch_iterator(task.dataset("valid"), max_sentences=2).next_epoch_itr(shuffle=False)]
    state = torch.get_rng_state()
    logs = [task.valid_step(sample, model, criterion)[2] for sample in batches]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [log["sat_tokens"] > 0 for log in logs] == [True, True] + [False] * 18
    assert {tuple(log) for log in logs} == {tuple(logs[0])}, "processes add up what all of them log"


def test_a_checkpoint_keeps_its_dictionary(tiny_lm_data):
    _, task = setup(tiny_lm_data)
    state = task.state_dict()
    task.check_state(state)
    task.dictionary = Dictionary()
    with pytest.raises(ValueError, match="dictionary mismatch"):
        task.check_state(state)
