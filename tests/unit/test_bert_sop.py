"""The task bert_sop_lm and the criterion bert_sop, with a model of a few lines."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging import metrics
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from omegaconf import OmegaConf
from torch import nn

from fairseq_transnorm.criterions.bert_sop import BertSopConfig, BertSopLoss
from fairseq_transnorm.data.classification import write_dataset
from fairseq_transnorm.tasks.bert_sop_lm import BertSopLMConfig, BertSopLMTask
from tests.documents import build_document_data, text_documents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_document_data(tmp_path_factory.mktemp("documents") / "data", {"train": 60, "valid": 20})


def make_task(data, **options):
    cfg = OmegaConf.structured(BertSopLMConfig)
    cfg.update({"data": str(data), "word_kind": "words", "tokens_per_sample": 40, "seed": 1} | options)
    return BertSopLMTask.setup_task(cfg)


class Bigrams(nn.Module):
    """Logits of a token from the token itself, and of the order from the first two tokens; what the criterion needs."""

    def __init__(self, symbols, order=True):
        super().__init__()
        self.table = nn.Embedding(symbols, symbols)
        self.order = nn.Embedding(symbols, 2) if order else None

    def forward(self, src_tokens, src_lengths=None, segment_ids=None, masked_tokens=None, sentence_order=False, **_):
        x = self.table(src_tokens)
        extra = {"sentence_order": self.order(src_tokens[:, 1])} if sentence_order and self.order else {}
        return (x if masked_tokens is None else x[masked_tokens]), extra


def criterion(task, **options):
    return BertSopLoss(OmegaConf.structured(BertSopConfig(**options)), task)


def batches(task, size=8, split="train", **options):
    task.load_dataset(split)
    return list(
        task.get_batch_iterator(task.dataset(split), max_sentences=size, **options).next_epoch_itr(shuffle=False)
    )


def logged(logs):
    metrics.reset()
    with metrics.aggregate() as found:
        BertSopLoss.reduce_metrics(logs)
    return found.get_smoothed_values()


def test_loss_is_the_mean_over_masked_tokens_plus_that_of_the_order(data):
    task = make_task(data)
    torch.manual_seed(0)
    model = Bigrams(len(task.source_dictionary))
    for weight in (1.0, 0.25):
        sample = batches(task)[0]
        loss, sample_size, log = criterion(task, sop_weight=weight)(model, sample)
        logits, _ = model(**sample["net_input"])
        lm = nn.functional.cross_entropy(
            logits.flatten(0, 1), sample["target"].flatten(), ignore_index=task.source_dictionary.pad()
        )
        order = nn.functional.cross_entropy(model.order(sample["net_input"]["src_tokens"][:, 1]), sample["sop_target"])
        assert float(loss) == pytest.approx(float(lm + weight * order), rel=1e-6)
        assert sample_size == log["sample_size"] == 1
        assert log["sop_count"] == log["nsentences"] == 8


def test_metrics_weigh_tokens_pairs_and_micro_batches():
    """Two micro-batches with means of 1 and 3 nats over 1 and 3 masked tokens, and one without any."""
    common = {"ntokens": 9, "nsentences": 2, "sample_size": 1}
    rows = [(1.0, 1, 1.5, 1, 2, 2), (9.0, 3, 4.0, 1, 2, 1), (0.0, 0, 0.5, 1, 1, 1)]
    logs = [
        common
        | {"lm_sum": lm, "lm_tokens": n, "micro_sum": lm / max(n, 1), "micro_count": int(n > 0), "loss": loss}
        | {"sop_sum": order, "sop_count": pairs, "sop_correct": right}
        for lm, n, loss, order, pairs, right in rows
    ]
    got = logged(logs)
    bits = math.log(2)
    assert got["lm_loss"] == pytest.approx(10 / 4 / bits, abs=5e-4)
    assert got["ppl"] == pytest.approx(math.exp(2.5), abs=5e-3)
    assert got["micro_lm_loss"] == pytest.approx(2 / bits, abs=5e-4)
    assert got["micro_ppl"] == pytest.approx(math.exp(2), abs=5e-3)
    assert got["loss"] == pytest.approx(2 / bits, abs=5e-4)
    assert got["sop_loss"] == pytest.approx(3 / 5 / bits, abs=5e-4)
    assert got["sop_accuracy"] == pytest.approx(80)
    for value in got.values():
        assert type(value) in (int, float), "numpy's numbers would stand in the checkpoint"
    logs[0]["micro_sum"] = 100.0
    assert logged(logs)["micro_ppl"] == pytest.approx(math.exp(20), rel=1e-6)


def test_metrics_are_those_of_one_large_batch(data):
    task = make_task(data, short_seq_prob=0.5)
    torch.manual_seed(0)
    model = Bigrams(len(task.source_dictionary))
    by_size = {}
    for size in (3, 1000):
        logs = [criterion(task)(model, sample)[2] for sample in batches(task, size)]
        assert sum(log["sop_count"] for log in logs) == len(task.dataset("train"))
        by_size[size] = logged(logs)
    for name in ("lm_loss", "ppl", "sop_loss", "sop_accuracy"):
        assert by_size[3][name] == pytest.approx(by_size[1000][name], rel=1e-3), name
    assert by_size[3]["micro_ppl"] != by_size[1000]["micro_ppl"]


def test_a_micro_batch_without_masked_tokens_has_a_finite_loss_and_all_gradients(data):
    task = make_task(data)
    model = Bigrams(len(task.source_dictionary))
    sample = batches(task)[0]
    sample["target"].fill_(task.source_dictionary.pad())
    loss, _, log = criterion(task)(model, sample)
    loss.backward()
    assert math.isfinite(float(loss))
    assert float(log["lm_sum"]) == int(log["lm_tokens"]) == int(log["micro_count"]) == 0
    assert model.table.weight.grad is not None
    assert not model.table.weight.grad.any()
    assert model.order.weight.grad.any()
    assert logged([log])["ppl"] == 1


def test_masked_lm_only_needs_no_order(data, tmp_path):
    task = make_task(data, masked_lm_only=True)
    model = Bigrams(len(task.source_dictionary), order=False)
    (sample, *_) = batches(task)
    assert "sop_target" not in sample
    assert (sample["net_input"]["src_tokens"] == task.source_dictionary.eos()).sum() == len(sample["id"])
    assert not sample["net_input"]["segment_ids"].any()
    loss, _, log = criterion(task, masked_lm_only=True)(model, sample)
    assert float(loss) == pytest.approx(float(log["lm_sum"] / log["lm_tokens"]))
    assert "sop_loss" not in logged([log])
    assert len(task.dataset("train")) > len(make_and_load(data).dataset("train")), "documents of one sentence too"


def make_and_load(data, **options):
    task = make_task(data, **options)
    task.load_dataset("train")
    return task


def test_the_criterion_works_with_the_masked_lm_task_of_fairseq(data):
    cfg = OmegaConf.structured(MaskedLMConfig)
    cfg.update({"data": str(data), "tokens_per_sample": 32, "seed": 1})
    task = MaskedLMTask.setup_task(cfg)
    sample = batches(task)[0]
    model = Bigrams(len(task.source_dictionary), order=False)
    loss, _, log = criterion(task, masked_lm_only=True)(model, sample)
    assert float(loss) == pytest.approx(float(log["lm_sum"] / log["lm_tokens"]))
    with pytest.raises(
        ValueError, match=r"the task gives no sentence order.*--task bert_sop_lm.*criterion\.masked_lm_only"
    ):
        criterion(task)(model, sample)


def test_a_criterion_that_leaves_out_the_order_of_the_task_is_refused(data):
    task = make_task(data)
    with pytest.raises(
        ValueError, match=r"the task gives it .*--masked-lm-only .*task\.\w+ and criterion\.masked_lm_only"
    ):
        criterion(task, masked_lm_only=True)(Bigrams(len(task.source_dictionary)), batches(task)[0])


def test_a_model_without_sentence_order_is_named(data):
    task = make_task(data)
    with pytest.raises(ValueError, match="Bigrams predicts no sentence order; take --arch dslm_bert"):
        criterion(task)(Bigrams(len(task.source_dictionary), order=False), batches(task)[0])
    with pytest.raises(ValueError, match="--sop-weight -1 must be 0 or more"):
        criterion(task, sop_weight=-1)


def tokens_of(found):
    return [sample["net_input"]["src_tokens"].tolist() for sample in found]


def all_epochs(task, count, start=1, **options):
    """Batches of each epoch as fairseq-train gets them: an iterator made for each, the first from a checkpoint."""
    task.load_dataset("train")
    options["data_buffer_size"] = 2  # without it the processes that load end after 5 s only
    found = []
    for epoch in range(start, count + 1):
        iterator = task.get_batch_iterator(task.dataset("train"), max_sentences=8, epoch=epoch, **options)
        found.append(tokens_of(iterator.next_epoch_itr()))
        # a validation on the split of training in the middle of the next epoch
        task.get_batch_iterator(task.dataset("train"), max_sentences=8, epoch=1)
    return found


def test_epochs_differ_and_depend_neither_on_workers_nor_on_going_on(data):
    epochs = all_epochs(make_task(data), 3)
    assert len({json.dumps(epoch) for epoch in epochs}) == 3
    assert all_epochs(make_task(data), 3, num_workers=2) == epochs
    assert all_epochs(make_task(data), 3, start=2) == epochs[1:]


def test_an_epoch_goes_on_in_its_middle_whatever_is_validated(data):
    for workers in (0, 2):
        task = make_task(data)
        task.load_dataset("train")
        options = {"max_sentences": 8, "epoch": 2, "num_workers": workers, "data_buffer_size": 2}
        iterator = task.get_batch_iterator(task.dataset("train"), **options)
        batches_of_epoch = iterator.next_epoch_itr()
        head = [next(batches_of_epoch) for _ in range(3)]
        state = iterator.state_dict()
        task.get_batch_iterator(task.dataset("train"), max_sentences=8, epoch=1).next_epoch_itr(shuffle=False)
        rest = tokens_of(batches_of_epoch)
        again = make_task(data)
        again.load_dataset("train")
        resumed = again.get_batch_iterator(again.dataset("train"), **options)
        resumed.load_state_dict(state)
        assert tokens_of(resumed.next_epoch_itr()) == rest
        assert all_epochs(make_task(data), 2)[1] == tokens_of(head) + rest


def test_processes_share_an_epoch_out(data):
    task = make_task(data)
    task.load_dataset("train")
    ids = []
    for shard in range(2):
        options = {"max_sentences": 8, "epoch": 2, "num_shards": 2, "shard_id": shard}
        iterator = task.get_batch_iterator(task.dataset("train"), **options)
        ids += [i for sample in iterator.next_epoch_itr() if sample for i in sample["id"].tolist()]
    dataset = make_and_load(data).dataset("train")
    dataset.set_epoch(2)
    assert sorted(ids) == list(range(len(dataset)))


def test_words_are_told_by_the_note_or_by_the_option(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    with pytest.raises(
        FileNotFoundError, match=r"no .*tokenizer\.json, which tells what a word is.*--word-kind with one of words,"
    ):
        make_and_load(folder, word_kind=None)
    (folder / "tokenizer.json").write_text('{"kind": "characters"}')
    make_and_load(folder, word_kind=None)
    with pytest.raises(ValueError, match="no rule for the words of the tokenizer 'wrods'"):
        make_and_load(folder, word_kind="wrods")
    for note, message in (("{", "is no JSON"), ("{}", "does not name the kind"), ("[]", "does not name the kind")):
        (folder / "tokenizer.json").write_text(note)
        with pytest.raises(ValueError, match=rf"data/tokenizer\.json {message}.*; make the folder again"):
            make_and_load(folder, word_kind=None)


@pytest.mark.parametrize(("end", "left"), [("bin", -2), ("bin", 0), ("idx", -8), ("idx", 12)])
def test_files_that_are_cut_off_are_told_before_training(end, left, data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    path = folder / f"train.{end}"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        ValueError, match=r"bert_sop_lm: .*data/train\.bin or .*data/train\.idx is cut off.*; copy both"
    ):
        make_and_load(folder)


def test_folders_share_a_dictionary(data, tmp_path):
    """One folder an epoch: their samples differ, their numbers mean the same."""
    (tmp_path / "b").mkdir()
    texts = {epoch: tmp_path / name for epoch, name in ((1, "a"), (2, "b"))}
    shutil.copytree(data, texts[1])
    shutil.copyfile(data / "dict.txt", texts[2] / "dict.txt")
    for path in data.glob("valid.*"):
        shutil.copyfile(path, texts[2] / path.name.replace("valid", "train"))
    both = f"{texts[1]}:{texts[2]}"
    task = make_task(both)
    lengths = {}
    for epoch in (1, 2, 3):
        task.load_dataset("train", epoch=epoch)
        lengths[epoch] = len(task.dataset("train").sentences)
    assert lengths[1] == lengths[3] != lengths[2]
    lines = (data / "dict.txt").read_text().splitlines(keepends=True)
    (texts[2] / "dict.txt").write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(
        ValueError, match=r"bert_sop_lm: .*b/dict\.txt and .*a/dict\.txt have different symbols.*--like"
    ):
        make_task(both)
    (texts[2] / "dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*b/dict\.txt"):
        make_task(both)


def test_pieces_of_a_word_are_masked_together(tmp_path):
    dictionary = Dictionary()
    for symbol in ("a", "b", "##c", "##d"):
        dictionary.add_symbol(symbol)
    dictionary.save(str(tmp_path / "dict.txt"))
    write_dataset(tmp_path / "train", dictionary, ["a ##c ##d b", "b ##d a ##c", ""] * 50)
    task = make_and_load(tmp_path, word_kind="wordpiece", mask_prob=0.4, leave_unmasked_prob=0, random_token_prob=0)
    dataset, pieces = task.dataset("train"), [dictionary.index(s) for s in ("##c", "##d")]
    together = 0
    for sample in map(dataset.__getitem__, range(len(dataset))):
        masked = sample["target"].numpy() != dictionary.pad()
        tokens = np.where(masked, sample["target"], sample["src_tokens"])
        for i in np.flatnonzero(np.isin(tokens, pieces)):
            assert masked[i] == masked[i - 1]
            together += int(masked[i])
    assert together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_sample": 9}, r"--mask-prob 0\.15 of --tokens-per-sample 9, without 3 special symbols"),
        ({"tokens_per_sample": 3, "mask_prob": 1}, "--tokens-per-sample 3: at least 5"),
        ({"tokens_per_sample": 3, "mask_prob": 1, "masked_lm_only": True}, "--tokens-per-sample 3: at least 4"),
        ({"mask_prob": 1.5}, "--mask-prob 1.5 is no probability"),
        ({"short_seq_prob": -0.1}, "--short-seq-prob -0.1 is no probability"),
        ({"random_token_prob": 0.95}, "--leave-unmasked-prob 0.1 and --random-token-prob 0.95"),
        ({"max_ngram": 0}, "--max-ngram 0: at least 1"),
        ({"max_sentence_tokens": 0}, "--max-sentence-tokens 0: at least 1"),
        ({"seed": -1}, "--seed -1: at least 0"),
    ],
)
def test_bad_options_are_named(options, message, data):
    with pytest.raises(ValueError, match=f"bert_sop_lm: {message}"):
        make_task(data, **options)


def test_folders_without_documents_are_named(data, tiny_lm_data, tmp_path):
    with pytest.raises(ValueError, match=r"no documents in split 'train' of .*none of its 300 lines is empty"):
        make_and_load(tiny_lm_data)
    with pytest.raises(
        ValueError,
        match=r"no sample in split 'train' of .*: 0 documents; left out: \d+ with fewer than 2 sentences, "
        r"\d+ with a sentence of more than 1 tokens",
    ):
        make_and_load(data, max_sentence_tokens=1)
    with pytest.raises(FileNotFoundError, match=r"no split 'test' in .*; its splits: train, valid"):
        make_task(data).load_dataset("test")
    with pytest.raises(FileNotFoundError, match=r"no .*dict\.txt \(no such folder\)"):
        make_task(tmp_path / "none")


def test_what_is_left_out_is_told(data, caplog):
    with caplog.at_level("INFO", logger="fairseq_transnorm"):
        make_and_load(data, max_sentence_tokens=20)
    texts = text_documents(60, 0)
    short = sum(len(text) < 2 for text in texts)
    long = sum(len(text) > 1 and max(len(line.split()) for line in text) > 20 for text in texts)
    assert short
    assert long
    left_out = f"left out: {short} with fewer than 2 sentences, {long} with a sentence of more than 20 tokens"
    assert f"{60 - short - long} documents; {left_out} (--max-sentence-tokens)" in caplog.text


def test_the_mask_is_the_last_symbol(data):
    task = make_task(data)
    assert task.source_dictionary[len(task.source_dictionary) - 1] == "<mask>"
    assert task.mask_idx == len(task.source_dictionary) - 1
