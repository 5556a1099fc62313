"""The data set of sequences with triggers: each follows from its number, whoever asks for it and in whatever batch."""

import numpy as np
import pytest
import torch

from fairseq_transnorm.data.trigger_dataset import TriggerDataset
from fairseq_transnorm.data.trigger_sequences import ReferenceSampler, VectorisedSampler
from fairseq_transnorm.data.trigger_settings import TriggerSettings
from tests.trigger_reference import lighthouse, slow_sequence

SETTINGS = TriggerSettings(num_triggers=3, length=12)
COUNT = 40


def dataset(split="train", sampler=VectorisedSampler, seed=42):
    return TriggerDataset(sampler(lighthouse(), SETTINGS), split, COUNT, seed)


@pytest.mark.parametrize("sampler", [ReferenceSampler, VectorisedSampler])
@pytest.mark.parametrize(("split", "key"), [("train", [0, 3]), ("valid", [1, 0]), ("test", [2, 0])])
def test_a_sequence_follows_from_seed_split_epoch_and_number(sampler, split, key):
    made = dataset(split, sampler, seed=5)
    made.set_epoch(3)
    for index in (7, 31):
        rng = np.random.default_rng([5, *key, index])
        tokens, counters, triggers = slow_sequence(rng, lighthouse(), SETTINGS)
        for row in (made[index], made.__getitems__([0, index, 2])[1]):
            assert (row["id"], row["tokens"].tolist()) == (index, tokens)
            assert (row["counters"].tolist(), row["triggers"].tolist()) == (counters, triggers)


def test_epochs_seeds_and_splits_differ():
    def all_tokens(split="train", epoch=1, seed=42):
        made = dataset(split, seed=seed)
        made.set_epoch(epoch)
        return torch.stack([row["tokens"] for row in made.__getitems__(range(COUNT))])

    first = all_tokens()
    for other in (all_tokens(epoch=2), all_tokens(seed=43), all_tokens("valid"), all_tokens("test")):
        assert (first != other).any(1).all(), "not one sequence is the same"
    assert all_tokens("valid", epoch=1).equal(all_tokens("valid", epoch=2))


def test_a_batch():
    made = dataset()
    batch = made.collater(made.__getitems__([4, 1]))
    assert batch["id"].tolist() == [4, 1]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 24)
    inputs, target = batch["net_input"]["src_tokens"], batch["target"]
    assert inputs[:, 1:].equal(target[:, :-1])
    assert torch.cat([inputs, target[:, -1:]], 1)[1].equal(made[1]["tokens"])
    assert batch["net_input"]["src_lengths"].tolist() == [12, 12]
    for name, width in {"counters": 12, "triggers": 3}.items():
        assert batch[name].shape == (2, width)
    tensors = [inputs, target, batch["counters"], batch["triggers"], batch["id"]]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert made.collater([]) == {}


def test_lengths():
    made = dataset()
    assert len(made) == len(made.sizes) == COUNT
    assert made.num_tokens(3) == made.size(3) == 12
    assert made.num_tokens_vec(np.array([1, 5])).tolist() == [12, 12]
    batches = made.batch_by_size(made.ordered_indices(), max_tokens=60)
    assert [len(batch) for batch in batches] == [5] * 8
    assert not made.can_reuse_epoch_itr_across_epochs
