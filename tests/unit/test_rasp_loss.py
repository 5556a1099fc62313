"""Loss and accuracies on batches whose numbers are worked out here, and the loss as loops over samples and cells."""

from math import log
from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics
from hypothesis import given
from hypothesis import strategies as st

import fairseq_transnorm  # noqa: F401  (registers)
from fairseq_transnorm.criterions.rasp_loss import RaspLoss, RaspLossConfig
from fairseq_transnorm.data.language_dataset import LanguageDataset
from fairseq_transnorm.models.rasp.config import RaspTransformerConfig
from fairseq_transnorm.models.rasp.transformer import RaspTransformer
from fairseq_transnorm.modules.attention_targets import normalised_targets, target_masses
from fairseq_transnorm.tasks.rasp_lang import RaspLangConfig, RaspLangTask

UNIFORM = (1 / 3,) * 3


def task_of(language):
    return RaspLangTask.setup_task(RaspLangConfig(_name="rasp_lang", language=language, max_length=12))


def batch_of(task, *texts):
    dataset = LanguageDataset(task.language, texts)
    return dataset.collater(range(len(texts)))


def criterion_of(task, weight=100.0):
    return RaspLoss(RaspLossConfig(attn_loss_weight=weight), task)


def model_of(task, **options):
    """A small real model; layers differ, so that a wrong layer is seen."""
    values = {"rasp_layers": 3, "rasp_heads": 2, "rasp_dim": 8, "independent_layer_init": True} | options
    torch.manual_seed(3)
    return RaspTransformer.build_model(RaspTransformerConfig(**values), task)


def logged(*logs):
    """What fairseq logs of some batches, one after the other."""
    with metrics.aggregate(new_root=True) as meters:
        for log_ in logs:
            RaspLoss.reduce_metrics([log_])
    return dict(meters.get_smoothed_values())


def fixed(logits, maps=None):
    """A model that answers this; it may be asked for maps only if there are any."""

    def answer(src_tokens, src_lengths, return_attention=False):
        assert return_attention == (maps is not None), "maps are made for supervised languages only"
        return logits, {"attn": maps}

    return answer


def logits_of(batch, classes, wrong=()):
    """Logits that give the target half of the probability, 1/(2 classes - 2) to it where the answer is wrong.

    At padding there is nonsense.
    """
    target = batch["target"]
    logits = torch.full((*target.shape, classes), 1e9)
    for b, length in enumerate(batch["net_input"]["src_lengths"].tolist()):
        for t in range(length):
            favourite = (target[b, t] + ((b, t) in wrong)) % classes
            logits[b, t] = 0
            logits[b, t, favourite] = log(classes - 1)
    return logits


def test_a_batch_without_bos_with_padding_and_rows_without_a_target():
    """In ``ba`` the first head should look from b to a, and from a nowhere; the second one from each to the other."""
    task = task_of("sort_10_with_attns")
    batch = batch_of(task, "ba", "c")
    assert batch["attention_targets"].int().tolist() == [
        [[[0, 1], [0, 0]], [[0, 1], [1, 0]]],
        [[[0, 0], [0, 0]], [[1, 0], [0, 0]]],
    ]
    nonsense = [7.0, -7.0]  # the query is padding
    first = torch.tensor([[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], nonsense]])[:, None]
    second = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0], nonsense]])[:, None]
    attn_loss = ((2 * 0.25**2) / 4 + (2 * 0.5**2) / 4 + 0 + 0) / (2 * 2)
    seq_loss = ((log(2) + log(18)) / 2 + log(2)) / 2
    model = fixed(logits_of(batch, 10, wrong={(0, 1)}), [first, second])
    loss, size, log_ = criterion_of(task)(model, batch)
    assert size == log_["sample_size"] == 2
    assert loss.item() == pytest.approx(2 * (seq_loss + 100 * attn_loss))
    assert logged(log_) == pytest.approx(
        {
            "loss": seq_loss + 100 * attn_loss,
            "seq_loss": seq_loss,
            "attn_loss": attn_loss,
            "accuracy": 2 / 3,
            "accuracy_batchmean": 2 / 3,
            "seq_accuracy": 1 / 2,
        }
    )
    without, _, _ = criterion_of(task, weight=0)(model, batch)
    assert without.item() == pytest.approx(2 * seq_loss)


@pytest.mark.parametrize("own", [0, 1], ids=["", "model_bos"])
def test_a_batch_with_bos_and_with_another_one_inside_the_model(own):
    """Every query looks at all three symbols of ``§ba`` alike, or at the two of ``§c``; --model-bos adds a fourth."""
    task = task_of("sort_10_bos_with_attns")
    batch = batch_of(task, "ba", "c")
    assert batch["attention_targets"][0].int().tolist() == [
        [[1, 0, 0], [1, 0, 1], [1, 0, 0]],
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
    ]
    maps = torch.zeros(2, 2, 3 + own, 3 + own)
    maps[0, :, own:, own:] = 1 / 3
    maps[1, :, own:, own : 2 + own] = 1 / 2
    if own:  # what the symbol inside the model looks at, and how others look at it, is not supervised
        maps[:, :, 0], maps[..., 0] = 5.0, 5.0
    one, two = (2 / 3) ** 2 + 2 * (1 / 3) ** 2, 2 * (1 / 6) ** 2 + (1 / 3) ** 2  # rows with one cell, with two
    first, second, other = (one + two + one) / 9, 3 * one / 9, 2 * (2 * 0.5**2) / 4
    attn_loss = (first + second + other + other) / (2 * 2)
    assert attn_loss == pytest.approx(2 / 9)
    # ten symbols and the BOS: 11 classes
    seq_loss = ((2 * log(2) + log(20)) / 3 + (log(2) + log(20)) / 2) / 2
    model = fixed(logits_of(batch, 11, wrong={(0, 0), (1, 1)}), [maps, maps])
    loss, _, log_ = criterion_of(task, weight=10)(model, batch)
    assert loss.item() == pytest.approx(2 * (seq_loss + 10 * attn_loss))
    values = logged(log_)
    assert (values["accuracy"], values["seq_accuracy"]) == (3 / 5, 0)
    assert values["attn_loss"] == pytest.approx(attn_loss)


def test_means_are_of_all_batches_and_that_of_batches_weighs_them_alike():
    task = task_of("hist_10_bos")
    criterion = criterion_of(task)
    large, small = batch_of(task, "abcabca", "bb", "c"), batch_of(task, "a")  # 13 symbols with BOS, and 2
    logs = [
        criterion(fixed(logits_of(batch, 12, wrong)), batch)[2]
        for batch, wrong in ((large, {(0, 0), (0, 3), (1, 1)}), (small, {(0, 1)}))
    ]
    seq_loss = ((6 * log(2) + 2 * log(22)) / 8 + (2 * log(2) + log(22)) / 3 + log(2) + (log(2) + log(22)) / 2) / 4
    expected = {"loss": seq_loss, "seq_loss": seq_loss, "accuracy": 11 / 15, "seq_accuracy": 1 / 4}
    expected |= {"accuracy_batchmean": (10 / 13 + 1 / 2) / 2}
    assert logged(*logs) == pytest.approx(expected)
    both = {name: logs[0][name] + logs[1][name] for name in logs[0]}  # what fairseq makes of two processes
    assert logged(both) == pytest.approx(expected)
    right = criterion(fixed(logits_of(small, 12)), small)[2]
    assert logged(right, right, right)["accuracy"] == 1


def slow_losses(task, logits, maps, batch):
    """Both losses of a batch as loops over samples, positions, heads and cells, in Python's numbers."""
    seq_loss = attn_loss = 0.0
    lengths = batch["net_input"]["src_lengths"].tolist()
    for b, n in enumerate(lengths):
        for t in range(n):
            seq_loss -= torch.log_softmax(logits[b, t].double(), 0)[batch["target"][b, t]].item() / n / len(lengths)
        for number, (layer, head) in enumerate(task.language.program_heads):
            for q in range(n):
                ones = batch["attention_targets"][b, number, q, :n].double() + 1e-8
                difference = maps[layer][b, head, q, :n].double() - ones / ones.sum()
                attn_loss += difference.square().sum().item() / n**2
    return seq_loss, attn_loss / len(lengths) / len(task.language.program_heads)


@given(
    name=st.sampled_from(["sort_10_with_attns", "hist2_10_bos_with_attns", "sort_by_freq_10_with_attns"]),
    texts=st.lists(st.text("abcdefghij", min_size=1, max_size=9), min_size=1, max_size=4),
)
def test_a_batch_has_the_means_of_its_samples_and_the_losses_of_loops(name, texts):
    task = task_of(name)
    model, criterion = model_of(task).eval(), criterion_of(task)
    with torch.no_grad():
        batch = batch_of(task, *texts)
        log_ = criterion(model, batch)[2]
        together = logged(log_)
        alone = [criterion(model, batch_of(task, text))[2] for text in texts]
        logits, extra = model(**batch["net_input"], return_attention=True)
    each = [logged(one) for one in alone]
    for loss in ("loss", "seq_loss", "attn_loss"):
        assert together[loss] == pytest.approx(sum(one[loss] for one in each) / len(texts), rel=1e-5)
    tokens = [one["ntokens"] for one in alone]
    correct = sum(one["accuracy"] * count for one, count in zip(each, tokens, strict=True))
    assert together["accuracy"] == pytest.approx(correct / sum(tokens))
    assert together["seq_accuracy"] == pytest.approx(sum(one["seq_accuracy"] for one in each) / len(texts))
    seq_loss, attn_loss = slow_losses(task, logits, extra["attn"], batch)
    assert (together["seq_loss"], together["attn_loss"]) == pytest.approx((seq_loss, attn_loss), rel=1e-4)


@pytest.mark.parametrize("model_bos", [False, True])
def test_the_attention_loss_alone_trains_queries_and_keys_of_supervised_layers(model_bos):
    task = task_of("sort_10_with_attns")  # layers 0 and 1, head 0
    model = model_of(task, model_bos=model_bos)
    batch, unweighted, weighted = batch_of(task, "bacad", "ab"), criterion_of(task, 0), criterion_of(task, 1)
    (weighted(model, batch)[0] - unweighted(model, batch)[0]).backward()
    for layer, values in ((0, True), (1, False)):  # the values of layer 1 enter the output alone
        grads = model.get_parameter(f"layers.{layer}.attn.qkv.weight").grad.chunk(3)
        assert [bool(grad.abs().max() > 1e-6) for grad in grads] == [True, True, values]
    others = [p.grad for name, p in model.named_parameters() if name.startswith(("classifier", "layers.2"))]
    assert all(grad is None or grad.abs().max() < 1e-6 for grad in others)


def test_targets_are_normalised_and_their_mass_is_that_of_real_rows():
    targets = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    targets[0, 0, 1, 0] = targets[0, 0, 2, :2] = targets[1, 0, 0, 1] = True
    lengths = torch.tensor([3, 2])
    found = normalised_targets(targets, lengths)[:, 0]
    expected = [torch.tensor([UNIFORM, (1, 0, 0), (0.5, 0.5, 0)]), torch.tensor([(0, 1.0, 0), (0.5, 0.5, 0)])]
    for rows, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(rows[: len(wanted)], wanted, atol=2e-8, rtol=1e-6)
    weights = torch.tensor([[UNIFORM, (0.2, 0.7, 0.1), (0.3, 0.3, 0.4)], [(0.6, 0.4, 0), (1, 0, 0), (9, 9, 9)]])
    assert target_masses(weights[:, None], targets, lengths).flatten().tolist() == pytest.approx([0.8 / 3, 0.4 / 2])


def test_unsupervised_languages_ignore_the_weight_and_have_no_loss_of_the_attention():
    task = task_of("sort_10")
    batch = batch_of(task, "ba", "c")
    assert "attention_targets" not in batch
    loss, _, log_ = criterion_of(task, weight=1000)(fixed(logits_of(batch, 10)), batch)
    assert loss.item() == pytest.approx(2 * log(2))
    assert "attn_loss" not in logged(log_)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match=r"rasp_loss: --attn-loss-weight .*0 or more"):
        criterion_of(task_of("sort_10"), weight)


def test_a_task_without_a_language_is_refused():
    task = SimpleNamespace(cfg=SimpleNamespace(_name="language_modeling"), target_dictionary=None)
    with pytest.raises(ValueError, match=r"rasp_loss: --task language_modeling has no formal language.*rasp_lang"):
        criterion_of(task)
